"""Fixtures for all tests: data sets, configs and trained runs."""

import gc
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from unittest import mock

import pytest

# Test files run side by side: each process, and what it starts, keeps to one
# core. PyTorch reads this when it is imported.
os.environ.setdefault('OMP_NUM_THREADS', '1')

from helpers import datasets  # noqa: E402
from helpers.fake_tools import standins  # noqa: E402, F401
from helpers.runs import (  # noqa: E402
    TEXTS,
    Run,
    forget_instances,
    write_config,
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files of few tests first: they are whole runs, the others are quick.

    The processes share out files in this order, and end together if the last
    ones are short.
    """
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: tests[item.path])


def pytest_collection_finish() -> None:
    """Keep the libraries' million objects out of garbage collections."""
    gc.freeze()


@pytest.fixture(scope='session')
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the mini data set of each library by scope."""
    root = tmp_path_factory.mktemp('data')
    return {
        'mmdet': datasets.mini_coco(root / 'coco', num_train=4, num_val=2),
        'mmseg': datasets.mini_cityscapes(root / 'cityscapes'),
        'mmpretrain': datasets.mini_imagenet(root / 'imagenet'),
    }


@pytest.fixture(scope='session')
def configs(
    data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Write a config file for each library; return them by scope."""
    folder = tmp_path_factory.mktemp('configs')
    return {scope: write_config(folder, scope, data[scope]) for scope in TEXTS}


@pytest.fixture(scope='session', autouse=True)
def quick_libraries() -> Iterator[None]:
    """Skip the slow parts of configs, data and runs.

    A config is the same Python without layout. The index of a library's
    configs, a file for each of some hundred folders, would be read for every
    base.
    """
    import torch
    from mmengine.config import utils
    from mmengine.hooks import runtime_info_hook
    from mmengine.model import base_module, weight_init
    from mmengine.runner import runner
    from mmengine.visualization import Visualizer

    def ignore(*_: object, **__: object) -> None:
        pass

    draw = Visualizer._initialize_fig
    figure = cache(lambda: draw(None, dict(frameon=False)))
    layout = 'yapf.yapflib.yapf_api.FormatCode'
    with ExitStack() as stack:
        stack.enter_context(mock.patch(layout, lambda text, **_: (text, 0)))
        # Each dataset of four images would collect garbage.
        stack.enter_context(mock.patch('mmengine.dataset.base_dataset.gc'))
        # No test takes the power away.
        stack.enter_context(mock.patch('os.fsync', ignore))
        for owner, name, other in [
            (utils, 'load', cache(utils.load)),
            # For a log, the mean of each weight is taken many times.
            (base_module, 'update_init_info', ignore),
            (weight_init, 'update_init_info', ignore),
            # Each image clears the figure.
            (Visualizer, '_initialize_fig', lambda *_: figure()),
            # These start processes.
            (runner, 'collect_env', cache(runner.collect_env)),
            (runner, 'get_git_hash', lambda: 'unknown'),
            (runtime_info_hook, 'get_git_hash', lambda: 'unknown'),
        ]:
            stack.enter_context(mock.patch.object(owner, name, other))
        if not torch.cuda.is_available():
            # Each seed of an absent device keeps a stack trace.
            for device in (torch.cuda, torch.xpu, torch.mtia):
                stack.enter_context(
                    mock.patch.object(
                        device, 'manual_seed_all', ignore, create=True
                    )
                )
        yield


@pytest.fixture(autouse=True)
def fresh_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Reset the global state, as if a test were a process of its own."""
    forget_instances()
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(tmp_path)
    yield
    forget_instances()


@pytest.fixture
def seed() -> None:
    """Seed PyTorch with a random number and print it."""
    import torch

    number = torch.seed() % 2**31
    print(f'torch.manual_seed({number})')
    torch.manual_seed(number)


@pytest.fixture(scope='session')
def runs(
    configs: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Run]:
    """Train a run of each library; return them by scope."""
    from sift_mm.cli import train

    found = {}
    for scope, config in configs.items():
        work_dir = tmp_path_factory.mktemp(f'run_{scope}')
        forget_instances()
        train.main([config, '--work-dir', str(work_dir)])
        last = (work_dir / 'last_checkpoint').read_text()
        found[scope] = Run(config, work_dir, last)
    return found
