"""Base of the initializers that score all layers together, on first batches.

Their scores share one budget among the layers: the FLOPs of the counts that a
distribution has, so that scores decide the densities of layers too.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sift_mm.errors import UserError
from sift_mm.sparsity.initializers.initializer import Initializer
from sift_mm.sparsity.processes import mean_of_ranks_
from sift_mm.validation import Count

Passes = Sequence[Callable[[], Any]]


class NetworkInitializer(Initializer):
    """Base of initializers that score the layers of a network together.

    Args:
        batches (int): First batches of the run to read.

    Attributes:
        reads (str): 'loss' if a pass returns the loss of a batch; 'output' if
            it returns the network's output for an input of ones.
    """

    reads: ClassVar[Literal['loss', 'output']] = 'loss'

    def __init__(self, batches: Count = 1) -> None:
        self.batches = batches

    def scores(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        passes: Passes,
        density: float,
    ) -> list[Tensor]:
        """Return the score of each position, one tensor for each parameter.

        The highest become active. The network may change here: it is restored
        afterwards.

        Args:
            model (nn.Module): Network in training mode.
            parameters (Mapping): Parameters to mask, by name.
            passes (Sequence): Functions that run the network, one a batch.
            density (float): Share of the weights that will be active.
        """
        raise NotImplementedError

    def network_scores(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        passes: Passes,
        density: float,
    ) -> dict[str, Tensor]:
        """Return :meth:`scores` on the CPU by name, of unchanged layers.

        Raises:
            ValueError: If the passes give no score.
        """
        name = type(self).__name__
        with undisturbed(model), torch.enable_grad():
            model.train()
            for parameter in parameters.values():
                parameter.requires_grad_()
            found = self.scores(model, parameters, passes, density)
        # NumPy, which sorts the scores, has no bfloat16.
        values = [
            score.detach().to(
                'cpu', torch.promote_types(score.dtype, torch.float32)
            )
            for score in found
        ]
        blind = [
            layer
            for layer, score in zip(parameters, values, strict=True)
            if not (score.isfinite().all() and score.any())
        ]
        if blind:
            raise UserError(
                f'init={name!r} has no score for {len(blind)} of '
                f'{len(values)} layers, {blind[0]!r} first: the {self.reads} '
                'of the first batches does not depend on them, or is not '
                'finite. A norm that starts at zero cuts the layers before '
                'it off: set zero_init_residual=False of the backbone.'
            )
        return dict(zip(parameters, values, strict=True))


def gradients(
    passes: Passes, parameters: Mapping[str, nn.Parameter]
) -> list[Tensor]:
    """Return the gradients of the mean loss, over passes and ranks."""
    total = [
        torch.zeros_like(p, memory_format=torch.contiguous_format)
        for p in parameters.values()
    ]
    for run in passes:
        found = torch.autograd.grad(
            _with_graph(run()), list(parameters.values()), allow_unused=True
        )
        for sum_, one in zip(total, found, strict=True):
            if one is not None:
                sum_ += one / len(passes)
    return mean_of_ranks_(total)


def _with_graph(loss: Any) -> Tensor:
    """Return what a pass returned, if it has gradients."""
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss
    raise UserError(
        'The first pass has to return the loss of a batch, one number as a '
        'tensor with gradients (no item(), detach() or no_grad()); for init='
        "'SynFlow' the output, with gradients too."
    )


def total_of(output: Any) -> Tensor:
    """Return the sum of all floating-point tensors in a network's output."""
    tensors = [
        leaf.sum()
        for leaf in tree_leaves(output)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
    if not tensors:
        raise UserError('The first pass returned no tensor.')
    return torch.stack(tensors).sum()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore weights, buffers, modes and random states at the end."""
    weights = [(p, p.data, p.requires_grad) for p in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    modes = [(module, module.training) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for parameter, data, trains in weights:
            parameter.data = data
            parameter.requires_grad_(trains)
        for module, name, buffer, values in buffers:
            module._buffers[name] = buffer
            buffer.data.copy_(values)
        for module, mode in modes:
            module.training = mode
        random.setstate(python)
        np.random.set_state(numpy)
