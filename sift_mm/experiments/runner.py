"""Experiments: networks that are trained, then tested, unless that is done."""

import json
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from sift_mm.config.reading import read_config
from sift_mm.errors import Mistake
from sift_mm.experiments.processes import Tools, signals_raised

TOOLS = {what: ('-m', f'sift_mm.cli.{what}') for what in ('train', 'test')}


@dataclass(frozen=True)
class Experiment:
    """A config that is trained and tested in a folder of its own.

    It is done when its result is not older than the checkpoint of the last
    epoch or iteration, and this not older than the config, its bases, and the
    checkpoint of the experiment that it starts from.

    Args:
        root (Path): Folder of all experiments of a plan.
        name (str): In messages, and its folder within.
        config (str): Path of the config.
        options (tuple[str, ...]): Of both tools, such as '--family'.
        cfg_options (tuple[str, ...]): Settings of the config, 'KEY=VALUE'.
        test_options (tuple[str, ...]): Of tools/test.py alone.
        after (Experiment, optional): The one whose checkpoint it starts from.
    """

    root: Path
    name: str
    config: str
    options: tuple[str, ...] = ()
    cfg_options: tuple[str, ...] = ()
    test_options: tuple[str, ...] = ()
    after: 'Experiment | None' = None

    @property
    def folder(self) -> Path:
        """Of logs, checkpoints and result."""
        return self.root / self.name

    @property
    def result(self) -> Path:
        """File of metrics and costs."""
        return self.folder / 'result.json'

    @cached_property
    def last(self) -> Path:
        """The checkpoint of the last epoch or iteration."""
        # Other settings may hold only with --family.
        schedule = (o for o in self.cfg_options if o.startswith('train_cfg.'))
        changed = _newest(config_files(self.config))
        return self.folder / last_checkpoint(self.config, changed, *schedule)

    def _latest(self) -> Path | None:
        """The latest checkpoint, unless it is damaged or out of date."""
        named = self.folder / 'last_checkpoint'
        if not named.exists():
            return None
        # The folder may have been moved since MMEngine wrote the path.
        checkpoint = self.folder / Path(named.read_text().strip()).name
        sources = [*config_files(self.config)]
        if self.after is not None:
            if not self.after.is_trained():
                return None
            sources.append(self.after.last)
        # What makes a zip file of it is at its end.
        whole = zipfile.is_zipfile(checkpoint)
        current = whole and _newest([checkpoint]) >= _newest(sources)
        return checkpoint if current else None

    def is_trained(self) -> bool:
        """Whether its training has come to its end."""
        return self._latest() == self.last

    def is_done(self) -> bool:
        """Whether it is trained, and tested since then."""
        return (
            self.result.exists()
            and self.is_trained()
            and _newest([self.result]) >= _newest([self.last])
        )

    def run(self, tools: Tools) -> None:
        """Trains, unless that is done, and tests.

        Raises:
            Mistake: If that fails.
        """
        if not self.is_trained():
            self._train(tools)
        print(f'Testing {self.name}', flush=True)
        options = str(self.last), f'--out={self.result}', *self.test_options
        self._call(tools, 'test', self.folder / 'test', *options)

    def _train(self, tools: Tools) -> None:
        if self.after is not None and not self.after.is_trained():
            raise Mistake(
                f'{self.name} was not started: it starts from '
                f'{self.after.name}, which is not trained.'
            )
        if (self.folder / 'last_checkpoint').exists() and not self._latest():
            stamp = time.strftime('%Y%m%d_%H%M%S')
            aside = self.folder.with_name(f'old-{self.folder.name}-{stamp}')
            self.folder.rename(aside)
            print(
                f'{self.name}: what it comes from is newer than its '
                f'checkpoint, or that is damaged; it is now in {aside}.'
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        print(f'Training {self.name}', flush=True)
        self._call(tools, 'train', self.folder, '--resume')
        if not self.is_trained():
            raise Mistake(
                f'The training of {self.name} ended without {self.last}; its '
                f'log is {self.folder / "train.log"}.'
            )

    def _call(
        self, tools: Tools, what: str, work_dir: Path, *options: str
    ) -> None:
        tools.run(
            f'{self.name}/{what}',
            self.folder / f'{what}.log',
            *TOOLS[what],
            self.config,
            *options,
            *self.options,
            f'--work-dir={work_dir}',
            '--cfg-options',
            # MMEngine deletes before it writes: one has to be left then.
            'default_hooks.checkpoint.max_keep_ckpts=2',
            *self.cfg_options,
        )

    def metrics(self) -> dict[str, float]:
        """The result: metrics by name, and what the network costs."""
        return json.loads(self.result.read_text())

    def logged(self) -> Iterator[dict[str, Any]]:
        """What the training logged, in order, resumed parts included."""
        for path in sorted(self.folder.glob('*/vis_data/scalars.json')):
            yield from map(json.loads, path.read_text().splitlines())

    def seconds(self) -> float:
        """Time of the training's steps, up to the last one logged.

        Steps that an interruption lost are not in it.
        """
        times = {s['step']: s['time'] for s in self.logged() if 'loss' in s}
        steps = pairwise([0, *sorted(times)])
        return sum(times[step] * (step - before) for before, step in steps)


def config_files(config: str) -> Iterator[Path]:
    """The file of a config and those of its bases, but no library's.

    Raises:
        Mistake: If there is no such file.
    """
    if '::' in config:
        return
    path = Path(config)
    if not path.is_file():
        raise Mistake(f'There is no config file {config}.')
    yield path
    for base in Config._get_base_files(config):
        yield from config_files(
            base if '::' in base else str(path.parent / base)
        )


@cache
def last_checkpoint(config: str, changed: int, *cfg_options: str) -> str:
    """The name that MMEngine gives a training's last checkpoint.

    The config is read again when it was changed since.

    Raises:
        Mistake: If the config does not say how long to train.
    """
    pairs = (option.partition('=') for option in cfg_options)
    parse = DictAction._parse_iterable
    cfg = read_config(config, {key: parse(value) for key, _, value in pairs})
    for unit in ('epoch', 'iter'):
        if number := (cfg.get('train_cfg') or {}).get(f'max_{unit}s'):
            return f'{unit}_{number}.pth'
    raise Mistake(f'{config} has neither max_epochs nor max_iters.')


def _newest(paths: Iterable[Path]) -> int:
    """When the last of them was changed."""
    return max((path.stat().st_mtime_ns for path in paths), default=0)


def run_experiments(
    experiments: Sequence[Experiment],
    jobs: int = 1,
    threads: int | None = None,
) -> None:
    """Does what is not done, in order, and says what comes out.

    ``jobs`` run at a time, with so many threads of PyTorch each; with one,
    an experiment may start from another before it. One that fails stops no
    other. A signal that ends this process ends the tools that run.

    Raises:
        Mistake: If some failed.
    """
    # Configs are read now: reading redirects the output of all threads.
    todo = [e for e in experiments if e.last and not e.is_done()]
    print(f'{len(todo)} runs to do', flush=True)
    tools, errors = Tools(threads), []
    with signals_raised(), ThreadPoolExecutor(jobs) as pool:
        try:
            futures = {pool.submit(e.run, tools): e for e in todo}
            for future in as_completed(futures):
                experiment, error = futures[future], future.exception()
                if error:
                    errors.append(error)
                outcome = error or experiment.result.read_text()
                print(f'{experiment.name}: {outcome}', flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            tools.stop()
            raise
    if errors:
        raise Mistake(f'{len(errors)} runs failed. {errors[0]}')
