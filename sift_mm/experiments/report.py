"""What the reports of experiments are written with."""

import statistics
from collections.abc import Mapping, Sequence


def spread(values: Sequence[float]) -> float:
    """Standard deviation of one value (of the sample); 0 for a single one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Mean and, where there are several, :func:`spread`."""
    mean = f'{statistics.mean(values):.{digits}f}'
    if len(values) == 1:
        return mean
    return f'{mean} ± {spread(values):.{digits}f}'


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """A table of rows, which have the same columns, aligned for Markdown."""
    cells = [[*row.values()] for row in rows]
    lines = [[*rows[0]], ['---'] * len(rows[0]), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        f'| {" | ".join(map(str.ljust, line, widths))} |' for line in lines
    )
