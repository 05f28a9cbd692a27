"""Seed data and model by the iteration of a run, and by nothing before.

MMEngine's checkpoints hold no random state, and the state of workers, which
are some batches ahead, could not be saved at all. So every batch is drawn
from a seed of its own, and every iteration computed with one: a run that is
broken after any iteration goes on with the numbers that it would have had.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, IterableDataset

# Uses of a seed.
_DATA, _MODEL = range(2)


def seed_generators(*key: int) -> None:
    """Seed Python, NumPy and PyTorch, of all devices, by numbers from 0 up."""
    seeds = np.random.SeedSequence(key).generate_state(3)
    python, numpy, pytorch = (int(seed) for seed in seeds)
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(pytorch)


class NumberedBatch(list[int]):
    """Indices of a batch, with the iteration that trains on it."""

    number: int


class NumberedBatches:
    """Batch sampler that numbers each batch by its iteration.

    Other attributes are those of ``batches``. ``restarted`` is called with
    the epoch when they end while a resumed run skips batches.
    """

    restarted: Callable[[int], None] | None = None

    def __init__(self, batches: Any, number: int, skip: int) -> None:
        self.batches = batches
        self.number = number
        self.skip = skip

    def __iter__(self) -> Iterator[NumberedBatch]:
        for indices in self._remaining():
            batch = NumberedBatch(indices)
            batch.number = self.number
            self.number += 1
            yield batch

    def _remaining(self) -> Iterator[list[int]]:
        """Return the batches after those that a resumed run has seen."""
        skip, self.skip = self.skip, 0
        batches = iter(self.batches)
        epoch = 0
        while skip:
            try:
                next(batches)
                skip -= 1
            except StopIteration:
                if self.restarted is None:
                    return
                epoch += 1
                self.restarted(epoch)
                batches = iter(self.batches)
        yield from batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        if name == 'batches':  # While it is unpickled.
            raise AttributeError(name)
        return getattr(self.batches, name)


class SeededFetch:
    """Reader of a batch that seeds random numbers by the number of the batch.

    It becomes ``__getitems__`` of a dataset, which PyTorch's data loader
    calls, in a worker or not. The key is the common part of a run's seeds.
    """

    def __init__(self, dataset: Any, key: tuple[int, ...]) -> None:
        self.dataset = dataset
        self.read = getattr(dataset, '__getitems__', None)
        self.key = key

    def __call__(self, batch: list[int]) -> list[Any]:
        """Return the samples of a batch."""
        if isinstance(batch, NumberedBatch):
            seed_generators(*self.key, batch.number, _DATA)
        if self.read is not None:
            return self.read(batch)
        return [self.dataset[index] for index in batch]


class SeededIterations:
    """Seeds of data and model, for each iteration of a run.

    Args:
        runner (Runner): Its checkpoint loaded, its data not yet read.
        sampler_seed (int, optional): Seed of the sampler in the resumed run. A
            config without a seed gives it another one each time.
    """

    def __init__(
        self, runner: Runner, sampler_seed: int | None = None
    ) -> None:
        self.seed = int(runner.seed or 0)
        self._iterator: Any = None
        loader: Any = runner.train_loop.dataloader
        sampler: Any = getattr(loader, 'sampler', None)
        self.sampler = sampler
        if sampler_seed is not None and hasattr(sampler, 'seed'):
            sampler.seed = sampler_seed
        self._number(runner, loader)

    def _number(self, runner: Runner, loader: Any) -> None:
        """Number the batches of the loader from the run's iteration on."""
        if (
            not isinstance(loader, DataLoader)
            or isinstance(loader.dataset, IterableDataset)
            or loader.batch_sampler is None
        ):
            print_log(
                'The training data are a stream: a resumed run will not see '
                'the same random numbers.',
                logger='current',
            )
            return
        loop = runner.train_loop
        batches = NumberedBatches(
            loader.batch_sampler, number=runner.iter, skip=runner.iter
        )
        if isinstance(loop, IterBasedTrainLoop):
            self._iterator = loop.dataloader_iterator
            batches.restarted = self._restart
            # The indices are left out here, of any sampler.
            loop.fast_forward_on_resume = True
        else:
            # A break inside an epoch; more than one is of other data.
            done = runner.iter - runner.epoch * len(loader)
            batches.skip = min(max(done, 0), len(loader))
        dataset: Any = loader.dataset
        dataset.__getitems__ = SeededFetch(dataset, (self.seed, get_rank()))
        # PyTorch refuses to have it replaced, since a running iterator
        # would not see it; there is none yet.
        vars(loader)['batch_sampler'] = batches

    def _restart(self, epoch: int) -> None:
        """Begin an epoch as MMEngine's endless iterator does."""
        self._iterator._epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def begin(self, iteration: int) -> None:
        """Seed the model's draws in an iteration, counted from 0."""
        seed_generators(self.seed, iteration, _MODEL)

    @property
    def sampler_seed(self) -> int | None:
        """Seed of the sampler, which a resumed run needs."""
        return getattr(self.sampler, 'seed', None)
