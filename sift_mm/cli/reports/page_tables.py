"""Tables and sentences of a report's page, as text."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from math import isfinite
from typing import Any

from sift_mm.cli.reports.layer_history import Layers, short_names
from sift_mm.cli.reports.run_groups import Comparison
from sift_mm.cli.reports.sample_pictures import Samples
from sift_mm.cli.reports.text import mask_cells
from sift_mm.flops.units import flops

Row = Mapping[str, Any]


def number(value: float | None, form: str = ',.4g') -> str:
    """Return a number as text, '–' for None and NaN."""
    if value is None or not isfinite(value):
        return '–'
    return f'{value:{form}}'.replace('-', '−')


def duration(seconds: float | None) -> str:
    """Return hours, minutes and seconds, '–' for None."""
    return '–' if seconds is None else str(timedelta(seconds=round(seconds)))


def _of(key: str, to_text: Callable[..., str], *options: str) -> Any:
    return lambda row: to_text(row[key], *options)


def _text(value: Any) -> str:
    return str(value or '–')


#: Columns of what was run.
FACTS: dict[str, Callable[[Row], str]] = {
    'network': _of('network', str),
    'config': _of('config', _text),
    'member': _of('member', _text),
    'mask training': _of('algorithm', _text),
    'sparsity, nominal': _of('sparsity', number, '.4g'),
    'solved': _of('solved', number, '.4f'),
    'density': _of('density', number, '.4f'),
    'FLOPs an image': _of('flops', flops),
    'of dense': _of('flops_ratio', number, '.4f'),
    'training FLOPs, of dense': _of('training_ratio', number, '.4f'),
    'parameters': _of('parameters', flops),
    'active': _of('active', flops),
    'training time': _of('seconds', duration),
    'seeds': _of('seeds', str),
}


def comparison(rows: Sequence[Row], digits: int) -> list[dict[str, str]]:
    """Return metric and difference from dense as text.

    Args:
        rows (Sequence): Rows of the networks.
        digits (int): Digits behind the point of the metric.
    """
    signed = f'+.{digits}f'
    columns: dict[str, Callable[[Row], str]] = {
        'network': _of('network', str),
        'sparsity': _of('sparsity', number, '.4g'),
        'FLOPs, of dense': _of('flops_ratio', number, '.4f'),
        'n': _of('runs_with_metric', str),
        'mean': _of('mean', number, f'.{digits}f'),
        'standard deviation': _of('sd', number, f'.{digits}f'),
        'minus dense': _of('difference', number, signed),
        'interval, 95 %': lambda row: _interval(row, digits),
        'pairs': _of('pairs', _text),
        'compared with': _of('compared_with', _text),
        'training time': _of('seconds', duration),
    }
    if {row['compared_with'] for row in rows} <= {None, 'dense'}:
        del columns['compared with']
    return cells(rows, columns)


def cells(
    rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]
) -> list[dict[str, str]]:
    """Return rows as text, without columns that have no value."""
    return _without_empty(
        [
            {name: to_text(row) for name, to_text in columns.items()}
            for row in rows
        ]
    )


def _without_empty(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    kept = {k for row in rows for k, v in row.items() if v not in ('–', '-')}
    return [
        {k: '–' if v == '-' else v for k, v in row.items() if k in kept}
        for row in rows
    ]


def _interval(row: Row, digits: int) -> str:
    if row['low'] is None:
        return '–'
    ends = (number(row[end], f'+.{digits}f') for end in ('low', 'high'))
    return ' to '.join(ends)


def flops_notes(compared: Comparison) -> list[str]:
    """Return what the FLOPs of the runs are counts of, in words."""
    runs = [run for group in compared.groups for run in group.runs]
    found = [run.record.get('flops', {}).get('of') for run in runs]
    return [*dict.fromkeys(text for text in found if text)] or [
        '2 x MACs of one image'
    ]


def machine_rows(compared: Comparison) -> list[dict[str, str]]:
    """Return machines and versions, a row for each that differs."""
    networks: dict[tuple[str, str], dict[str, None]] = {}
    for group in compared.groups:
        for run in group.runs:
            versions = ', '.join(f'{k} {v}' for k, v in run.versions.items())
            known = _text(run.record.get('machine')), versions
            networks.setdefault(known, {})[group.name] = None
    return _without_empty(
        [
            dict(machine=on, versions=of, networks=', '.join(names))
            for (on, of), names in networks.items()
            if of
        ]
    )


def layer_table(layers: Layers) -> list[dict[str, str]]:
    """Return the layers of the last checkpoint as text."""
    if not layers.tables:
        return []
    table = layers.tables[-1][1]
    short = short_names([row['name'] for row in table['layers']])
    rows = []
    for row in [*table['layers'], table['total'] | {'name': 'all'}]:
        layer = row['name'].removesuffix('.weight')
        shape = ' x '.join(map(str, row.get('shape', ())))
        rows.append(
            {
                'layer': short.get(row['name'], row['name']),
                'shape': shape or '–',
                **mask_cells(row),
                'sparse products': layers.products.get(layer, '–'),
            }
        )
    return _without_empty(rows)


def headline(compared: Comparison, rows: Sequence[Row]) -> list[str]:
    """Return the sentences at the top of the page."""
    groups, digits = compared.groups, compared.digits
    runs = sum(len(group.runs) for group in groups)
    said = [f'{runs} runs of {len(groups)} networks.']
    if len(groups) == 1:
        said = [f'{runs} runs of one network.']
    if runs == 1:
        said = [f'One run, {groups[0].name}: {groups[0].first.status}.']
    if compared.metric is None:
        return [*said, 'No metric was logged so far.']
    key = 'difference'
    found = [row for row in rows if row[key] is not None]
    if not found:
        key, found = 'mean', [row for row in rows if row['mean'] is not None]
    if not found:
        return [*said, f'No run has a finite {compared.metric}.']
    best = max(found, key=lambda row: compared.sign * row[key])
    if key == 'mean':
        value = number(best['mean'], f'.{digits}f')
        return [*said, f'{best["network"]} has {compared.unit} {value}.']
    text = (
        f'The best difference from dense in {compared.metric} is that of '
        f'{best["network"]}: {number(best[key], f"+.{digits}f")}'
    )
    if best['low'] is None:
        return [*said, f'{text}, of one pair of runs: no interval.']
    clear = best['low'] > 0 or best['high'] < 0
    verdict = '' if clear else '; the interval includes no difference'
    text += f' (95 % interval {_interval(best, digits)}, {best["pairs"]} pairs'
    return [*said, f'{text}{verdict}).']


def missing(
    compared: Comparison, layers: Mapping[str, Layers], samples: Samples
) -> list[str]:
    """Return what runs lack, in sentences."""
    said = []
    for group in compared.groups:
        for run in group.runs:
            seed = '' if run.seed is None else f', seed {run.seed}'
            name = f'{group.name}{seed}'
            if not run.config:
                said.append(f'{name}: no config was found.')
            if not run.scalars.train:
                said.append(f'{name}: no scalars of a training are logged.')
            if run.status != 'finished':
                said.append(f'{name}: {run.status}.')
            if compared.metric and compared.metric not in run.metrics:
                said.append(f'{name}: there is no {compared.metric}.')
            losses = run.curve('train', 'loss')
            wrong = [step for step, loss in losses if not isfinite(loss)]
            if wrong:
                said.append(
                    f'{name}: the loss is not finite at {len(wrong)} of '
                    f'{len(losses)} logged steps, first at iteration '
                    f'{wrong[0]}.'
                )
        said += layers[group.name].notes if group.name in layers else []
    return [*said, *samples.notes]
