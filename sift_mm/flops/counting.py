"""FLOPs of a network, dense and under masks, from one counter.

FLOPs are 2 x MACs, as in PyTorch's counter and the RigL paper. OpenMMLab's
get_flops tools print MACs under that name, half of this.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from sift_mm.errors import UserError
from sift_mm.flops.meta_operators import plain_operators


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one forward pass of one sample, in 2 x MACs.

    Convolutions and matrix products are counted; norms, activations and
    pooling are not. A shared module counts as often as it runs. Of causal
    attention (``is_causal``), each query counts with the keys up to its own.

    Args:
        total (int): FLOPs of the network, with every weight dense.
        by_module (Mapping[str, int]): FLOPs by module name, with the modules
            that it calls. A shared module has its first name.
        own (Mapping[str, int]): FLOPs by module name, without the modules that
            it calls.
    """

    total: int
    by_module: Mapping[str, int]
    own: Mapping[str, int] = field(default_factory=dict)

    def of(self, parameter: str) -> int:
        """Return the FLOPs of a parameter's module, 0 if it does not run."""
        return self.by_module.get(parameter.rpartition('.')[0], 0)

    def sparse(
        self, densities: Mapping[str, float], module: str = ''
    ) -> float:
        """Return the FLOPs under masks, proportional to the active weights.

        Args:
            densities (Mapping[str, float]): Share of active weights by
                parameter name; other parameters are dense.
            module (str): Name of the submodule to count, '' for the network.
        """
        dense = self.by_module[module] if module else self.total
        prefix = f'{module}.' if module else ''
        return dense - sum(
            (1 - density) * self.of(name)
            for name, density in densities.items()
            if name.startswith(prefix)
        )


def count_flops(
    model: nn.Module,
    shape: tuple[int, ...],
    in_channels: int = 3,
    **forward_kwargs: Any,
) -> FlopCount:
    """Count the FLOPs of a forward pass on one image or text.

    A copy of the model runs on the meta device, without arithmetic and
    without memory for activations.

    Args:
        model (nn.Module): The network; it does not change.
        shape (tuple[int, ...]): As for :func:`meta_image`.
        in_channels (int): Channels of the image.
        **forward_kwargs: Arguments of forward; detectors, segmentors and
            classifiers need ``mode='tensor'``.

    Raises:
        ValueError: If the shape is neither one nor two numbers.
    """
    image = meta_image(shape, in_channels)
    with plain_operators():
        return count_call(on_meta(model, norms=False), image, **forward_kwargs)


def meta_image(shape: tuple[int, ...], channels: int = 3) -> Tensor:
    """Return an input of batch 1 without numbers.

    Args:
        shape (tuple[int, ...]): Height and width of an image, in pixels; or
            one number, the length of a text in tokens.
        channels (int): Channels of an image.

    Returns:
        Tensor: (1, channels, height, width), or ids of shape (1, tokens).

    Raises:
        ValueError: If the shape is neither one nor two numbers.
    """
    if len(shape) == 1:
        return torch.empty(1, *shape, dtype=torch.long, device='meta')
    if len(shape) != 2:
        raise UserError(
            'The shape is height and width in pixels, or a number of tokens, '
            f'not {tuple(shape)}; channels are a number of their own.'
        )
    return torch.empty(1, channels, *shape, device='meta')


def describe_shape(shape: Sequence[int]) -> str:
    """Return a shape in words: '224 x 256 pixels', or '2048 tokens'."""
    unit = 'tokens' if len(shape) == 1 else 'pixels'
    return f'{" x ".join(map(str, shape))} {unit}'


def image_channels(network: nn.Module) -> int:
    """Return the image channels of a network, by its first convolution.

    Args:
        network (nn.Module): The network.

    Returns:
        int: The channels; 3 if the first convolution reads more than an image
        has, as behind a layer that moves pixels into channels.
    """
    for module in network.modules():
        if isinstance(module, _ConvNd):
            return module.in_channels if 0 < module.in_channels <= 4 else 3
    return 3


def on_meta(model: nn.Module, norms: bool = True) -> nn.Module:
    """Return a copy of a model in eval mode, with shapes but no numbers.

    Without ``norms``, batch norms do nothing (:func:`skip_norms`): on the meta
    device they take longer than all convolutions.
    """
    # The memo holds the copies of all tensors, without numbers: the network
    # needs no memory twice.
    memo: dict[int, Any] = {}
    for weight in model.parameters():
        memo[id(weight)] = nn.Parameter(
            torch.empty_like(weight, device='meta'), requires_grad=False
        )
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device='meta')
    for module in model.modules():
        for value in vars(module).values():
            # weight_norm and other hooks store weights there.
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = torch.empty_like(
                    value, device='meta', requires_grad=False
                )
    model = copy.deepcopy(model, memo)
    model.eval()  # OpenMMLab's backbones return nothing here.
    if not norms:
        skip_norms(model)
    return model


def skip_norms(model: nn.Module) -> None:
    """Make batch norms return a tensor of their input's shape only."""
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            norm.forward = torch.empty_like  # type: ignore[method-assign]


@contextmanager
def watched(
    model: nn.Module,
    enter: Callable[..., None],
    leave: Callable[..., None],
) -> Iterator[None]:
    """Call functions around each module's forward.

    Their arguments are the module's name and those of PyTorch's hooks.
    """
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            for register, function in (
                (module.register_forward_pre_hook, enter),
                (module.register_forward_hook, leave),
            ):
                hooks.enter_context(register(partial(function, name)))
        yield


class _Future(TorchFunctionMode):
    """Mode that sums the FLOPs on scores that causal attention masks.

    PyTorch's counter takes every query with every key. Fused kernels leave
    out the keys behind a query, which no output depends on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            names = ('query', 'key', 'value', 'attn_mask', 'dropout_p')
            call = dict(zip((*names, 'is_causal'), args, strict=False))
            call |= kwargs
            if call.get('is_causal'):
                query, key, value = (call[name] for name in names[:3])
                masked = sum(
                    max(key.shape[-2] - 1 - i, 0)
                    for i in range(query.shape[-2])
                )
                width = query.shape[-1] + value.shape[-1]
                self.flops += 2 * masked * width * query[..., 0, 0].numel()
        return func(*args, **kwargs)


def count_call(model: nn.Module, *args: Any, **kwargs: Any) -> FlopCount:
    """Count the FLOPs of one call of a model, see :class:`FlopCount`."""
    return count_while(model, lambda: model(*args, **kwargs))


def count_while(model: nn.Module, run: Callable[[], Any]) -> FlopCount:
    """Count the FLOPs of a model while a function runs it."""
    # The counter's own table uses the last name of a shared module, and adds
    # the modules that a module calls.
    counter, future = FlopCounterMode(display=False), _Future()
    by_module: dict[str, int] = defaultdict(int)
    own: dict[str, int] = defaultdict(int)
    running: list[tuple[str, int]] = []

    def total() -> int:
        return counter.get_total_flops() - future.flops

    def enter(name: str, *_: Any) -> None:
        running.append((name, total()))

    def leave(name: str, *_: Any) -> None:
        spent = total() - running.pop()[1]
        by_module[name] += spent
        own[name] += spent
        if running:
            own[running[-1][0]] -= spent

    with watched(model, enter, leave), counter, future, torch.no_grad():
        run()
    return FlopCount(total(), dict(by_module), dict(own))
