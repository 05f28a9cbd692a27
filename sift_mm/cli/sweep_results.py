"""Finished runs of sweeps in a CSV file, taken as done on any machine."""

import csv
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sift_mm.checkpoint.writing import written_whole
from sift_mm.cli.experiments import Experiment
from sift_mm.errors import UserError

# Columns before the metrics and costs of a run.
KEYS = ('sweep', 'run', 'plan', 'seconds')


def digest(run: Experiment) -> str:
    """Return a short digest of the config, its bases and the options."""
    return hashlib.sha256(run.plan.encode()).hexdigest()[:16]


class Results:
    """Rows of finished runs, by the digest of their plan.

    Args:
        path (Path): CSV file; rows of other sweeps stay.

    Raises:
        UserError: If the file is not such a table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, str]] = {}
        if not path.exists():
            return
        with path.open(newline='') as file:
            table = csv.DictReader(file)
            if missing := set(KEYS) - set(table.fieldnames or ()):
                raise UserError(
                    f'{path} has no column {", ".join(sorted(missing))}: it '
                    'is no table of finished runs; name another file.'
                )
            self.rows = {row['plan']: row for row in table}

    def restore(self, runs: Iterable[Experiment]) -> int:
        """Write the results of runs that are in the table, not in folders.

        Returns:
            int: Number of these runs.

        Raises:
            UserError: If a row holds no numbers.
        """
        number = 0
        for run in runs:
            row = self.rows.get(digest(run))
            if row is None or run.is_done():
                continue
            try:
                found = {
                    name: json.loads(value)
                    for name, value in row.items()
                    if value and name not in KEYS[:3]
                }
            except (ValueError, TypeError) as error:
                raise UserError(
                    f'{self.path}: the row of {row["run"]} has a value that '
                    'is no number; take the row out.'
                ) from error
            if run.folder.exists() and not run.is_current():
                continue  # A run of another plan is set aside when it runs.
            run.folder.mkdir(parents=True, exist_ok=True)
            (run.folder / 'plan.txt').write_text(run.plan)
            run.result.write_text(json.dumps(found))
            number += 1
        return number

    def lacks(self, run: Experiment) -> bool:
        """Return whether a finished run is not in the table."""
        return run.is_done() and digest(run) not in self.rows

    def add(self, *runs: Experiment) -> None:
        """Add finished runs, and write the table whole."""
        for run in runs:
            row: dict[str, Any] = dict(
                sweep=run.root.name,
                run=run.name,
                plan=digest(run),
                seconds=round(run.seconds(), 1),
                **run.metrics(),
            )
            self.rows[row['plan']] = {k: str(v) for k, v in row.items()}
        names = dict.fromkeys(
            [*KEYS, *(k for r in self.rows.values() for k in r)]
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(self.path, 'w') as file:
            table = csv.DictWriter(file, [*names], lineterminator='\n')
            table.writeheader()
            table.writerows(self.rows.values())
