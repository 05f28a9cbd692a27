"""Report of a sweep: a table and a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sift_mm.cli.experiments import Experiment
from sift_mm.cli.reports.markdown import Marks, markdown_table, plot_panels
from sift_mm.cli.reports.page_tables import comparison
from sift_mm.cli.reports.run_dirs import Run
from sift_mm.cli.reports.run_groups import (
    Comparison,
    Group,
    find_metric,
    network_rows,
)
from sift_mm.cli.reports.statistics import Summary
from sift_mm.cli.sweep_networks import Network
from sift_mm.errors import UserError


def plot(
    groups: Mapping[Network, Group], metric: str, unit: str, path: Path
) -> None:
    """Plot the metric against the sparsity, one panel for each algorithm."""
    values = {
        network: found
        for network, group in groups.items()
        if (found := group.summary(lambda run: run.metrics.get(metric)))
    }
    named = dict.fromkeys(network.algorithm for network in values)
    panels = []
    for algorithm in [name for name in named if name] or ['no masks']:
        lines: dict[str, list[tuple[float, Summary]]] = {}
        for network, value in values.items():
            # A network without masks is drawn in every panel.
            if network.family and network.algorithm in (algorithm, None):
                points = lines.setdefault(groups[network].series, [])
                points.append((network.sparsity or 0, value))
        panels.append((algorithm, lines))
    dense = {n.name: value for n, value in values.items() if not n.family}
    plot_panels(path, unit, dense, panels)


def write_report(
    path: Path,
    name: str,
    runs: Mapping[Network, Sequence[Experiment]],
    metric: str,
) -> None:
    """Write the table into a Markdown file, and the figure beside it.

    Args:
        path (Path): File with the two marks of the sweep, or a new one.
        name (str): Name of the sweep.
        runs (Mapping): Runs of each network.
        metric (str): Key of the results.

    Raises:
        UserError: If no run of the dense network is done, no result has the
            metric, or the file lacks the marks.
    """
    done = {
        network: [Run(run.folder) for run in found if run.is_done()]
        for network, found in runs.items()
    }
    groups = {n: Group(n.name, tuple(r)) for n, r in done.items() if r}
    dense = [group for n, group in groups.items() if not n.family]
    if not dense:
        raise UserError(
            'No run of the dense network is done: without one there is '
            'nothing to compare with.'
        )
    shown = [*groups.values()]
    compared = Comparison(shown, dense, find_metric(shown, metric))
    marks = Marks(path, f'sweep {name}', create=True)
    figure = path.with_name(f'{path.stem}-{name}.png')
    plot(groups, metric, compared.unit, figure)
    rows = comparison(network_rows(compared), compared.digits)
    picture = f'![{metric} against the sparsity]({figure.name})'
    marks.fill(f'{markdown_table(rows)}\n\n{picture}')
