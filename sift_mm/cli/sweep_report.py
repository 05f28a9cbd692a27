"""Report of a sweep: a table and a figure."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from sift_mm.cli.experiments import Experiment
from sift_mm.cli.reports.markdown import Marks, markdown_table
from sift_mm.cli.reports.page import comparison_charts
from sift_mm.cli.reports.page_tables import comparison
from sift_mm.cli.reports.run_dirs import Run
from sift_mm.cli.reports.run_groups import (
    Comparison,
    Group,
    find_metric,
    network_rows,
)
from sift_mm.cli.sweep_networks import Network
from sift_mm.errors import UserError


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
    path.parent.mkdir(parents=True, exist_ok=True)
    marks = Marks(path, f'sweep {name}', create=True)
    text = markdown_table(comparison(network_rows(compared), compared.digits))
    for chart in islice(comparison_charts(compared, legend=True), 1):
        figure = path.with_name(f'{path.stem}-{name}.svg')
        figure.write_text(chart.svg)
        text += f'\n\n![{chart.title}]({figure.name})'
    missing = [
        run.name
        for found in runs.values()
        for run in found
        if not run.is_done()
    ]
    if missing:
        text += f'\n\nNot finished, and not in it: {", ".join(missing)}.'
    marks.fill(text)
    number = sum(map(len, done.values()))
    print(
        f'The table of {number} runs is in {path}; '
        f'{len(missing)} runs are not finished, and not in it.'
    )
