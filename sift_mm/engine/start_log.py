"""Short start of a log: descriptions of the machine go to a file."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock
from warnings import catch_warnings, filterwarnings

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.runner import Runner

#: File of a run's environment, beside its log.
FILE = 'environment.txt'
# Notes of MMEngine: on the future of its classes, on each parameter with
# options of its own, the experiment's name, which comes with each epoch, and
# the folder of the checkpoints, that of the log.
NOTES = re.compile(
    'will be deprecated in|^paramwise_options|^Exp name: |'
    '^Checkpoints will be saved to'
)


class StartLog:
    """Records that go to ``environment.txt`` in place of terminal and log.

    MMEngine logs the environment, the whole config, a table of the hooks and
    the initialization of each parameter: hundreds of lines before the first
    step.
    """

    def __init__(self) -> None:
        self.building = True
        self._kept: list[str] = []
        self._notes: set[str] = set()
        self._path: Path | None = None

    def takes(self, record: logging.LogRecord) -> bool:
        """Write a record of the start to the file; return False for others.

        These are the messages while the runner is built, without warnings,
        and :data:`NOTES`, each once.
        """
        message = record.getMessage()
        is_note = NOTES.search(message) is not None
        of_start = self.building and record.levelno == logging.INFO
        if message not in self._notes and (is_note or of_start):
            self.write(message)
        if is_note:
            self._notes.add(message)
        return is_note or of_start

    def write(self, text: str) -> None:
        """Write a text to the file, once there is one."""
        if self._path is None:
            if self.building:
                self._kept.append(text)
            return
        try:
            with self._path.open('a') as file:
                file.write(f'{text}\n')
        except OSError:
            self._path = None  # A full disk: the run itself goes on.

    def end_building(self, runner: Runner) -> None:
        """Write what was kept, in the first process, beside its log."""
        if self._kept and runner.rank == 0:
            self._path = Path(runner.log_dir, FILE)
            self.write('\n'.join(self._kept))
        self.building = False
        self._kept = []


def initialization(module: BaseModule) -> str:
    """Describe the initialization of each parameter, as MMEngine does."""
    known = module._params_init_info
    lines = [
        f'{name} - {tuple(parameter.shape)}: {known[parameter]["init_info"]}'
        for name, parameter in module.named_parameters()
    ]
    return '\n'.join(['Initialization of the parameters:', *lines])


@contextmanager
def short_start(cfg: Config) -> Iterator[StartLog]:
    """Keep descriptions out of the log of a run, unless it is for debugging.

    With ``log_level='DEBUG'`` the log is MMEngine's.
    """
    log = StartLog()
    if cfg.get('log_level') == 'DEBUG':
        log.building = False
        yield log
        return
    handle = MMLogger.handle

    def divert(logger: MMLogger, record: logging.LogRecord) -> None:
        if not log.takes(record):
            handle(logger, record)

    def dump_init_info(module: BaseModule) -> None:
        # MMEngine's method writes into the streams of file handlers.
        log.write(initialization(module))

    with (
        mock.patch.object(MMLogger, 'handle', divert),
        mock.patch.object(BaseModule, '_dump_init_info', dump_init_info),
        catch_warnings(),
    ):
        # MMPretrain's MNIST reads its files so, and writes nothing there.
        filterwarnings('ignore', 'The given NumPy array is not writable')
        # MMEngine says it once a process, of its own default.
        filterwarnings('ignore', 'Setting (MKL|OMP)_NUM_THREADS')
        yield log
