"""Report of a sweep: a table and a figure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from sift_mm.cli.experiments import Experiment
from sift_mm.cli.sweep_networks import Network
from sift_mm.errors import UserError

# Costs in the result of tools/test.py.
COSTS = ('flops', 'parameters', 'active_parameters')
# Marks around the table of a sweep.
BEGIN, END = '<!-- sweep {}: begin -->', '<!-- sweep {}: end -->'


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation of the sample; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Return the mean and, for several values, the :func:`spread`."""
    mean = f'{statistics.mean(values):.{digits}f}'
    if len(values) == 1:
        return mean
    return f'{mean} ± {spread(values):.{digits}f}'


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return an aligned Markdown table of rows with the same columns."""
    cells = [[*row.values()] for row in rows]
    lines = [[*rows[0]], ['---'] * len(rows[0]), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        f'| {" | ".join(map(str.ljust, line, widths))} |' for line in lines
    )


@dataclass(frozen=True)
class Cell:
    """Runs of one network with different seeds.

    Attributes:
        network (Network): The network.
        values (Sequence[float]): Metric of each run.
        costs (Mapping[str, float]): Costs of one run.
    """

    network: Network
    values: Sequence[float]
    costs: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Mean of the metric."""
        return statistics.mean(self.values)


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
    return None if costs is None else Cell(network, values, costs)


def dense_of(cell: Cell, cells: Sequence[Cell]) -> Cell:
    """Return the dense network of the same settings, else the first cell."""
    own = set(cell.network.cfg_options)
    dense = (c for c in cells if c.network.family is None)
    like = (c for c in dense if own.issuperset(c.network.cfg_options))
    return next(like, cells[0])


def to_markdown(cells: Sequence[Cell], metric: str) -> str:
    """Return the table; its first rows are the dense networks."""
    digits = 2 if cells[0].mean > 1 else 4  # Percent, else a share.
    rows = []
    for cell in cells:
        network, costs = cell.network, cell.costs
        dense = dense_of(cell, cells)
        sparsity, gain = '-', '-'
        if network.family:
            sparsity = f'{network.sparsity:.2f}'
            gain = f'{cell.mean - dense.mean:+.{digits}f}'
        row = {
            'network': network.family or 'dense',
            'sparsity': sparsity,
            'masks': network.algorithm or '-',
            'variant': network.variant or '-',
            'FLOPs, of dense': f'{costs["flops"] / dense.costs["flops"]:.4f}',
            'parameters': f'{costs["parameters"] / 1e3:.1f} k',
            'active': f'{costs["active_parameters"] / 1e3:.1f} k',
            metric: mean_and_spread(cell.values, digits),
            'minus dense': gain,
            'runs': str(len(cell.values)),
        }
        if not any(c.network.variant for c in cells):
            del row['variant']
        rows.append(row)
    return markdown_table(rows)


def plot(cells: Sequence[Cell], metric: str, path: Path) -> None:
    """Plot the metric against the sparsity, one panel for each algorithm."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    dense = [cell for cell in cells if cell.network.family is None]
    others = [cell for cell in cells if cell.network.family]
    named = dict.fromkeys(c.network.algorithm for c in others)
    algorithms = [name for name in named if name] or ['no masks']
    figure, axes = plt.subplots(
        1,
        len(algorithms),
        figsize=(5 * len(algorithms), 4),
        sharey=True,
        squeeze=False,
    )
    for axis, algorithm in zip(axes[0], algorithms, strict=True):
        for cell, style in zip(dense, cycle(('-', '--', ':', '-.'))):
            middle, half = cell.mean, spread(cell.values)
            label = f'dense {cell.network.variant}'
            axis.axhline(middle, color='black', label=label, linestyle=style)
            axis.axhspan(middle - half, middle + half, color='k', alpha=0.12)
        lines: dict[str, list[Cell]] = {}
        for cell in others:
            # A network without masks is drawn in every panel.
            if cell.network.algorithm in (algorithm, None):
                label = f'{cell.network.family} {cell.network.variant}'
                lines.setdefault(label, []).append(cell)
        for i, (label, shown) in enumerate(lines.items()):
            axis.errorbar(
                [(c.network.sparsity or 0) + 0.006 * i for c in shown],
                [c.mean for c in shown],
                [spread(c.values) for c in shown],
                marker='o',
                capsize=3,
                label=label,
            )
        axis.set(title=algorithm, xlabel='sparsity')
    axes[0][0].set(ylabel=metric)
    axes[0][-1].legend(fontsize='small')
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


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
    begin, end = BEGIN.format(name), END.format(name)
    text = path.read_text() if path.exists() else f'{begin}\n{end}\n'
    head, opened, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (opened and closed):
        raise UserError(
            f'{path} lacks the lines "{begin}" and "{end}", which the table '
            'goes between: add them.'
        )
    figure = path.with_name(f'{path.stem}-{name}.png')
    plot(cells, metric, figure)
    table = to_markdown(cells, metric)
    picture = f'![{metric} against the sparsity]({figure.name})'
    path.write_text(f'{head}{begin}\n{table}\n\n{picture}\n{end}{tail}')
