"""The report of get_flops.py as text."""

from collections.abc import Sequence
from textwrap import fill
from typing import Any


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1
) -> str:
    """Aligns columns: first those of text, to the ``left``, then numbers."""
    columns = zip(header, *rows, strict=True)
    widths = [max(map(len, column)) for column in columns]
    return '\n'.join(
        '  '.join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    )


def scaled(number: float | None, unit: float) -> str:
    """A number in a unit, '-' for none."""
    # The z leaves no minus before a zero.
    return '-' if number is None else f'{number / unit:z,.3f}'


def to_text(report: dict[str, Any]) -> str:
    """The tables of a report, with what is counted."""
    said = '; '.join(report['assumed'])
    counts = report['counts'] + (f' Counted with {said}.' if said else '')
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
    height, width = report['shape']
    return f'{height} x {width} ({report["shape_source"]})'


def _layers(report: dict[str, Any]) -> str:
    columns = {
        'GFLOPs dense': ('flops_dense', 1e9),
        'GFLOPs sparse': ('flops_sparse', 1e9),
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
            *(scaled(row[key], unit) for key, unit in columns.values()),
        )
        for row in (*report['layers'], report['total'] | dict(name='sum'))
    ]
    return table(('layer', 'type', *columns), rows, left=2)


def _masks(masks: dict[str, Any] | None) -> str:
    if masks is None:
        return 'No masks: all weights are dense.'
    text = (
        f'Masks: {masks["algorithm"]} on {masks["parameters"]} parameters, '
        f'sparsity {masks["nominal_sparsity"]} as written, '
        f'{masks["sparsity"]:.6f} as solved.'
    )
    if masks['transferred']:
        text += (
            ' They are counted as drawn from scratch; the run takes those of '
            'the checkpoint that init_cfg loads, which may have other FLOPs: '
            'tools/test.py counts them.'
        )
    return fill(text, 79)


def _comparison(report: dict[str, Any]) -> str:
    """Backbone, neck and heads against those of the dense network."""
    found = report['comparison']
    if found is None:
        return f'Not compared with a dense network: {report["not_compared"]}.'
    parts = [*found['parts'], found['total'] | dict(name='sum')]
    lines = table(
        ('part', 'GFLOPs here', 'GFLOPs of dense network', 'difference'),
        [
            (
                part['name'],
                scaled(part['flops'], 1e9),
                scaled(part['flops_of_dense'], 1e9),
                scaled(part['flops'] - part['flops_of_dense'], 1e9),
            )
            for part in parts
        ],
    )
    if not report['sparse_backbone']:
        return (
            f'{lines}\nThe config has no Sparse-IFT backbone: the dense '
            'network is this one, without masks.'
        )
    return (
        f'{lines}\nThe backbone has {found["backbone_ratio"]:.4f} of the '
        "dense one's FLOPs. Neck and heads, which read its features, add "
        f'{found["added_share"]:.2%} to the dense network.'
    )


def _training(training: dict[str, Any], masks: dict[str, Any] | None) -> str:
    """What a sample and the whole schedule cost, by method."""
    flops, whole = training['flops_per_sample'], training['flops'] or {}
    lines = table(
        ('training', 'GFLOPs a sample', 'PFLOPs in all'),
        [
            (name, scaled(one, 1e9), scaled(whole.get(name), 1e15))
            for name, one in flops.items()
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
