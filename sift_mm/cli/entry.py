"""Entry points of commands: one sentence for a known error."""

import argparse
import errno
import re
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

from sift_mm.errors import UserError
from sift_mm.kernels.memory import keep_freed_memory

T = TypeVar('T')

FLAG = '--traceback'
# Errors of a full disk, or of a path that cannot be written.
NO_PLACE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
)
# Texts of gloo and NCCL for another process that ended, in a RuntimeError.
PEER = re.compile(
    r'Connection (closed|reset) by peer|Broken pipe|[Tt]imed out waiting|'
    r'NCCL|watchdog'
)


class Parser(argparse.ArgumentParser):
    """Command-line parser with the option ``--traceback``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_argument(
            FLAG,
            action='store_true',
            help='show the traceback of an error too',
        )


def entry_point(main: Callable[..., T]) -> Callable[..., T]:
    """Make a command end with one sentence and exit code 2 on an error."""

    @wraps(main)
    def run(argv: Sequence[str] | None = None) -> T:
        keep_freed_memory()
        try:
            return main(argv)
        except KeyboardInterrupt:
            print('\nStopped by Ctrl-C.', file=sys.stderr, flush=True)
            raise SystemExit(130) from None
        except Exception as error:
            sentence = explain(error)
            shown = FLAG in (sys.argv if argv is None else argv)
            if sentence is None or shown:
                raise
            print(sentence, file=sys.stderr, flush=True)
            stop = SystemExit(sentence)
            stop.code = 2
            raise stop from error

    return run


def explain(error: BaseException) -> str | None:
    """Return the sentence of a known error, None for other errors.

    MMEngine raises errors of hooks again with a longer text, which is cut.
    """
    text = str(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError) and str(cause) in text:
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OSError) and error.errno in NO_PLACE:
        return str(error)
    if isinstance(error, RuntimeError) and PEER.search(text):
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            return (
                'Another process of this run ended, or hangs: its own output '
                f'says why ({text.splitlines()[0]}).'
            )
    return None
