"""What a sweep found, as a table and a figure."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sift_mm.config.reading import member_name

# What tools/test.py says a network costs.
COSTS = ['flops', 'parameters', 'active_parameters']
# The lines which the table of a sweep goes between.
BEGIN, END = '<!-- sweep {}: begin -->', '<!-- sweep {}: end -->'
HEADER = (
    '| network | sparsity | masks | FLOPs, of dense | parameters | active '
    '| {metric} | less dense | runs |\n' + '| --- ' * 9 + '|'
)


@dataclass(frozen=True)
class Network:
    """A config, and the member of the family that is made of it.

    Args:
        config (str): Path of the config.
        family (str, optional): Member; None is the dense network.
        sparsity (float, optional): Nominal.
        algorithm (str, optional): How masks are trained; None without masks.
    """

    config: str
    family: str | None = None
    sparsity: float | None = None
    algorithm: str | None = None

    @property
    def name(self) -> str:
        """'dense', or as 'wide-s75-rigl'."""
        found = member_name(self.family, self.sparsity, self.algorithm)
        return found or 'dense'

    def argv(self) -> list[str]:
        """The same, to be parsed."""
        chosen = {
            '--family': self.family,
            '--sparsity': self.sparsity,
            '--algorithm': self.algorithm,
        }
        return [self.config] + [
            word
            for option, value in chosen.items()
            if value is not None
            for word in (option, str(value))
        ]


@dataclass(frozen=True)
class Cell:
    """The runs of one network, which differ in their seed alone.

    Args:
        network (Network): The network.
        values (tuple[float, ...]): The metric of each run.
        flops (float): Of a forward pass on one image, in 2 x MACs.
        parameters (int): Of the network.
        active (int): Those that no mask holds at zero.
    """

    network: Network
    values: tuple[float, ...]
    flops: float
    parameters: int
    active: int

    @property
    def mean(self) -> float:
        """Of the runs."""
        return statistics.mean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation of a run (of the sample), 0 for one run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


def read_cell(network: Network, folder: Path, metric: str) -> Cell | None:
    """Metric and cost of the runs of a network.

    Args:
        network (Network): The network.
        folder (Path): Where its runs are.
        metric (str): As in the logs, say 'accuracy/top1'.

    Returns:
        Cell, optional: None without runs.

    Raises:
        SystemExit: If a run lacks the metric, or the last one its cost.
    """
    paths = sorted(folder.glob('seed*/result.json'))
    if not paths:
        return None
    results = [json.loads(path.read_text()) for path in paths]
    needed = [[metric] for _ in paths]
    needed[-1] += COSTS
    for path, result, keys in zip(paths, results, needed, strict=True):
        for key in keys:
            if key not in result:
                raise SystemExit(
                    f'{path} has no {key}; there are {", ".join(result)}.'
                )
    values = tuple(result[metric] for result in results)
    return Cell(network, values, *(results[-1][key] for key in COSTS))


def to_markdown(cells: Sequence[Cell], metric: str) -> str:
    """The table, its first row the dense network."""
    dense = cells[0]
    digits = 2 if dense.mean > 1 else 4  # Percent, or a share.
    lines = [HEADER.format(metric=metric)]
    for cell in cells:
        network = cell.network
        gain = cell.mean - dense.mean
        value = f'{cell.mean:.{digits}f}'
        if len(cell.values) > 1:  # One run has no spread.
            value += f' ± {cell.spread:.{digits}f}'
        row = (
            network.family or 'dense',
            '-' if cell is dense else f'{network.sparsity:.2f}',
            network.algorithm or '-',
            f'{cell.flops / dense.flops:.4f}',
            f'{cell.parameters / 1e3:.1f} k',
            f'{cell.active / 1e3:.1f} k',
            value,
            '-' if cell is dense else f'{gain:+.{digits}f}',
            str(len(cell.values)),
        )
        lines.append(f'| {" | ".join(row)} |')
    return '\n'.join(lines)


def draw(cells: Sequence[Cell], metric: str, path: Path) -> None:
    """Draws the metric against the sparsity, one panel an algorithm."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    dense, *others = cells
    algorithms = list(
        dict.fromkeys(
            c.network.algorithm for c in others if c.network.algorithm
        )
    ) or ['no masks']
    figure, axes = plt.subplots(
        1,
        len(algorithms),
        figsize=(5 * len(algorithms), 4),
        sharey=True,
        squeeze=False,
    )
    families = dict.fromkeys(c.network.family for c in others)
    for axis, algorithm in zip(axes[0], algorithms, strict=True):
        axis.axhline(dense.mean, color='black', label='dense')
        axis.axhspan(
            dense.mean - dense.spread,
            dense.mean + dense.spread,
            color='black',
            alpha=0.12,
        )
        for i, family in enumerate(families):
            # What has no masks is drawn in every panel.
            shown = [
                c
                for c in others
                if c.network.family == family
                and c.network.algorithm in (algorithm, None)
            ]
            axis.errorbar(
                [(c.network.sparsity or 0) + 0.006 * i for c in shown],
                [c.mean for c in shown],
                [c.spread for c in shown],
                marker='o',
                capsize=3,
                label=family,
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
    networks: Sequence[Network],
    work_dir: Path,
    metric: str,
) -> None:
    """Puts the table into a Markdown file, and the figure beside it.

    Args:
        path (Path): File with the two marks, or none yet.
        name (str): Of the sweep, in the marks and the name of the figure.
        networks (Sequence[Network]): The dense one first.
        work_dir (Path): Likewise.
        metric (str): Likewise.

    Raises:
        SystemExit: If the dense network has not been trained.
    """
    read = (read_cell(n, work_dir / n.name, metric) for n in networks)
    cells = [cell for cell in read if cell is not None]
    if not cells or cells[0].network.family is not None:
        raise SystemExit(
            f'There are no runs of the dense network in {work_dir}: without '
            'them there is nothing to compare with.'
        )
    begin, end = BEGIN.format(name), END.format(name)
    text = path.read_text() if path.exists() else f'{begin}\n{end}\n'
    head, opened, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (opened and closed):
        raise SystemExit(
            f'{path} lacks the lines "{begin}" and "{end}", which the table '
            'goes between: add them.'
        )
    figure = path.with_name(f'{path.stem}-{name}.png')
    draw(cells, metric, figure)
    table = to_markdown(cells, metric)
    picture = f'![{metric} against the sparsity]({figure.name})'
    path.write_text(f'{head}{begin}\n{table}\n\n{picture}\n{end}{tail}')
