"""Tables and sentences of a report's page, as text."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from sift_mm.cli.reports.layer_history import Layers, short_names
from sift_mm.cli.reports.run_dirs import Run
from sift_mm.cli.reports.run_groups import Comparison, Group, comparison_rows
from sift_mm.cli.reports.sample_pictures import Samples
from sift_mm.cli.reports.text import mask_cells
from sift_mm.flops.units import PREFIXES

#: Least value in a unit, the unit, and its name.
Scale = tuple[float, float, str]
TIMES: list[Scale] = [(7200, 3600, 'h'), (300, 60, 'min'), (0, 1, 's')]
SIZES: list[Scale] = [
    *((unit, unit, name) for name, unit in PREFIXES.items()),
    (1, 1, ''),
]


def scale(
    values: Sequence[float], steps: Sequence[Scale]
) -> tuple[float, str]:
    """Return the unit of the largest of some values, and its name."""
    top = max(map(abs, values), default=0)
    return next((s[1:] for s in steps if top >= s[0]), steps[-1][1:])


def number(value: float | None, form: str = ',.4g') -> str:
    """Return a number as text, '–' for None and NaN."""
    if value is None or not isfinite(value):
        return '–'
    return f'{value:{form}}'.replace('-', '−')


def scaled(value: float | None, form: str = '.4g') -> str:
    """Return a number with the prefix of its size."""
    if value is None:
        return '–'
    unit, prefix = scale([value], SIZES)
    return f'{value / unit:{form}} {prefix}'.rstrip()


def duration(seconds: float | None) -> str:
    """Return a time in the unit of its size."""
    if seconds is None:
        return '–'
    unit, name = scale([seconds], TIMES)
    return f'{seconds / unit:.3g} {name}'


def fact_rows(compared: Comparison) -> list[dict[str, str]]:
    """Return what was run, a row a network."""
    rows = []
    for group in compared.groups:
        run = group.first
        member, masks = run.member, run.masks
        more = [
            f'{key}={member[key]}'
            for key in ('inner', 'sparse_factors')
            if member.get(key) not in (None, 'none')
        ]
        size = masks.get('size')
        rows.append(
            {
                'network': group.name,
                'config': _config_name(run),
                'member': ', '.join([member.get('family') or '–', *more]),
                'mask training': str(masks.get('algorithm') or '–'),
                'sparsity, nominal': number(group.sparsity, '.4g'),
                'solved': number(masks.get('solved'), '.4f'),
                'density': number(size and masks['active'] / size, '.4f'),
                'FLOPs an image': scaled(group.cost('flops')),
                'of dense': number(group.cost('flops_ratio'), '.4f'),
                'training FLOPs, of dense': number(
                    group.cost('training_ratio'), '.4f'
                ),
                'parameters': scaled(group.cost('parameters')),
                'active': scaled(group.cost('active')),
                'training time': duration(group.cost('seconds')),
                'seeds': _seeds(group),
            }
        )
    return _without_empty(rows)


def _config_name(run: Run) -> str:
    """Return the name of the run's config."""
    written = run.record.get('config')
    files = [Path(written)] if written else sorted(run.path.glob('*.py'))
    return files[0].stem if files else '–'


def _seeds(group: Group) -> str:
    known = [run.seed for run in group.runs]
    return ', '.join('–' if seed is None else str(seed) for seed in known)


def _without_empty(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Leave out columns without any value."""
    kept = {k for row in rows for k, v in row.items() if v != '–'}
    return [{k: v for k, v in row.items() if k in kept} for row in rows]


def flops_notes(compared: Comparison) -> list[str]:
    """Return what the FLOPs of the runs are counts of, in words."""
    runs = [run for group in compared.groups for run in group.runs]
    found = [run.record.get('flops', {}).get('of') for run in runs]
    return [*dict.fromkeys(text for text in found if text)] or [
        '2 x MACs of one image'
    ]


def machine_rows(compared: Comparison) -> list[dict[str, str]]:
    """Return machines and versions, a row for each that differs."""
    rows: dict[str, dict[str, str]] = {}
    for group in compared.groups:
        for run in group.runs:
            versions = ', '.join(f'{k} {v}' for k, v in run.versions.items())
            row = {
                'machine': str(run.record.get('machine') or '–'),
                'versions': versions or '–',
            }
            known = rows.setdefault(str(row), {**row, 'networks': ''})
            if group.name not in known['networks'].split(', '):
                names = [known['networks'], group.name]
                known['networks'] = ', '.join(filter(None, names))
    found = [row for row in rows.values() if row['versions'] != '–']
    return _without_empty(found)


def comparison_table(compared: Comparison) -> list[dict[str, str]]:
    """Return metric and difference from dense as text, a row a network."""
    digits = compared.digits
    rows = []
    for row in comparison_rows(compared):
        interval = '–' if row['low'] is None else _interval(row, digits)
        rows.append(
            {
                'network': row['network'],
                'sparsity': number(row['sparsity'], '.4g'),
                'FLOPs, of dense': number(row['flops_ratio'], '.4f'),
                'n': str(row['runs_with_metric']),
                'mean': number(row['mean'], f'.{digits}f'),
                'standard deviation': number(row['sd'], f'.{digits}f'),
                'minus dense': number(row['difference'], f'+.{digits}f'),
                'interval, 95 %': interval,
                'pairs': str(row['pairs'] or '–'),
                'training time': duration(row['seconds']),
            }
        )
    return _without_empty(rows)


def _interval(row: Mapping[str, Any], digits: int) -> str:
    return ' to '.join(
        number(row[end], f'+.{digits}f') for end in ('low', 'high')
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
                **{
                    name: '–' if cell == '-' else cell.replace('-', '−')
                    for name, cell in mask_cells(row).items()
                },
                'sparse products': layers.products.get(layer, '–'),
            }
        )
    return _without_empty(rows)


def headline(compared: Comparison) -> list[str]:
    """Return the sentences at the top of the page."""
    runs = sum(len(group.runs) for group in compared.groups)
    said = [f'{runs} runs of {len(compared.groups)} networks.']
    if runs == 1:
        run, name = compared.groups[0].first, compared.groups[0].name
        said = [f'One run, {name}: {run.status}.']
    metric, digits = compared.metric, compared.digits
    if metric is None:
        return [*said, 'No metric was logged so far.']
    rows = [r for r in comparison_rows(compared) if r['mean'] is not None]
    other = [row for row in rows if row['difference'] is not None]
    if not other:
        best = max(rows, key=lambda row: compared.sign * row['mean'])
        value = number(best['mean'], f'.{digits}f')
        return [*said, f'{best["network"]} has {compared.unit} {value}.']
    best = max(other, key=lambda row: compared.sign * row['difference'])
    text = (
        f'The network with the best difference from '
        f'{compared.dense.name if compared.dense else "dense"} in {metric} is '
        f'{best["network"]}: {number(best["difference"], f"+.{digits}f")}'
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
            name = f'{group.name}, seed {run.seed}'
            if not run.config:
                said.append(f'{name}: no config was found.')
            if not run.scalars.train:
                said.append(f'{name}: no scalars of a training are logged.')
            if run.status != 'finished':
                said.append(f'{name}: {run.status}.')
        said += layers[group.name].notes if group.name in layers else []
    return [*said, *samples.notes]
