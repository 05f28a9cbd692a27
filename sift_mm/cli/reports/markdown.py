"""Parts of Markdown pages: tables, text between marks, and figures."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from sift_mm.cli.reports.charts import COLOURS, DASHES, MARKERS, draw_dense
from sift_mm.cli.reports.statistics import Summary
from sift_mm.errors import UserError

#: Sparsities and summaries of a metric, by name of the line.
Lines = Mapping[str, Sequence[tuple[float, Summary]]]


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return an aligned Markdown table of rows with the same columns."""
    cells = [[*row.values()] for row in rows]
    lines = [[*rows[0]], ['---'] * len(rows[0]), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        f'| {" | ".join(map(str.ljust, line, widths))} |' for line in lines
    )


class Marks:
    """Place in a Markdown page, between two marks.

    Args:
        path (Path): The page.
        name (str): Name in the marks.
        create (bool): Whether an absent page is created.

    Raises:
        UserError: If the page lacks the marks.
    """

    def __init__(self, path: Path, name: str, create: bool = False) -> None:
        begin, end = f'<!-- {name}: begin -->', f'<!-- {name}: end -->'
        is_new = create and not path.exists()
        text = f'{begin}\n{end}\n' if is_new else path.read_text()
        head, opened, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not (opened and closed):
            raise UserError(
                f'{path} lacks the lines "{begin}" and "{end}", which the '
                'table goes between: add them.'
            )
        self.path = path
        self._before, self._after = head + begin, end + tail

    def fill(self, text: str) -> None:
        """Replace what is between the marks."""
        self.path.write_text(f'{self._before}\n{text}\n{self._after}')


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
