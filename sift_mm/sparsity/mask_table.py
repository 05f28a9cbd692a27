"""Table of the masks of a checkpoint, a row for each layer."""

from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from sift_mm.checkpoint.packing import count
from sift_mm.checkpoint.reading import read_masked
from sift_mm.checkpoint.state import weight_of, with_context
from sift_mm.sparsity.metrics import MaskHistory, dead_channels
from sift_mm.sparsity.spectral import Spectrum, spectrum


def mask_table(path: str | Path, spectral: bool = True) -> dict[str, Any]:
    """Describe the masks of a checkpoint, by layer and in total.

    Returns:
        dict: Plain values under these keys.

            algorithm, structure, steps: Of the mask training; None if not
            saved.

            groups: Algorithm, structure and schedule of the layers that have
            others, by name.

            layers: A dict for each masked parameter, with its ``name``,
            ``shape``, ``size``, ``active`` weights, ``density``, ``itop``
            and ``doc`` (shares of the weights that were active at any time
            and all the time; None in a published file), ``inputs``,
            ``outputs``, ``dead_inputs`` and ``dead_outputs`` (see
            :func:`dead_channels`) and, if ``spectral``, the fields of
            :class:`Spectrum`.

            total: The same keys over all layers. Shares are those of all
            weights together, channels are sums, and a spectral quantity is
            the mean of the layers that have it.

    Raises:
        UserError: If the file is no checkpoint, has no masks, or its masks do
            not fit its weights.
    """
    checkpoint, training = read_masked(path)
    masks, turned = training['masks'], training.get('inputs_first', ())
    history = None
    with with_context(path):
        if 'history' in training:
            history = MaskHistory(masks)
            history.load_state_dict(training['history'])
        layers = []
        for name, mask in masks.items():
            filters = mask.t() if name in turned else mask
            row = _row(name, filters, history) | {'shape': list(mask.shape)}
            if spectral:
                weights = checkpoint.get('state_dict', checkpoint)
                weight = weight_of(weights, name, mask)
                weight = weight.t() if name in turned else weight
                row |= asdict(spectrum(filters, weight))
            layers.append(row)
    return {
        'algorithm': training.get('algorithm'),
        'structure': training.get('structure'),
        'groups': training.get('groups', {}),
        'steps': training.get('steps'),
        'layers': layers,
        'total': _total(layers, history),
    }


def _row(
    name: str, mask: Tensor, history: MaskHistory | None
) -> dict[str, Any]:
    active = count(mask)
    dead_inputs, dead_outputs = dead_channels(mask)
    return {
        'name': name,
        'shape': list(mask.shape),
        'size': mask.numel(),
        'active': active,
        'density': active / mask.numel(),
        'itop': history and history.itop_rate(name),
        'doc': history and history.degree_of_constraint(name),
        'inputs': mask.shape[1],
        'outputs': mask.shape[0],
        'dead_inputs': dead_inputs,
        'dead_outputs': dead_outputs,
    }


def _total(
    layers: list[dict[str, Any]], history: MaskHistory | None
) -> dict[str, Any]:
    sums = ('size', 'active', 'inputs', 'outputs')
    total = {
        key: sum(row[key] for row in layers)
        for key in (*sums, 'dead_inputs', 'dead_outputs')
    }
    total |= {
        'density': total['active'] / total['size'],
        'itop': history and history.itop_rate(),
        'doc': history and history.degree_of_constraint(),
    }
    return total | {
        field.name: _mean(row[field.name] for row in layers)
        for field in fields(Spectrum)
        if field.name in layers[0]
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None
