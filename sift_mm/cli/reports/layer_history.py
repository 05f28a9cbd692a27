"""Layers of a run over time, and pictures of their masks."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from sift_mm.checkpoint.reading import masks_of
from sift_mm.cli.reports.run_dirs import Run
from sift_mm.cli.reports.text import SPECTRAL
from sift_mm.errors import UserError
from sift_mm.sparsity.mask_table import mask_table

#: Quantities of a layer: label, and ends of the colours if they are fixed.
QUANTITIES: dict[str, tuple[str, float | None, float | None]] = {
    'density': ('share of active weights', 0, None),
    'moved': ('share of active weights moved', 0, None),
    'itop_rate': ('share ever active (ITOP)', 0, None),
    'doc_rate': ('share always active (DoC)', 0, None),
    'dead_inputs': ('input channels without a weight', 0, None),
    'dead_outputs': ('output channels without a weight', 0, None),
    'gradient_norm': ('norm of the gradient', None, None),
    'sparse_products': ('products on sparse kernels, of 3', 0, 3),
    **{key: (label, None, None) for key, label in SPECTRAL.items()},
}
# Names in the table of a checkpoint.
IN_TABLE = {'itop_rate': 'itop', 'doc_rate': 'doc'}
#: Products of a layer, as a checkpoint has them.
PRODUCTS = ('forward', 'input gradient', 'weight gradient')
#: Largest side of a picture of a mask, in pixels.
SIDE = 192
#: Largest number of layers whose masks are shown.
PICTURES = 12

#: Steps and values by layer, by quantity.
History = dict[str, dict[str, list[tuple[int, float]]]]


@dataclass
class Layers:
    """Layers of a run.

    Attributes:
        logged (History): Scalars of the log, by iteration.
        saved (History): Quantities of the checkpoints, by optimizer step.
        tables (list): Name and table of each checkpoint that was read.
        pictures (list): Name of each shown layer, its shape, and images of
            its first and last mask.
        products (dict[str, str]): Products on sparse kernels, by layer.
        notes (list[str]): Checkpoints that could not be read.
    """

    logged: History = field(default_factory=dict)
    saved: History = field(default_factory=dict)
    tables: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    pictures: list[dict[str, str]] = field(default_factory=list)
    products: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def means(self, quantity: str) -> list[tuple[int, float]]:
        """Return steps and means over the layers of a spectral quantity."""
        totals = [(t['steps'] or 0, t['total']) for _, t in self.tables]
        found = [(step, total.get(quantity)) for step, total in totals]
        return [(step, mean) for step, mean in found if mean is not None]


def spread_out(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most so many items, first and last included."""
    if len(items) <= most:
        return [*items]
    kept = np.linspace(0, len(items) - 1, most).round().astype(int)
    return [items[i] for i in kept]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return names of parameters without their common start and '.weight'."""
    start = commonprefix([*names]) if len(names) > 1 else ''
    cut = start.rfind('.') + 1
    return {name: name[cut:].removesuffix('.weight') for name in names}


def logged_layers(run: Run) -> History:
    """Return the scalars ``sparse/QUANTITY/PARAMETER`` of the log."""
    found: History = {}
    for step, record in sorted(run.scalars.masks.items()):
        for key, value in record.items():
            scope, _, rest = key.partition('/')
            quantity, _, name = rest.partition('/')
            if scope == 'sparse' and name and quantity in QUANTITIES:
                layers = found.setdefault(quantity, {})
                layers.setdefault(name, []).append((step, value))
    return found


def read_layers(run: Run, most: int) -> Layers:
    """Read the layers of a run from its log and its checkpoints.

    Args:
        run (Run): The run.
        most (int): Largest number of checkpoints to read; 0 reads none.
    """
    found = Layers(logged=logged_layers(run))
    if not most or not (run.hook or run.masks):
        return found
    paths = spread_out(run.checkpoints, most)
    read: list[Path] = []
    for path in paths:
        try:
            table = mask_table(path)
        except UserError as error:
            found.notes.append(str(error))
            continue
        read.append(path)
        found.tables.append((path.name, table))
        _add(found, table)
    for name, sizes in run.state.get('choices', {}).items():
        used = zip(PRODUCTS, *sizes.values(), strict=False)
        some = [product for product, *sparse in used if any(sparse)]
        found.products[name] = ', '.join(some) or 'none'
    try:
        if read:
            first, last = (filters_of(run, p) for p in (read[0], read[-1]))
            found.pictures = mask_pictures(first, last)
    except UserError as error:  # A run in progress deletes checkpoints.
        found.notes.append(str(error))
    return found


def _add(found: Layers, table: dict[str, Any]) -> None:
    """Add the table of a checkpoint to the histories."""
    step = table['steps'] or 0
    for quantity in QUANTITIES:
        key = IN_TABLE.get(quantity, quantity)
        for row in table['layers']:
            if row.get(key) is not None:
                layers = found.saved.setdefault(quantity, {})
                layers.setdefault(row['name'], []).append((step, row[key]))


def filters_of(run: Run, path: Path) -> dict[str, Tensor]:
    """Return the masks of a checkpoint with filters as rows."""
    turned = run.state.get('inputs_first', ())
    return {n: m.t() if n in turned else m for n, m in masks_of(path).items()}


def mask_pictures(
    first: dict[str, Tensor], last: dict[str, Tensor]
) -> list[dict[str, str]]:
    """Return pictures of some layers' first and last masks."""
    short = short_names([*last])
    return [
        {
            'name': short[name],
            'shape': ' x '.join(map(str, last[name].shape)),
            'first': picture(first[name]),
            'last': picture(last[name]),
        }
        for name in spread_out([n for n in last if n in first], PICTURES)
    ]


def picture(mask: Tensor) -> str:
    """Return a mask as PNG: a row a filter, a column an input channel.

    Black is a pair all of whose weights are active, white one without any.
    """
    share = mask.flatten(2).float().mean(2) if mask.dim() > 2 else mask.float()
    pixels = Image.fromarray((255 * (1 - share)).byte().numpy())
    if max(pixels.size) > SIDE:
        scale = SIDE / max(pixels.size)
        size = [max(1, round(side * scale)) for side in pixels.size]
        pixels = pixels.resize(size, Image.Resampling.BOX)
    out = BytesIO()
    pixels.save(out, 'PNG', optimize=True)
    return data_address(out.getvalue(), 'png')


def data_address(content: bytes, kind: str) -> str:
    """Return an image as an address that holds it."""
    return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'
