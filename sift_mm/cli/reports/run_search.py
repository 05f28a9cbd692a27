"""Search for the work dirs of runs."""

from collections.abc import Iterator
from pathlib import Path

from sift_mm.errors import UserError

#: Folders below a given one that are searched for runs.
DEPTH = 3


def is_run(folder: Path) -> bool:
    """Return whether a folder is the work dir of a run."""
    return any(
        next(folder.glob(pattern), None)
        for pattern in ('*/vis_data', '*/run.json', '*.pth', 'result.json')
    )


def find_runs(folder: Path) -> list[Path]:
    """Return a work dir, or the work dirs in a folder.

    Runs that a sweep put aside are left out.

    Raises:
        UserError: If the folder does not exist or holds no run.
    """
    if not folder.is_dir():
        raise UserError(f'There is no folder {folder}: give a work dir.')
    if is_run(folder):
        return [folder]
    found: list[Path] = []
    for path in _folders(folder):
        if is_run(path) and not any(above in found for above in path.parents):
            found.append(path)
    if not found:
        raise UserError(
            f'{folder} is no work dir, and has none in it: there are neither '
            'logs (*/vis_data) nor checkpoints (*.pth).'
        )
    return sorted(found)


def _folders(folder: Path) -> Iterator[Path]:
    """Yield folders below one, without those that a sweep put aside."""
    for depth in range(1, DEPTH + 1):
        for path in sorted(folder.glob('/'.join('*' * depth))):
            parts = path.relative_to(folder).parts
            if path.is_dir() and not any(p.startswith('old-') for p in parts):
                yield path


def unstarted(folder: Path) -> list[Path]:
    """Return the folders of a sweep's runs that left nothing to show."""
    return [
        path
        for path in _folders(folder)
        if (path / 'plan.txt').exists() and not is_run(path)
    ]
