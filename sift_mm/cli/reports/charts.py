"""Charts of runs by matplotlib, drawn in a page's light or dark colours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sift_mm.cli.reports.layer_history import spread_out
from sift_mm.cli.reports.statistics import Summary, summarize

# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
MARKERS = 'os^Dv<>PX'
DASHES: tuple[Any, ...] = ('-', (0, (4, 1.5)), (0, (1.5, 1.2)), (0, (6, 1, 1)))
GREY, GRID = '#4c4c4c', '#d8d8d8'
#: Colours of a picture, and those of a page that take their place.
THEME = {
    '#ffffff': 'none',
    '#000000': 'currentColor',
    GREY: 'currentColor',
    GRID: 'var(--grid)',
    **{c.lower(): f'var(--s{i})' for i, c in enumerate(COLOURS, 1)},
}
WIDTH, HEIGHT = 4.4, 2.9  # Inches.
#: Largest number of points of a curve.
POINTS = 400
#: Largest number of networks whose curves have bands.
BANDS = 8
#: Largest number of columns of a heat map.
COLUMNS = 80

SETTINGS: Any = {
    'font.size': 8.5,
    'axes.titlesize': 9.5,
    'axes.formatter.useoffset': False,
    'axes.grid': True,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'grid.color': GRID,
    'grid.linewidth': 0.6,
    'lines.markersize': 4,
    'lines.linewidth': 1.4,
    'text.parse_math': False,
    'svg.fonttype': 'none',
}

Curve = Sequence[tuple[float, float]]
#: Colour, marker and dashes of a network, as arguments of matplotlib.
Style = dict[str, Any]


def styles_of(
    series: Mapping[str, str], dense: str | None
) -> dict[str, Style]:
    """Return the style of each network; the dense one is grey.

    Args:
        series (Mapping[str, str]): Series of each network, by name. Of more
            networks than colours, a series has one colour and marker, and its
            networks differ in dashes.
        dense (str, optional): Name of the dense network.
    """
    others = {name: s for name, s in series.items() if name != dense}
    if len(others) <= len(COLOURS):
        others = {name: name for name in others}
    kinds = [*others.values()]
    order = [*dict.fromkeys(kinds)]
    found = {str(dense): Style(color=GREY, marker='o', linestyle='-')}
    for i, (name, kind) in enumerate(others.items()):
        place, turn = order.index(kind), kinds[:i].count(kind)
        found[name] = Style(
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[place % len(MARKERS)],
            linestyle=DASHES[turn % len(DASHES)],
        )
    return found


def _figure(width: float = WIDTH, height: float = HEIGHT) -> tuple[Any, Any]:
    """Return a figure without a window, and its axes."""
    figure = Figure((width, height), layout='constrained')
    return figure, figure.add_subplot()


@dataclass(frozen=True)
class Chart:
    """Chart as SVG, a picture of its own or a part of a page.

    Args:
        title (str): Title.
        svg (str): The picture.
    """

    title: str
    svg: str

    def __html__(self) -> str:
        text = self.svg[self.svg.index('<svg') :]
        for color, in_page in THEME.items():
            text = text.replace(color, in_page)
        label = f'<svg role="img" aria-label="{escape(self.title)}"'
        return text.replace('<svg', label, 1)


def _chart(figure: Any, title: str) -> Chart:
    out = StringIO()
    # The salt gives the same file each time, and charts their own names.
    with rc_context({'svg.hashsalt': title}):
        figure.savefig(out, format='svg', metadata={'Date': None})
    return Chart(title, out.getvalue())


@rc_context(SETTINGS)
def swatch(style: Style) -> Chart:
    """Return a piece of a network's line with its marker, for a legend."""
    figure, axis = _figure(0.42, 0.16)
    figure.set_layout_engine('none')
    axis.set_position((0, 0, 1, 1))
    axis.set_axis_off()
    axis.plot([0, 1, 2], [0, 0, 0], **style, markevery=[1])
    return _chart(figure, '')


@rc_context(SETTINGS)
def curve_chart(
    title: str,
    labels: tuple[str, str],
    curves: Sequence[tuple[Style, Sequence[Curve]]],
) -> Chart:
    """Draw the mean of each network's curves, and a band of their spread.

    Args:
        title (str): Title.
        labels (tuple[str, str]): Labels of x and y, with units.
        curves (Sequence): Style of each network, and a curve of each run.
    """
    figure, axis = _figure()
    for style, runs in curves:
        values: dict[float, list[float]] = {}
        for x, y in (point for run in runs for point in run):
            values.setdefault(x, []).append(y)
        steps = spread_out(sorted(values), POINTS)
        found = [summarize(values[step]) for step in steps]
        mean = np.array([s.mean for s in found])
        spread = np.array([s.deviation for s in found])
        few = {} if len(steps) < 15 else {'marker': None}
        axis.plot(steps, mean, **style | few, zorder=3)
        if len(runs) > 1 and len(curves) <= BANDS:
            shade = dict(color=style['color'], alpha=0.13, linewidth=0)
            axis.fill_between(steps, mean - spread, mean + spread, **shade)
    axis.set(title=title, xlabel=labels[0], ylabel=labels[1])
    axis.xaxis.get_major_locator().set_params(integer=True)
    return _chart(figure, title)


