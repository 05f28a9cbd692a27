"""Runs of one config with several seeds, and tables that compare them."""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from sift_mm.cli.reports.run_dirs import NO_METRICS, Run
from sift_mm.cli.reports.statistics import (
    Summary,
    paired_difference,
    summarize,
)
from sift_mm.engine.run_record import order_of
from sift_mm.errors import UserError
from sift_mm.names import check_names

#: Keys of a config that differ between runs of one network.
PER_RUN = ('randomness', 'work_dir', 'resume', 'launcher', 'experiment_name')
#: Beginnings of metrics in per cent.
PERCENT = ('accuracy', 'single-label', 'mIoU', 'aAcc', 'mAcc', 'mDice')
#: Metrics to compare, where the config does not name one in save_best.
METRICS = ('accuracy/top1', 'coco/bbox_mAP', 'mIoU')
#: Costs of a run, see :attr:`Run.costs`.
COSTS = (
    *('flops', 'flops_ratio', 'training_ratio'),
    *('parameters', 'active', 'seconds'),
)
# The part of a path that names a seed, with the separator before it.
SEED = re.compile(r'[-_./]?seed[-_=]?\d+')
# The part of a name that gives the sparsity: wide-s75-rigl.
SPARSITY = re.compile(r'[-_]?s\d\d+(?=[-_]|$)')


def _key(run: Run) -> str:
    """Return a text that is the same for all seeds of a config."""
    content = {k: v for k, v in run.config.items() if k not in PER_RUN}
    if not content:
        return SEED.sub('', str(run.path.resolve()))
    # Options may come from a script, and not be in the config.
    content['network'] = run.member, run.masks.get('algorithm')
    # A seed's own pretrained checkpoint, say.
    return SEED.sub('', json.dumps(content, default=repr, sort_keys=True))


@dataclass(frozen=True)
class Group:
    """Runs of one config, which differ in their seeds.

    Args:
        name (str): Name in tables and figures.
        runs (tuple[Run, ...]): At least one run.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """First run, for what is the same in all."""
        return self.runs[0]

    @property
    def shown(self) -> Run:
        """First run with a checkpoint, for masks and pictures."""
        return next((r for r in self.runs if r.checkpoints), self.first)

    @property
    def series(self) -> str:
        """Name without the sparsity, equal for networks of one kind."""
        return SPARSITY.sub('', self.name) or self.name

    @property
    def is_dense(self) -> bool:
        """Truth of "the network has no member and no masks"."""
        run = self.first
        if not (run.config or run.record or run.checkpoints):
            return False  # Nothing is known but results.
        return not (run.member.get('family') or run.masks or run.hook)

    @property
    def sparsity(self) -> float | None:
        """Nominal sparsity; 0 of a dense network."""
        run = self.first
        if self.is_dense:
            return 0.0
        nominal = run.masks.get('nominal', run.member.get('sparsity'))
        return run.hook.get('sparsity') if nominal is None else nominal

    def values(self, read: Callable[[Run], float | None]) -> dict[Any, float]:
        """Return a value of each run that has it, by seed.

        A run whose seed is unknown or repeated is named by its path, so that
        it is paired with no other.
        """
        found: dict[Any, float] = {}
        for run in self.runs:
            value = read(run)
            if value is not None and isfinite(value):
                known = run.seed is not None and run.seed not in found
                found[run.seed if known else str(run.path)] = value
        return found

    def summary(self, read: Callable[[Run], float | None]) -> Summary | None:
        """Return mean and spread over the runs, None without values."""
        found = [*self.values(read).values()]
        return summarize(found) if found else None

    def cost(self, key: str) -> float | None:
        """Return the mean of a cost, None without values."""
        found = self.summary(lambda run: run.costs.get(key))
        return None if found is None else found.mean


def group_runs(paths: Sequence[Path]) -> list[Group]:
    """Group runs that differ in their seed alone."""
    found: dict[str, list[Run]] = {}
    for path in dict.fromkeys(path.resolve() for path in paths):
        run = Run(path)
        found.setdefault(_key(run), []).append(run)
    groups = [*found.values()]
    # Paths below the common folder, without the seed.
    bases = [Path(SEED.sub('', str(runs[0].path))) for runs in groups]
    common = os.path.commonpath([base.parent for base in bases])
    names = [str(base.relative_to(common)) for base in bases]
    named = [
        Group(
            name if names.count(name) == 1 else os.path.relpath(runs[0].path),
            tuple(runs),
        )
        for name, runs in zip(names, groups, strict=True)
    ]
    return sorted(named, key=lambda group: not group.is_dense)


def find_dense(groups: Sequence[Group], name: str | None) -> list[Group]:
    """Return the groups that others are compared with.

    Args:
        groups (Sequence[Group]): All groups.
        name (str, optional): Name of the group; None is all dense ones, the
            one called dense first.

    Raises:
        UserError: If there is no group of this name.
    """
    if name is None:
        dense = [g for g in groups if g.is_dense or g.name == 'dense']
        return sorted(dense, key=lambda group: group.name != 'dense')
    found = {group.name: group for group in groups}
    check_names('No run is called', [name], found)
    return [found[name]]


def find_metric(groups: Sequence[Group], name: str | None) -> str | None:
    """Return the metric to compare, None if no run has one.

    Raises:
        UserError: If no run has the metric of this name.
    """
    runs = [run for group in groups for run in group.runs]
    known = dict.fromkeys(key for run in runs for key in run.metrics)
    if name is not None and name not in known:
        raise UserError(
            f'No run has the metric {name}; '
            + (f'there are {", ".join(known)}.' if known else 'none has any.')
        )
    hooks = [run.config.get('default_hooks') or {} for run in runs]
    best = [(hook.get('checkpoint') or {}).get('save_best') for hook in hooks]
    wanted = [name, *(b for b in best if isinstance(b, str)), *METRICS, *known]
    return next((key for key in wanted if key in known), None)


@dataclass(frozen=True)
class Comparison:
    """Networks to show, and what they are compared by.

    Args:
        groups (Sequence[Group]): Networks.
        dense (Sequence[Group]): Networks that others are compared with.
        metric (str, optional): Metric; None if no run has one.
    """

    groups: Sequence[Group]
    dense: Sequence[Group]
    metric: str | None

    def dense_of(self, group: Group) -> Group | None:
        """Return the dense network of a group's settings, else the first.

        One in the same folder comes first. The settings are parts of the
        name: 'dense-lr=0.1' is compared with 'wide-s75-rigl-lr=0.1'. None for
        a dense network itself.
        """
        if group in self.dense:
            return None
        folder, own = _folder(group), set(group.name.split('-'))
        near = [d for d in self.dense if _folder(d) == folder] or self.dense
        like = [d for d in near if own.issuperset(_settings(d))]
        first = near[0] if near else None
        return max(like, key=lambda d: len(_settings(d)), default=first)

    @property
    def unit(self) -> str:
        """Metric with its unit."""
        name = self.metric or ''
        return f'{name} (%)' if name.startswith(PERCENT) else name

    @property
    def sign(self) -> int:
        """-1 for a metric that should be low, else 1."""
        return order_of(self.metric or '') or 1

    @property
    def digits(self) -> int:
        """Digits behind the point of the metric: 2 of per cents, else 4."""
        found = [v for g in self.groups for v in self.values(g).values()]
        return 2 if any(abs(value) > 1.5 for value in found) else 4

    def values(self, group: Group) -> dict[Any, float]:
        """Return the metric of each run that has it, by seed."""
        return group.values(lambda run: run.metrics.get(self.metric or ''))


def _folder(group: Group) -> Path:
    return Path(group.name).parent


def _settings(dense: Group) -> list[str]:
    return dense.name.split('-')[1:]


def run_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return one row a run, for runs.csv."""
    return [
        {
            'network': group.name,
            'seed': run.seed,
            'work_dir': str(run.path),
            'config': run.record.get('config', ''),
            'status': run.status,
            'family': run.member.get('family', ''),
            'algorithm': run.masks.get('algorithm', ''),
            'nominal_sparsity': group.sparsity,
            'solved_sparsity': run.masks.get('solved', ''),
            **run.costs,
            **run.metrics,
        }
        for group in groups
        for run in group.runs
    ]


