"""What the reports of experiments are written with."""

import statistics
from collections.abc import Sequence


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Mean and, of several, the standard deviation of one (of the sample)."""
    mean = f'{statistics.mean(values):.{digits}f}'
    if len(values) == 1:
        return mean
    return f'{mean} ± {statistics.stdev(values):.{digits}f}'


def markdown_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    """A table for Markdown, aligned for those who read it as it is.

    Args:
        columns (Sequence[str]): Names of the columns.
        rows (Sequence[Sequence[str]]): Cells, as many a row as columns.
    """
    lines = [columns, ['---'] * len(columns), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        f'| {" | ".join(map(str.ljust, line, widths))} |' for line in lines
    )
