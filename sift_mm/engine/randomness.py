"""Random numbers that depend on where a run is, and on nothing before.

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

# What a seed is for.
_DATA, _MODEL = range(2)


def seed_generators(*key: int) -> None:
    """Seed Python, NumPy and PyTorch, of all devices, by numbers from 0 up."""
    seeds = np.random.SeedSequence(key).generate_state(3)
    python, numpy, pytorch = (int(seed) for seed in seeds)
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(pytorch)


class NumberedBatch(list[int]):
    """Indices of a batch, and the iteration that is trained with it."""

    number: int


class NumberedBatches:
    """A batch sampler that says of each batch when it is trained with.

    What else it has is had from ``batches``. ``restarted`` is called with the
    epoch when that is exhausted while batches of a resumed run are left out.
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
        """The batches after those that a resumed run was trained with."""
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
    """Reads a batch of samples, its random numbers seeded by its number.

    In the instance of a data set as ``__getitems__``, which PyTorch's data
    loader calls where there is one, in a worker or not. The key is what the
    run's seeds have in common.
    """

    def __init__(self, dataset: Any, key: tuple[int, ...]) -> None:
        self.dataset = dataset
        self.read = getattr(dataset, '__getitems__', None)
        self.key = key

    def __call__(self, batch: list[int]) -> list[Any]:
        """The samples of a batch."""
        if isinstance(batch, NumberedBatch):
            seed_generators(*self.key, batch.number, _DATA)
        if self.read is not None:
            return self.read(batch)
        return [self.dataset[index] for index in batch]


class SeededIterations:
    """Seeds data and model of a run, iteration by iteration.

    Args:
        runner (Runner): Its checkpoint loaded, its data not yet read.
        sampler_seed (int, optional): That of the run that is resumed. A
            config without a seed gives the sampler another one each time.
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
        """Number the batches of the loader, from where the run is."""
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
        """Seed what the model draws in an iteration, counted from 0."""
        seed_generators(self.seed, iteration, _MODEL)

    @property
    def sampler_seed(self) -> int | None:
        """What a resumed run has to be given."""
        return getattr(self.sampler, 'seed', None)