def epoch_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return one row an epoch or validation of each run, for summary.csv."""
    return [
        {'network': group.name, 'seed': run.seed, **row}
        for group in groups
        for run in group.runs
        for row in _epochs(run)
    ]


def _epochs(run: Run) -> Iterator[dict[str, Any]]:
    """Yield metrics, and the last training record before each of them."""
    by_epoch, valid = run.by_epoch, run.scalars.valid
    trained = {
        record['epoch'] if by_epoch else step: record
        for step, record in sorted(run.scalars.train.items())
        if 'epoch' in record or not by_epoch  # As log_processor says.
    }
    steps = {*valid, *(trained if by_epoch else [*trained][-1:])}
    for step in sorted(steps):
        last = max((s for s in trained if s <= step), default=None)
        logged = {} if last is None else trained[last]
        yield (
            {'epoch' if by_epoch else 'iter': step}
            | {
                f'train_{key}': logged[key]
                for key in ('loss', 'lr', 'time')
                if key in logged
            }
            | {
                key: value
                for key, value in valid.get(step, {}).items()
                if key not in NO_METRICS
            }
        )


def network_rows(compared: Comparison) -> list[dict[str, Any]]:
    """Return one row a network, with its difference from dense.

    Intervals are of the paired t test over common seeds, at 95 %.
    """
    rows = []
    for group in compared.groups:
        values, less = compared.values(group), None
        found = summarize([*values.values()]) if values else None
        if (dense := compared.dense_of(group)) is not None:
            less = paired_difference(values, compared.values(dense))
        interval = less if less and less.n > 1 else None
        row = _facts(group) | {
            'metric': compared.metric,
            'mean': found and found.mean,
            'sd': found.deviation if found and found.n > 1 else None,
            'runs_with_metric': found.n if found else 0,
            'compared_with': dense.name if less and dense else None,
            'difference': less and less.value,
            'low': interval and interval.low,
            'high': interval and interval.high,
            'pairs': less.n if less else 0,
        }
        rows.append(row)
    return rows


def _facts(group: Group) -> dict[str, Any]:
    """Return what a network is, and its costs."""
    run = group.first
    member, masks = run.member, run.masks
    more = [
        f'{key}={member[key]}'
        for key in ('inner', 'sparse_factors')
        if member.get(key) not in (None, 'none')
    ]
    written = run.record.get('config')
    files = [Path(written)] if written else sorted(run.path.glob('*.py'))
    size = masks.get('size')
    seeds = ['–' if run.seed is None else str(run.seed) for run in group.runs]
    return {
        'network': group.name,
        'config': files[0].stem if files else '',
        'member': ', '.join(filter(None, (member.get('family'), *more))),
        'algorithm': masks.get('algorithm'),
        'sparsity': group.sparsity,
        'solved': masks.get('solved'),
        'density': size and masks['active'] / size,
        'seeds': ', '.join(seeds),
        'n': len(group.runs),
        **{key: group.cost(key) for key in COSTS},
    }
