"""Report of a sweep: a table and a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sift_mm.cli.experiments import Experiment
from sift_mm.cli.reports.markdown import Marks, markdown_table, plot_panels
from sift_mm.cli.reports.statistics import Summary, summarize
from sift_mm.cli.sweep_networks import Network
from sift_mm.errors import UserError

# Costs in the result of tools/test.py.
COSTS = ('flops', 'parameters', 'active_parameters')


@dataclass(frozen=True)
class Cell:
    """Runs of one network with different seeds.

    Attributes:
        network (Network): The network.
        metric (Summary): Metric over the runs.
        costs (Mapping[str, float]): Costs of one run.
    """

    network: Network
    metric: Summary
    costs: Mapping[str, float]


def read_cell(
    network: Network, runs: Sequence[Experiment], metric: str
) -> Cell | None:
    """Return metric and costs of the finished runs, None if there are none.

    Raises:
        UserError: If a result lacks the metric, or a cost.
    """
    values, costs = [], None
    for run in (run for run in runs if run.is_done()):
        costs = run.metrics()
        for key in (metric, *COSTS):
            if key not in costs:
                raise UserError(
                    f'{run.result} has no {key}; there are {", ".join(costs)}.'
                )
        values.append(costs[metric])
    if costs is None:
        return None
    return Cell(network, summarize(values), costs)


def dense_of(cell: Cell, cells: Sequence[Cell]) -> Cell:
    """Return the dense network of the same settings, else the first cell."""
    own = set(cell.network.cfg_options)
    dense = (c for c in cells if c.network.family is None)
    like = (c for c in dense if own.issuperset(c.network.cfg_options))
    return next(like, cells[0])


def to_markdown(cells: Sequence[Cell], metric: str) -> str:
    """Return the table; its first rows are the dense networks."""
    digits = 2 if cells[0].metric.mean > 1 else 4  # Percent, else a share.
    rows = []
    for cell in cells:
        network, costs = cell.network, cell.costs
        dense = dense_of(cell, cells)
        sparsity, gain = '-', '-'
        if network.family:
            sparsity = f'{network.sparsity:.2f}'
            gain = f'{cell.metric.mean - dense.metric.mean:+.{digits}f}'
        row = {
            'network': network.family or 'dense',
            'sparsity': sparsity,
            'masks': network.algorithm or '-',
            'variant': network.variant or '-',
            'FLOPs, of dense': f'{costs["flops"] / dense.costs["flops"]:.4f}',
            'parameters': f'{costs["parameters"] / 1e3:.1f} k',
            'active': f'{costs["active_parameters"] / 1e3:.1f} k',
            metric: cell.metric.to_text(digits),
            'minus dense': gain,
            'runs': str(cell.metric.n),
        }
        if not any(c.network.variant for c in cells):
            del row['variant']
        rows.append(row)
    return markdown_table(rows)


def plot(cells: Sequence[Cell], metric: str, path: Path) -> None:
    """Plot the metric against the sparsity, one panel for each algorithm."""
    others = [cell for cell in cells if cell.network.family]
    named = dict.fromkeys(c.network.algorithm for c in others)
    panels = []
    for algorithm in [name for name in named if name] or ['no masks']:
        lines: dict[str, list[tuple[float, Summary]]] = {}
        for cell in others:
            network = cell.network
            # A network without masks is drawn in every panel.
            if network.algorithm in (algorithm, None):
                label = f'{network.family} {network.variant}'
                point = network.sparsity or 0, cell.metric
                lines.setdefault(label, []).append(point)
        panels.append((algorithm, lines))
    dense = {
        f'dense {cell.network.variant}': cell.metric
        for cell in cells
        if cell.network.family is None
    }
    plot_panels(path, metric, dense, panels)


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
        runs (Mapping): Runs of each network, the dense one first.
        metric (str): Key of the results.

    Raises:
        UserError: If no run of the dense network is done, a result lacks the
            metric, or the file lacks the marks.
    """
    read = (read_cell(n, found, metric) for n, found in runs.items())
    cells = [cell for cell in read if cell is not None]
    if not cells or cells[0].network.family is not None:
        raise UserError(
            'No run of the dense network is done: without one there is '
            'nothing to compare with.'
        )
    marks = Marks(path, f'sweep {name}', create=True)
    figure = path.with_name(f'{path.stem}-{name}.png')
    plot(cells, metric, figure)
    table = to_markdown(cells, metric)
    marks.fill(f'{table}\n\n![{metric} against the sparsity]({figure.name})')
