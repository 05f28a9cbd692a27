"""Charts as SVG inside a page: colours follow its light or dark scheme.

Colours are placeholders in matplotlib, and CSS variables in the SVG. Text
stays text, in the page's font, which is narrower than matplotlib's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from itertools import count
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sift_mm.cli.reports.layer_history import spread_out
from sift_mm.cli.reports.statistics import Summary, summarize

#: Placeholders of text and axes, and of grid lines.
TEXT, GRID = '#010101', '#020202'
#: Number of colours --s1, --s2, ... of the page.
COLORS = 6
MARKERS = 'os^Dv<>PX'
DASHES: tuple[Any, ...] = ('-', (0, (4, 1.5)), (0, (1.5, 1.2)), (0, (6, 1, 1)))
WIDTH, HEIGHT = 4.4, 2.9  # Inches; 96 pixels of CSS each.
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
    'svg.hashsalt': 'report',
    **dict.fromkeys(
        (
            *('text.color', 'axes.labelcolor', 'axes.edgecolor'),
            *('xtick.color', 'ytick.color'),
        ),
        TEXT,
    ),
}

Curve = Sequence[tuple[float, float]]
_HIDDEN = 'aria-hidden="true"'
_numbers = count(1)


@dataclass(frozen=True)
class Style:
    """Look of a network in all charts.

    Args:
        color (int): 0 for the colour of text, else 1 to ``COLORS``.
        marker (str): Marker of matplotlib.
        dash (Any): Line style of matplotlib.
    """

    color: int = 0
    marker: str = 'o'
    dash: Any = '-'

    @property
    def placeholder(self) -> str:
        """Colour in matplotlib."""
        return f'#0000{self.color + 16:02x}' if self.color else TEXT


def styles_of(
    series: Mapping[str, str], dense: str | None
) -> dict[str, Style]:
    """Return the style of each network.

    Args:
        series (Mapping[str, str]): Series of each network, by name. Of more
            networks than colours, a series has one colour and marker, and its
            networks differ in dashes.
        dense (str, optional): Network in the colour of text.
    """
    found: dict[str, Style] = {}
    if len(series.keys() - {dense}) <= COLORS:
        series = {name: name for name in series}
    known = dict.fromkeys(s for name, s in series.items() if name != dense)
    for i, one in enumerate(known):
        names = [n for n, s in series.items() if s == one and n != dense]
        for j, name in enumerate(names):
            found[name] = Style(
                i % COLORS + 1,
                MARKERS[i % len(MARKERS)],
                DASHES[j % len(DASHES)],
            )
    if dense is not None:
        found[dense] = Style()
    return found


def _figure(width: float = WIDTH, height: float = HEIGHT) -> tuple[Any, Any]:
    """Return a figure without a window, and its axes."""
    figure = Figure((width, height), layout='constrained')
    return figure, figure.add_subplot()


def _svg(figure: Any, title: str) -> str:
    """Return a figure as an SVG element; without a title, of no meaning."""
    out = StringIO()
    nothing = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
    figure.savefig(out, format='svg', transparent=True, metadata=nothing)
    text = out.getvalue()
    text = text[text.index('<svg') :]
    # The page has the one rule of the style.
    unused = r'<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>'
    text = re.sub(unused, '', text, flags=re.S)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", 'inherit', text)
    text = text.replace(TEXT, 'currentColor').replace(GRID, 'var(--grid)')
    text = re.sub(
        r'#0000(1[1-9a-f])',
        lambda match: f'var(--s{int(match[1], 16) - 16})',
        text,
    )
    # Names are unique in the page; those that nothing refers to go.
    used, prefix = {*re.findall(r'#([\w-]+)', text)}, f'c{next(_numbers)}-'
    text = re.sub(
        r' id="([^"]*)"',
        lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else '',
        text,
    )
    text = re.sub(r'(href="|url\()#', rf'\1#{prefix}', text)
    label = f'role="img" aria-label="{escape(title)}"'
    return text.replace('<svg', f'<svg {label if title else _HIDDEN}', 1)


@rc_context(SETTINGS)
def swatch(style: Style) -> str:
    """Return a piece of a network's line with its marker, for a legend."""
    figure, axis = _figure(0.42, 0.16)
    figure.set_layout_engine('none')
    axis.set_position((0, 0, 1, 1))
    axis.set_axis_off()
    line = dict(color=style.placeholder, linestyle=style.dash)
    axis.plot([0, 1, 2], [0, 0, 0], **line)
    axis.plot([1], [0], style.marker, color=style.placeholder)
    return _svg(figure, '')


