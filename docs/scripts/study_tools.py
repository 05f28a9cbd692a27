"""Rank correlation and figure of the study."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from math import atanh, nan, sqrt, tanh
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy import stats

from sift_mm.cli.reports.charts import COLOURS, DASHES, MARKERS, draw_dense
from sift_mm.cli.reports.statistics import CONFIDENCE, Estimate, Summary

#: Sparsities and summaries of a metric, by name of the line.
Lines = Mapping[str, Sequence[tuple[float, Summary]]]


def rank_correlation(
    x: Sequence[float], y: Sequence[float], confidence: float = CONFIDENCE
) -> Estimate:
    """Return Spearman's rank correlation with its interval.

    The interval is Fisher's, with the standard error of Bonett and Wright
    (2000). The value is NaN if a sequence is constant.

    Args:
        x (Sequence[float]): One value a run.
        y (Sequence[float]): Another value of the same runs.
        confidence (float): Probability that the interval covers the value.
    """
    n = len(x)
    if len(set(x)) < 2 or len(set(y)) < 2:
        return Estimate(nan, -1.0, 1.0, n)
    rho = float(stats.spearmanr(x, y).statistic)
    if n <= 3 or abs(rho) > 1 - 1e-12:  # Fisher's transform has no value.
        return Estimate(rho, -1.0, 1.0, n)
    error = sqrt((1 + rho**2 / 2) / (n - 3))
    half = float(stats.norm.ppf((1 + confidence) / 2)) * error
    return Estimate(rho, tanh(atanh(rho) - half), tanh(atanh(rho) + half), n)


def plot_panels(
    path: Path, label: str, dense: Mapping[str, Summary], panels: Sequence
) -> None:
    """Plot a metric against the sparsity, and dense networks as bands.

    Args:
        path (Path): File of the figure.
        label (str): Metric with its unit.
        dense (Mapping[str, Summary]): Metric of dense networks.
        panels (Sequence[tuple[str, Lines]]): Title and lines of each panel.
    """
    figure = Figure((4.5 * len(panels), 3.8), layout='constrained')
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, lines) in zip(axes, panels, strict=True):
        for (name, y), dash in zip(dense.items(), cycle(DASHES)):
            draw_dense(axis, y, linestyle=dash, label=name)
        for i, (name, points) in enumerate(lines.items()):
            axis.errorbar(
                [x + 0.007 * i for x, _ in points],  # Side by side.
                [y.mean for _, y in points],
                [y.deviation for _, y in points],
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                capsize=3,
                label=name,
            )
        axis.set(title=title, xlabel='sparsity')
        if axis.get_legend_handles_labels()[0]:
            axis.legend(
                loc='upper center',
                bbox_to_anchor=(0.5, -0.2),
                ncols=3,
                fontsize='small',
                frameon=False,
            )
    axes[0].set_ylabel(label)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({'svg.hashsalt': 'sift_mm'}):  # The same file each time.
        figure.savefig(path, dpi=110, metadata={'Date': None})
