"""Parts of Markdown pages: tables, and text between marks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sift_mm.errors import UserError


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
