"""Reports of commands as text: tables, costs, masks."""

import json
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from textwrap import fill
from typing import Any

import mmengine
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sift_mm.flops import describe_shape
from sift_mm.flops.units import flops

#: Spectral quantities of a mask, with their labels.
SPECTRAL = {
    'ramanujan_gap': 'Ramanujan gap',
    'imdb': 'IMDB',
    'weighted_gap': 'weighted gap',
    'imsg': 'IMSG',
}


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1
) -> str:
    """Return a table as plain text.

    Args:
        header (Sequence[str]): Names of the columns.
        rows (Sequence[Sequence[str]]): Cells.
        left (int): Number of left-aligned columns; columns of numbers follow.
    """
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(header):
        justify: Any = 'left' if i < left else 'right'
        grid.add_column(Text(name), justify=justify, no_wrap=True)
    for row in rows:
        grid.add_row(*map(Text, row))
    out = StringIO()
    Console(file=out, width=10**4, color_system=None).print(grid)
    lines = out.getvalue().splitlines()
    return '\n'.join(line.rstrip() for line in lines)


def mask_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a row of a table of masks as text, by column.

    Args:
        row (Mapping): Layer or total of :func:`sift_mm.sparsity.mask_table`.
    """

    def decimal(key: str, digits: int) -> str:
        value = row[key]
        return '-' if value is None else f'{value:z.{digits}f}'

    return {
        'active': f'{row["active"]:,}',
        'density': decimal('density', 4),
        'ITOP': decimal('itop', 4),
        'DoC': decimal('doc', 4),
        'dead inputs': f'{row["dead_inputs"]} of {row["inputs"]}',
        'dead outputs': f'{row["dead_outputs"]} of {row["outputs"]}',
        **{
            label: decimal(key, 3)
            for key, label in SPECTRAL.items()
            if key in row
        },
    }


def print_report(
    report: dict[str, Any],
    to_text: Callable[[dict[str, Any]], str],
    file: str | None,
) -> None:
    """Print a report and write it to a JSON file.

    Args:
        report: Plain values.
        to_text: Function that formats the report.
        file: Name of the file, '-' to print JSON in place of text, None for
            text only.
    """
    if file == '-':
        print(json.dumps(report, indent=2))
        return
    print(to_text(report))
    if file is not None:
        mmengine.dump(report, file, 'json', indent=2)


def scaled(number: float | None, unit: float) -> str:
    """Return a number in a unit, '-' for None."""
    # Format z drops the minus of a zero.
    return '-' if number is None else f'{number / unit:z,.3f}'


def to_text(report: dict[str, Any]) -> str:
    """Return the tables of a report, with a note on the counted operations."""
    assumed = '; '.join(report['assumed'])
    counts = report['counts']
    counts += f' Counted with {assumed}.' if assumed else ''
    return '\n\n'.join(
        (
            f'{report["config"]} at {_pixels(report)}',
            fill(counts, 79),
            _layers(report),
            _masks(report['masks']),
            _comparison(report),
            _training(report['training'], report['masks']),
        )
    )


def _pixels(report: dict[str, Any]) -> str:
    size = describe_shape(report['shape']).removesuffix(' pixels')
    return f'{size} ({report["shape_source"]})'


def _layers(report: dict[str, Any]) -> str:
    columns = {
        'M params': ('parameters', 1e6),
        'M active': ('active', 1e6),
        'MB weights': ('weight_bytes', 1e6),
        'MB active': ('active_bytes', 1e6),
        'MB activations': ('activation_bytes', 1e6),
    }
    rows = [
        (
            row['name'] or 'the model itself',
            row['type'],
            flops(row['flops_dense']),
            flops(row['flops_sparse']),
            *(scaled(row[key], unit) for key, unit in columns.values()),
        )
        for row in (*report['layers'], report['total'] | dict(name='sum'))
    ]
    names = 'layer', 'type', 'FLOPs dense', 'FLOPs sparse', *columns
    return table(names, rows, left=2)


def _masks(masks: dict[str, Any] | None) -> str:
    if masks is None:
        return 'No masks: all weights are dense.'
    text = (
        f'Masks: {masks["algorithm"]} on {masks["parameters"]} parameters, '
        f'sparsity {masks["nominal_sparsity"]} as written, '
        f'{masks["sparsity"]:.6f} as solved.'
    )
    if course := masks.get('course'):
        text += (
            f' These are after the last update: their density is '
            f'{course["start"]:.4f} at the start and {course["mean"]:.4f} on '
            'average over the training.'
        )
    if masks['transferred']:
        text += (
            ' They are counted as drawn from scratch; the run takes those of '
            'the checkpoint that init_cfg loads, which may have other FLOPs: '
            'tools/test.py counts them.'
        )
    return fill(text, 79)


def _comparison(report: dict[str, Any]) -> str:
    """Return the table of backbone, neck and heads beside the dense one."""
    found = report['comparison']
    if found is None:
        return f'Not compared with a dense network: {report["not_compared"]}.'
    parts = [*found['parts'], found['total'] | dict(name='sum')]
    lines = table(
        ('part', 'FLOPs here', 'FLOPs of dense network', 'difference'),
        [
            (
                part['name'],
                flops(part['flops']),
                flops(part['flops_of_dense']),
                flops(part['flops'] - part['flops_of_dense']),
            )
            for part in parts
        ],
    )
    if not report['sparse_backbone']:
        return (
            f'{lines}\nThe config has no Sparse-IFT backbone: the dense '
            'network is this one, without masks.'
        )
    if not found['backbone_ratio']:
        ratio = found['total']['flops'] / found['total']['flops_of_dense']
        return f"{lines}\nThe model has {ratio:.4f} of the dense one's FLOPs."
    return (
        f'{lines}\nThe backbone has {found["backbone_ratio"]:.4f} of the '
        "dense one's FLOPs. Neck and heads, which read its features, add "
        f'{found["added_share"]:.2%} to the dense network.'
    )


def _training(training: dict[str, Any], masks: dict[str, Any] | None) -> str:
    """Return the costs of one sample and of the whole schedule, by method."""
    methods, whole = training['flops_per_sample'], training['flops'] or {}
    lines = table(
        ('training', 'FLOPs a sample', 'FLOPs in all'),
        [
            (name, flops(one), flops(whole.get(name)))
            for name, one in methods.items()
        ],
    )
    text = f'{lines}\nForward, with auxiliary heads, and backward at '
    text += f'{_pixels(training)}.'
    if masks is not None:
        text += (
            f' Masks are updated every {masks["interval"]} optimizer steps, '
            f'the last time after {masks["end"]:.0%} of all.'
        )
    samples = training['samples']
    number = '' if samples is None else f'{samples:,}, '
    return f'{text}\nSamples in all: {number}{training["samples_source"]}.'


def metrics_to_text(
    metrics: Mapping[str, float], cost: Mapping[str, float]
) -> str:
    """Return metrics and cost of a tested network as a table."""
    rows = [
        (name, f'{value:.4f}' if isinstance(value, float) else str(value))
        for name, value in metrics.items()
    ]
    rows += [
        ('M parameters', scaled(cost['parameters'], 1e6)),
        ('M active parameters', scaled(cost['active_parameters'], 1e6)),
        ('density of masked layers', f'{cost["density"]:.4f}'),
    ]
    if 'flops' in cost:
        rows.append(('FLOPs (2 x MACs)', flops(cost['flops'])))
        rows.append(('of the dense network', flops(cost['flops_of_dense'])))
    if 'seconds_per_image' in cost:
        rows.append(('seconds an input', f'{cost["seconds_per_image"]:.4f}'))
    return table(('', 'value'), rows)