def draw_dense(axis: Any, dense: Summary, **line: Any) -> None:
    """Draw the dense network as a line with a band of its spread."""
    low, high = dense.mean - dense.deviation, dense.mean + dense.deviation
    axis.axhline(dense.mean, color=GREY, linewidth=0.9, **line)
    axis.axhspan(low, high, color=GREY, alpha=0.13, linewidth=0)


@rc_context(SETTINGS)
def cost_chart(
    title: str,
    labels: tuple[str, str],
    series: Mapping[str, Sequence[tuple[Style, Summary, Summary]]],
    dense: Summary | None,
    least: float = 0,
    legend: bool = False,
) -> Chart:
    """Draw means with standard deviations, and dense as a band.

    Args:
        title (str): Title.
        labels (tuple[str, str]): Labels of x and y, with units.
        series (Mapping): Style, cost and metric of the networks of a series,
            whose points are joined.
        dense (Summary, optional): Metric of the dense network.
        least (float): Smallest range of x, so that costs that are equal but
            for a rounding are drawn as equal.
        legend (bool): Whether a legend of the series is drawn below.
    """
    figure, axis = _figure(height=1.4 * HEIGHT if legend else HEIGHT)
    if dense is not None:
        draw_dense(axis, dense)
    costs = [x.mean for points in series.values() for _, x, _ in points]
    low, high = min(costs), max(costs)
    span, left = max(high - low, least), [*costs]
    for name, points in series.items():
        points = sorted(points, key=lambda point: point[1].mean)
        places = []
        for style, x, y in points:
            # Points of nearly equal x stand side by side.
            near, rest = (
                sum(abs(cost - x.mean) < 0.01 * span for cost in some)
                for some in (costs, left)
            )
            left.remove(x.mean)
            places.append(x.mean + 0.016 * span * (rest - (near + 1) / 2))
            axis.errorbar(
                places[-1],
                y.mean,
                xerr=x.deviation or None,
                yerr=y.deviation or None,
                **style | {'markersize': 5},
                capsize=2.5,
                elinewidth=1,
                zorder=3,
            )
        means = [y.mean for _, _, y in points]
        color = points[0][0]['color']
        axis.plot(places, means, color=color, linewidth=0.7, label=name)
    if legend:
        figure.legend(loc='outside lower center', ncols=2, frameon=False)
    axis.margins(x=0.08)
    if high - low < least:
        middle = (low + high) / 2
        axis.set_xlim(middle - least / 2, middle + least / 2)
    axis.set(title=title, xlabel=labels[0], ylabel=labels[1])
    return _chart(figure, title)


@rc_context(SETTINGS)
def heat_map(
    title: str,
    unit: str,
    rows: Mapping[str, Curve],
    ends: tuple[float | None, float | None] = (None, None),
    log: bool = False,
) -> Chart:
    """Draw one row a layer, one column a step, the value as a colour.

    Args:
        title (str): Title.
        unit (str): Label of x.
        rows (Mapping): Steps and values of each layer.
        ends (tuple): Values of the first and the last colour; None is that of
            the smallest or largest value.
        log (bool): Whether colours are logarithmic.
    """
    steps = sorted({x for curve in rows.values() for x, _ in curve})
    steps = spread_out(steps, COLUMNS)
    known = [dict(curve) for curve in rows.values()]
    values = np.array([[row.get(s, np.nan) for s in steps] for row in known])
    positive = values[values > 0]
    low, high = ends
    if low == 0 and high is None:
        high = float(np.nanmax(values)) or 1.0
    norm = Normalize(low, high)
    if log and positive.size:
        norm = LogNorm(positive.min(), positive.max())
    figure, axis = _figure(height=0.95 + 0.145 * len(rows))
    style: Any = dict(cmap='cividis', interpolation='none', norm=norm)
    image = axis.imshow(values, aspect='auto', **style)
    axis.grid(False)
    shown = range(0, len(rows), -(-len(rows) // 60))
    axis.set_yticks(shown, [[*rows][i] for i in shown], fontsize=7)
    columns = spread_out(range(len(steps)), 5)
    axis.set_xticks(columns, [f'{steps[i]:g}' for i in columns])
    axis.set(title=title, xlabel=unit)
    whole = MaxNLocator(integer=True) if np.nanmax(values % 1) == 0 else None
    bar = figure.colorbar(
        image, ax=axis, fraction=0.08, aspect=30, format='%g', ticks=whole
    )
    bar.outline.set_visible(False)
    return _chart(figure, title)
