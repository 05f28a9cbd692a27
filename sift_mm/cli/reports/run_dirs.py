"""Work dirs of runs: configs, logged scalars, records and checkpoints.

Any run of MMEngine has its config and scalars in ``*/vis_data``. Runs of
sift_mm also have ``*/run.json``, those of a sweep ``result.json``.
"""

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from time import localtime, strftime
from typing import Any

from mmengine.config import Config

from sift_mm.checkpoint.reading import read
from sift_mm.checkpoint.state import mask_training
from sift_mm.config.nodes import hook_place
from sift_mm.engine.run_record import read_last
from sift_mm.errors import UserError

Records = dict[int, dict[str, Any]]

#: Values of a validation record that are no metrics.
NO_METRICS = ('step', 'iter', 'epoch', 'time', 'data_time', 'memory')
#: Costs in result.json of a sweep, which are no metrics.
COSTS = (
    *('flops', 'flops_of_dense', 'parameters', 'active_parameters'),
    *('density', 'seconds_per_image'),
)


def is_dump(path: Path) -> bool:
    """Return whether a file assigns values alone, as a dumped config does.

    Any other script in a folder would be run by reading it.
    """
    try:
        found = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    return all(isinstance(node, ast.Assign) for node in found.body)


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a file; {} if it is missing or incomplete."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _config(paths: Iterable[Path]) -> dict[str, Any]:
    """Return the first config that can be read, {} without one."""
    for path in filter(is_dump, paths):
        with suppress(Exception):  # A config may raise errors of any type.
            loaded = Config.fromfile(path, import_custom_modules=False)
            return loaded.to_dict()
    return {}


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the scalars of a session; a line may still be incomplete."""
    text = path.read_text(errors='replace') if path.is_file() else ''
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get('step'), int):
            # MMEngine's log_with_hierarchy puts the loop before a name.
            yield {
                re.sub('^(train|val)/', '', k): v for k, v in record.items()
            }


def _is_train(record: Mapping[str, Any]) -> bool:
    return 'iter' in record or 'loss' in record


@dataclass
class Scalars:
    """Logged scalars of a training, by step.

    Attributes:
        train (Records): Loss, learning rate and time, by iteration.
        valid (Records): Metrics, by epoch or iteration, as they were logged.
        masks (Records): Scalars ``sparse/*``, by iteration.
    """

    train: Records = field(default_factory=dict)
    valid: Records = field(default_factory=dict)
    masks: Records = field(default_factory=dict)

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Add a session; it replaces the steps that it trains again."""
        first = next(filter(_is_train, records), None)
        if first is None and self.train:
            return  # A test or a validation alone.
        if first is not None:
            start = first['step']
            # Metrics are logged by epoch, or by iteration.
            epoch = first.get('epoch', start)
            for found, end in (
                (self.train, start),
                (self.masks, start),
                (self.valid, epoch),
            ):
                for step in [step for step in found if step >= end]:
                    del found[step]
            if not self.train:  # Trained again from the start.
                self.valid.clear()
                self.masks.clear()
        for record in records:
            is_mask = any(key.startswith('sparse/') for key in record)
            kind = self.masks if is_mask else self.valid
            kind = self.train if _is_train(record) else kind
            kind.setdefault(record['step'], {}).update(record)


@dataclass(frozen=True)
class Run:
    """Work dir of a run; what it lacks is empty.

    Args:
        path (Path): The work dir.
    """

    path: Path

    @cached_property
    def sessions(self) -> list[Path]:
        """Folders of the run's starts, in order; tests only without any."""
        for name in ('vis_data/scalars.json', 'run.json', 'vis_data'):
            if found := sorted(self.path.glob(f'*/{name}')):
                return [
                    self.path / p.relative_to(self.path).parts[0]
                    for p in found
                ]
        return []

    @cached_property
    def record(self) -> dict[str, Any]:
        """Content of the last ``run.json``."""
        return read_last(self.path)

    @cached_property
    def result(self) -> dict[str, float]:
        """Metrics and costs of the test in a sweep."""
        return _json(self.path / 'result.json')

    @cached_property
    def scalars(self) -> Scalars:
        """Logged scalars of all sessions."""
        found = Scalars()
        for session in self.sessions:
            records = [*_records(session / 'vis_data' / 'scalars.json')]
            found.add(records)
        return found

    @cached_property
    def config(self) -> dict[str, Any]:
        """Config of the last session; of a resumed run with its first start.

        A resumed run's own ``load_from`` is a checkpoint of itself.
        """
        paths = [s / 'vis_data' / 'config.py' for s in self.sessions]
        found = _config([*reversed(paths), *sorted(self.path.glob('*.py'))])
        if found.get('resume'):
            found['load_from'] = _config(paths).get('load_from')
        return found

    @cached_property
    def checkpoints(self) -> list[Path]:
        """Checkpoints of epochs or iterations, in order; else all others."""
        found = {
            int(match[1]): path
            for path in self.path.glob('*.pth')
            if (match := re.fullmatch(r'(?:epoch|iter)_(\d+)', path.stem))
        }
        ordered = [found[number] for number in sorted(found)]
        return ordered or sorted(self.path.glob('*.pth'))

    @cached_property
    def state(self) -> dict[str, Any]:
        """Mask training of the last checkpoint; {} without one."""
        for path in reversed(self.checkpoints):
            try:
                return mask_training(read(path)) or {}
            except UserError:  # Being written, or damaged.
                continue
        return {}

    @property
    def seed(self) -> int | None:
        """Seed of the run."""
        found = self.record.get('seed')
        if found is None:
            found = (self.config.get('randomness') or {}).get('seed')
        # A sweep's run may be known by its result alone.
        if found is None and (
            match := re.search(r'seed(\d+)$', str(self.path))
        ):
            found = int(match[1])
        return found

    @property
    def versions(self) -> dict[str, str]:
        """Versions of Python and the libraries."""
        return self.record.get('versions') or {}

    @property
    def hook(self) -> dict[str, Any]:
        """Config of the run's SparseTrainingHook; {} without one."""
        place = hook_place(self.config)
        return {} if place is None else self.config['custom_hooks'][place]

    @cached_property
    def member(self) -> dict[str, Any]:
        """Member of the family: family, sparsity and options."""
        backbone = (self.config.get('model') or {}).get('backbone') or {}
        written = {
            key: backbone[key]
            for key in ('family', 'sparsity', 'inner', 'sparse_factors')
            if backbone.get(key) is not None
        }
        if 'member' in self.record:
            return self.record['member']
        return self.state.get('member') or (
            written if 'family' in written else {}
        )

    @cached_property
    def masks(self) -> dict[str, Any]:
        """Algorithm, nominal and solved sparsity, active weights and size."""
        if 'masks' in self.record:
            return self.record['masks']
        if not self.state:
            return {}
        budget, masks = self.state.get('budget', {}), self.state['masks']
        return {
            'algorithm': self.state.get('algorithm'),
            'nominal': budget.get('nominal'),
            'solved': budget.get('sparsity'),
            'active': sum(int(m.count_nonzero()) for m in masks.values()),
            'size': sum(m.numel() for m in masks.values()),
        }

    @cached_property
    def costs(self) -> dict[str, float]:
        """Costs that are known: FLOPs of an image, ratios, weights, time.

        Keys are flops, flops_ratio, training_ratio, parameters, active and
        seconds.
        """
        counted = self.record.get('flops') or {}
        known = self.result | self.record
        ratio, dense = counted.get('ratio'), self.result.get('flops_of_dense')
        if dense:
            ratio = self.result['flops'] / dense
        elif not counted:
            budget = self.state.get('budget', {})
            ratio = budget.get('model_flops_ratio', budget.get('flops_ratio'))
        found = {
            'flops': counted.get('inference', self.result.get('flops')),
            'flops_ratio': ratio,
            'training_ratio': counted.get('training_ratio'),
            'parameters': known.get('parameters'),
            'active': known.get('active_parameters'),
            'seconds': self.seconds,
        }
        return {k: v for k, v in found.items() if v is not None}

    @cached_property
    def seconds(self) -> float | None:
        """Seconds of training, without steps that were lost."""
        known = self.record.get('seconds')
        if known is not None and self.status == 'finished':
            return known
        times = [
            (step, record['time'])
            for step, record in sorted(self.scalars.train.items())
            if 'time' in record
        ]
        steps = pairwise([(0, 0.0), *times])
        total = sum(time * (step - last) for (last, _), (step, time) in steps)
        # An unfinished run has written its record at its last validation.
        return max(total, known or 0) if times else known

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Metrics of the test, else of the last validation."""
        found: dict[str, float] = {}
        for _, record in sorted(self.scalars.valid.items()):
            found |= record
        found |= self.record.get('metrics') or {}
        found |= self.result
        return {
            key: value
            for key, value in found.items()
            if key not in (*NO_METRICS, *COSTS)
            and isinstance(value, (int, float))
        }

    @property
    def by_epoch(self) -> bool:
        """Truth of "metrics are logged by epoch"."""
        loop = self.config.get('train_cfg') or {}
        hooks = self.config.get('default_hooks') or {}
        logger = hooks.get('logger') or {}
        return bool(
            (loop.get('max_epochs') or loop.get('by_epoch'))
            and logger.get('log_metric_by_epoch', True)
        )

    @property
    def status(self) -> str:
        """'finished', or how far the run came and when it wrote last."""
        if self.result or self.record.get('status') == 'finished':
            return 'finished'
        loop = self.config.get('train_cfg') or {}
        train = self.scalars.train
        last = train[max(train)] if train else {}
        done = ''
        for name, key in (('epoch', 'max_epochs'), ('iter', 'max_iters')):
            if not loop.get(key):
                continue
            if (self.path / f'{name}_{loop[key]}.pth').exists():
                return 'finished'
            unit = 'epoch' if name == 'epoch' else 'iteration'
            done = f', {unit} {last.get(name, 0)} of {loop[key]}'
            if last and name not in last:  # As log_processor says.
                done = f', iteration {max(train)}'
        written = []
        for session in self.sessions:
            for path in session.rglob('*'):
                with suppress(OSError):  # A file that the run replaces.
                    written.append(path.stat().st_mtime)
        when = strftime('%Y-%m-%d %H:%M', localtime(max(written, default=0)))
        return f'not finished{done}' + f', last written {when}' * bool(written)

    def curve(self, kind: str, key: str) -> list[tuple[int, float]]:
        """Return steps and values of a scalar.

        Args:
            kind (str): 'train', 'valid' or 'masks'.
            key (str): Name of the scalar.
        """
        records: Records = getattr(self.scalars, kind)
        return [
            (step, float(records[step][key]))
            for step in sorted(records)
            if isinstance(records[step].get(key), (int, float))
        ]