@rc_context(SETTINGS)
def curve_chart(
    title: str,
    labels: tuple[str, str],
    curves: Sequence[tuple[Style, Sequence[Curve]]],
) -> str:
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
        steps = sorted(values)
        steps = steps[:: -(-len(steps) // POINTS) or 1]
        found = [summarize(values[step]) for step in steps]
        mean = np.array([s.mean for s in found])
        spread = np.array([s.deviation for s in found])
        axis.plot(
            steps,
            mean,
            color=style.placeholder,
            linestyle=style.dash,
            marker=style.marker if len(steps) < 15 else None,
            zorder=3,
        )
        if len(runs) > 1 and len(curves) <= BANDS:
            low, high = mean - spread, mean + spread
            shade = dict(color=style.placeholder, alpha=0.13, linewidth=0)
            axis.fill_between(steps, low, high, **shade)
    axis.set(title=title, xlabel=labels[0], ylabel=labels[1])
    axis.xaxis.get_major_locator().set_params(integer=True)
    return _svg(figure, title)


@dataclass(frozen=True)
class Point:
    """A network in a chart of metric against cost.

    Args:
        style (Style): Style of the network.
        series (str): Points of one series are joined.
        x (Summary): Cost.
        y (Summary): Metric.
    """

    style: Style
    series: str
    x: Summary
    y: Summary


@rc_context(SETTINGS)
def cost_chart(
    title: str,
    labels: tuple[str, str],
    points: Sequence[Point],
    dense: Summary | None,
    least: float = 0,
) -> str:
    """Draw means with standard deviations, and dense as a band.

    Args:
        title (str): Title.
        labels (tuple[str, str]): Labels of x and y, with units.
        points (Sequence[Point]): Networks.
        dense (Summary, optional): Metric of the dense network.
        least (float): Smallest range of x, so that costs that are equal but
            for a rounding are drawn as equal.
    """
    figure, axis = _figure()
    if dense is not None:
        axis.axhline(dense.mean, color=TEXT, linewidth=0.9, zorder=2)
        low, high = (dense.mean + s * dense.deviation for s in (-1, 1))
        axis.axhspan(low, high, color=TEXT, alpha=0.13, linewidth=0)
    places = _side_by_side(points, least)
    series: dict[str, list[tuple[float, Point]]] = {}
    for x, point in sorted(
        zip(places, points, strict=True), key=itemgetter(0)
    ):
        series.setdefault(point.series, []).append((x, point))
    for members in series.values():
        axis.plot(
            [x for x, _ in members],
            [point.y.mean for _, point in members],
            color=members[0][1].style.placeholder,
            linewidth=0.7,
            alpha=0.6,
        )
    for x, point in zip(places, points, strict=True):
        axis.errorbar(
            x,
            point.y.mean,
            xerr=point.x.deviation or None,
            yerr=point.y.deviation or None,
            color=point.style.placeholder,
            marker=point.style.marker,
            markersize=5,
            capsize=2.5,
            elinewidth=1,
            zorder=3,
        )
    axis.margins(x=0.08)
    low, high = axis.get_xlim()
    if high - low < least:
        middle = (low + high) / 2
        axis.set_xlim(middle - least / 2, middle + least / 2)
    axis.set(title=title, xlabel=labels[0], ylabel=labels[1])
    return _svg(figure, title)


def _side_by_side(points: Sequence[Point], least: float) -> list[float]:
    """Return x of each point, with points of nearly equal x side by side."""
    costs = [point.x.mean for point in points]
    span = max(max(costs) - min(costs), least)
    places = [0.0] * len(points)
    clusters: list[list[int]] = []
    for i in sorted(range(len(points)), key=costs.__getitem__):
        if clusters and costs[i] - costs[clusters[-1][0]] < 0.01 * span:
            clusters[-1].append(i)
        else:
            clusters.append([i])
    for cluster in clusters:
        for j, i in enumerate(sorted(cluster)):
            shift = j - (len(cluster) - 1) / 2
            places[i] = costs[i] + 0.016 * span * shift
    return places


@rc_context(SETTINGS)
def heat_map(
    title: str,
    unit: str,
    rows: Mapping[str, Curve],
    ends: tuple[float | None, float | None] = (None, None),
    log: bool = False,
) -> str:
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
    image = axis.imshow(
        values,
        aspect='auto',
        cmap='cividis',
        interpolation='none',
        norm=norm,
    )
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
    return _svg(figure, title)
