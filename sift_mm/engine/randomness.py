"""Seeds of data and model for each iteration of a run.

MMEngine's checkpoints hold no random state, and the state of workers, which
are some batches ahead, cannot be saved. So every batch and every iteration has
a seed: a run that is interrupted after any iteration resumes with the same
random numbers.
"""

import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, IterableDataset

# Uses of a seed.
_DATA, _MODEL = range(2)


_has_accelerator = cache(torch.accelerator.is_available)


def seed_generators(*key: int) -> None:
    """Seed Python, NumPy and PyTorch, on all devices, by numbers >= 0."""
    seeds = np.random.SeedSequence(key).generate_state(3)
    python, numpy, pytorch = (int(seed) for seed in seeds)
    random.seed(python)
    np.random.seed(numpy)
    if _has_accelerator():
        torch.manual_seed(pytorch)
    else:  # torch.manual_seed takes 1 ms to queue seeds for absent devices.
        torch.default_generator.manual_seed(pytorch)


def seed_batch(seed: int, rank: int, number: int) -> None:
    """Seed the data of a rank's batch, by its training iteration."""
    seed_generators(seed, rank, number, _DATA)


class NumberedBatch(list[int]):
    """Indices of a batch, with the number of its training iteration."""

    number: int


class NumberedBatches:
    """Batch sampler that numbers each batch by its iteration.

    Other attributes are those of the wrapped sampler.

    Args:
        batches (Any): Batch sampler to wrap.
        number (int): Iteration of the next batch.
        skip (int): Number of batches that a resumed run skips.

    Attributes:
        restarted (Callable, optional): Function to call with the epoch if the
            sampler ends while batches are skipped.
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
        """Yield the batches that a resumed run has not seen."""
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
        if name == 'batches':  # Not set yet during unpickling.
            raise AttributeError(name)
        return getattr(self.batches, name)


class SeededFetch:
    """Reader of batches that seeds random numbers by the batch's number.

    It replaces ``__getitems__`` of a dataset, which PyTorch's data loader
    calls.

    Args:
        dataset (Any): Dataset.
        key (tuple[int, int]): Seed and rank of the run.
    """

    def __init__(self, dataset: Any, key: tuple[int, int]) -> None:
        self.dataset = dataset
        self.read = getattr(dataset, '__getitems__', None)
        self.key = key

    def __call__(self, batch: list[int]) -> list[Any]:
        """Return the samples of a batch."""
        if isinstance(batch, NumberedBatch):
            seed_batch(*self.key, batch.number)
        if self.read is not None:
            return self.read(batch)
        return [self.dataset[index] for index in batch]


class SeededIterations:
    """Seeds of data and model for each iteration of a run.

    Args:
        runner (Runner): Runner with a loaded checkpoint, before the first
            batch.
        sampler_seed (int, optional): Saved seed of the sampler. Without a seed
            in the config, each start of the run would have another one.
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
        """Wrap the loader's sampler, to number batches by iteration."""
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
            # NumberedBatches skips indices without reading data.
            loop.fast_forward_on_resume = True
        else:
            # More than an epoch means that the data set has changed.
            done = runner.iter - runner.epoch * len(loader)
            batches.skip = min(max(done, 0), len(loader))
        dataset: Any = loader.dataset
        dataset.__getitems__ = SeededFetch(dataset, (self.seed, get_rank()))
        # PyTorch refuses a new batch_sampler because of running iterators;
        # there is none yet.
        vars(loader)['batch_sampler'] = batches

    def _restart(self, epoch: int) -> None:
        """Start an epoch like MMEngine's endless iterator."""
        self._iterator._epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def begin(self, iteration: int) -> None:
        """Seed the model's random numbers in an iteration, counted from 0."""
        seed_generators(self.seed, iteration, _MODEL)

    @property
    def sampler_seed(self) -> int | None:
        """Seed of the sampler, for a resumed run."""
        return getattr(self.sampler, 'seed', None)
