"""The page of a report: its charts, and all sections in page.html."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import nan
from pathlib import Path
from time import strftime
from typing import Any

from jinja2 import Environment, FileSystemLoader

from sift_mm.cli.reports.charts import (
    Chart,
    Style,
    cost_chart,
    curve_chart,
    heat_map,
    styles_of,
    swatch,
)
from sift_mm.cli.reports.layer_history import (
    QUANTITIES,
    History,
    Layers,
    short_names,
)
from sift_mm.cli.reports.page_tables import (
    FACTS,
    cells,
    comparison,
    flops_notes,
    headline,
    layer_table,
    machine_rows,
    missing,
)
from sift_mm.cli.reports.run_dirs import Run
from sift_mm.cli.reports.run_groups import Comparison, Group, network_rows
from sift_mm.cli.reports.sample_pictures import Samples
from sift_mm.cli.reports.statistics import Summary
from sift_mm.cli.reports.text import SPECTRAL

#: Scalars of a run: title and axis.
LEARNING = {
    'loss': ('Training loss', 'loss'),
    'lr': ('Learning rate', 'learning rate'),
}
MASKS = {
    'sparse/density': ('Density', 'share of active weights'),
    'sparse/moved': ('Moved weights', 'share of active weights'),
    'sparse/drop_fraction': ('Drop fraction', 'share of active weights'),
    'sparse/itop_rate': ('ITOP rate', 'share of weights ever active'),
    'sparse/doc_rate': ('DoC rate', 'share of weights always active'),
}


def _cost(key: str, unit: float = 1) -> Callable[[Group, Run], float]:
    return lambda group, run: run.costs.get(key, nan) / unit


#: Name and label of axes, the function that reads the cost of a run, and the
#: smallest range.
AXES: dict[tuple[str, str], tuple[Callable[[Group, Run], Any], float]] = {
    ('sparsity', 'nominal sparsity (share of weights)'): (
        lambda group, run: group.sparsity,
        0.1,
    ),
    ('FLOPs', 'FLOPs of an image, divided by dense'): (
        _cost('flops_ratio'),
        0.1,
    ),
    ('training FLOPs', 'FLOPs of the training, divided by dense'): (
        _cost('training_ratio'),
        0.1,
    ),
    ('time', 'training time (minutes)'): (_cost('seconds', 60), 0.0),
}


def look(compared: Comparison) -> dict[str, Style]:
    """Return the style of each network."""
    series = {group.name: group.series for group in compared.groups}
    dense = compared.dense[0].name if compared.dense else None
    return styles_of(series, dense)


def scalar_charts(
    compared: Comparison,
    kind: str,
    scalars: Mapping[str, tuple[str, str]],
    by_epoch: bool | None = None,
) -> Iterator[Chart]:
    """Yield charts of scalars over the training.

    Args:
        compared (Comparison): Networks.
        kind (str): As for :meth:`Run.curve`.
        scalars (Mapping): Title and label by the scalar's name.
        by_epoch (bool, optional): Whether networks with metrics by epoch are
            shown, or those by iteration; None is all.
    """
    style = look(compared)
    for key, (title, label) in scalars.items():
        shown = [
            (style[group.name], curves)
            for group in compared.groups
            if by_epoch in (None, group.first.by_epoch)
            and any(curves := [run.curve(kind, key) for run in group.runs])
        ]
        if shown:
            steps = 'epoch' if by_epoch else 'iteration'
            yield curve_chart(title, (steps, label), shown)


def learning_charts(compared: Comparison) -> Iterator[Chart]:
    """Yield charts of loss and metrics over the training."""
    yield from scalar_charts(compared, 'train', LEARNING)
    if (metric := compared.metric) is not None:
        shown = {metric: (f'{metric} in validation', compared.unit)}
        for by_epoch in (True, False):
            yield from scalar_charts(compared, 'valid', shown, by_epoch)


def comparison_charts(
    compared: Comparison, legend: bool = False
) -> Iterator[Chart]:
    """Yield charts of the metric against sparsity and costs."""
    metric = compared.metric
    if metric is None or len(compared.groups) < 2:
        return
    style, dense = look(compared), compared.dense

    def measured(group: Group) -> Summary | None:
        return group.summary(lambda run: run.metrics.get(metric))

    for (name, label), (read, least) in AXES.items():
        series: dict[str, list[Any]] = {}
        for group in compared.groups:
            x, y = group.summary(partial(read, group)), measured(group)
            if x is not None and y is not None:
                points = series.setdefault(group.series, [])
                points.append((style[group.name], x, y))
        if sum(map(len, series.values())) > 1:
            yield cost_chart(
                f'{metric} against {name}',
                (label, compared.unit),
                series,
                measured(dense[0]) if dense else None,
                least,
                legend,
            )


def spectral_charts(
    compared: Comparison, layers: Mapping[str, Layers]
) -> Iterator[Chart]:
    """Yield charts of the spectral quantities' means along checkpoints."""
    style = look(compared)
    for key, label in SPECTRAL.items():
        curves = [
            (style[name], [means])
            for name, found in layers.items()
            if (means := found.means(key))
        ]
        if curves:
            labels = 'optimizer step', 'mean of the layers'
            yield curve_chart(label[0].upper() + label[1:], labels, curves)


def layer_charts(layers: Layers) -> list[Chart]:
    """Return heat maps of a run's layers: logged, or from checkpoints."""
    shown: History = {**layers.saved, **layers.logged}
    charts = []
    order = {
        row['name']: place
        for _, table in layers.tables
        for place, row in enumerate(table['layers'])
    }
    for quantity, (label, low, high) in QUANTITIES.items():
        if quantity not in shown:
            continue
        rows = shown[quantity]
        # A layer may lack a quantity at first.
        names = sorted(rows, key=lambda name: order.get(name, 0))
        short = short_names(names)
        unit = 'iteration' if quantity in layers.logged else 'optimizer step'
        title = label[0].upper() + label[1:]
        curves = {short[name]: rows[name] for name in names}
        log = quantity == 'gradient_norm'
        charts.append(heat_map(title, unit, curves, (low, high), log))
    return charts


def render(
    compared: Comparison,
    layers: Mapping[str, Layers],
    samples: Samples,
    title: str,
    missing_runs: Sequence[str] = (),
) -> str:
    """Return the page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, rows = look(compared), network_rows(compared)
    shown = {
        name: {
            'charts': layer_charts(found),
            'table': layer_table(found),
            'pictures': found.pictures,
            'first': found.tables[0][0] if found.tables else '',
            'last': found.tables[-1][0] if found.tables else '',
        }
        for name, found in layers.items()
        if found.logged or found.tables
    }
    charts = {
        'learning': learning_charts(compared),
        'comparison': comparison_charts(compared),
        'masks': scalar_charts(compared, 'masks', MASKS),
        'spectral': spectral_charts(compared, layers),
    }
    return environment.get_template('page.html').render(
        title=title,
        now=strftime('%Y-%m-%d %H:%M'),
        headline=headline(compared, rows),
        legend=[
            (group.name, swatch(style[group.name]))
            for group in compared.groups
        ],
        facts=cells(rows, FACTS),
        flops=flops_notes(compared),
        machines=machine_rows(compared),
        comparison=comparison(rows, compared.digits),
        dense=compared.dense[0].name if compared.dense else None,
        unit=compared.unit,
        charts={key: [*found] for key, found in charts.items()},
        layers=shown,
        samples=samples,
        missing=[*missing_runs, *missing(compared, layers, samples)],
    )
