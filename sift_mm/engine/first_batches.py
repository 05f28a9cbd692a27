"""First batches of a run, for first masks that are scored on them."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.runner import Runner
from torch import nn
from torch.utils._pytree import tree_map

from sift_mm.engine.randomness import seed_batch
from sift_mm.engine.wrappers import unwrap
from sift_mm.errors import UserError
from sift_mm.sparsity import Initializer, NetworkInitializer
from sift_mm.sparsity.initializers.network_initializer import undisturbed

# Options of a loader with workers, and of its memory.
_OF_WORKERS = (
    'num_workers',
    'persistent_workers',
    'prefetch_factor',
    'pin_memory',
    'timeout',
)


def first_passes(
    runner: Runner, initializer: Initializer
) -> list[Callable[[], Any]]:
    """Return functions that run a run's model on its first batches.

    None for an initializer that reads no batches.

    The run's loader, its sampler and all random states stay as they are, so
    that the run reads the same batches again.

    Raises:
        ValueError: If the run has no loader to copy.
    """
    if not isinstance(initializer, NetworkInitializer):
        return []
    model: Any = unwrap(runner.model)
    with undisturbed(model):
        batches = list(islice(_batches(runner), initializer.batches))
        data = [model.data_preprocessor(batch, True) for batch in batches]
    run = _loss if initializer.reads == 'loss' else _output
    return [partial(run, model, each) for each in data]


def _batches(runner: Runner) -> Iterator[Any]:
    """Yield the batches of a copy of the run's loader."""
    written = runner._train_dataloader
    loader: Any = runner.train_loop.dataloader
    if not isinstance(written, dict):
        raise UserError(
            'First masks that are scored on batches need train_dataloader as '
            'a dict, to read its first batches twice.'
        )
    cfg = {k: v for k, v in written.items() if k not in _OF_WORKERS}
    cfg['dataset'] = loader.dataset
    copy: Any = Runner.build_dataloader(cfg, seed=runner.seed)
    for sampler in (copy.sampler, copy.batch_sampler):
        seed = getattr(getattr(loader, 'sampler', None), 'seed', None)
        if seed is not None and hasattr(sampler, 'seed'):
            sampler.seed = seed
    batches = iter(copy)
    number = 0
    while True:
        seed_batch(int(runner.seed or 0), get_rank(), number)
        try:
            yield next(batches)
        except StopIteration:
            return
        number += 1


def _loss(model: Any, data: Any) -> torch.Tensor:
    """Return the loss of a batch."""
    return model.parse_losses(model._run_forward(data, mode='loss'))[0]


def _output(model: nn.Module, data: Any) -> Any:
    """Return the output for one input of ones, of a batch's shape."""

    def ones(value: Any) -> Any:
        return torch.ones_like(value[:1])

    inputs = data['inputs'] if isinstance(data, dict) else data[0]
    inputs = tree_map(ones, inputs)
    samples = data.get('data_samples') if isinstance(data, dict) else None
    if samples is None:
        return model(inputs, mode='tensor')
    return model(inputs, samples[:1], mode='tensor')
