"""Layers of a network that run through the sparse operators.

The dense weight with its zeros stays the layer's parameter: optimizers,
checkpoints, averages and data-parallel wrappers see nothing of this.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sift_mm.kernels import (
    DENSE,
    SMALLEST,
    Geometry,
    Timing,
    batch_norm,
    frozen_batch_norm,
    geometry_of,
    make_pattern,
    masked_layer,
    max_pool2d,
    multiplications,
    pair,
    relu,
    time_products,
)

Ways = tuple[bool, ...]
SPARSE: Ways = (True, True, True)


def why_dense(layer: nn.Module) -> str | None:
    """Say why a layer cannot run sparse here, or None if it can."""
    weight = layer.weight
    if not isinstance(weight, Tensor) or weight.device.type != 'cpu':
        return 'on an accelerator, where sparse kernels do not pay'
    if weight.dtype != torch.float32:
        return f'of {str(weight.dtype).removeprefix("torch.")}'
    kind: Any = type(layer)
    if isinstance(layer, nn.Conv2d):
        if kind._conv_forward is not nn.Conv2d._conv_forward:
            return f'of a class of its own, {kind.__name__}'
        if layer.groups > 1:
            return 'grouped'
        if layer.padding_mode != 'zeros':
            return f'padded by {layer.padding_mode!r}'
        reason = geometry_of(layer).why_not()
        return reason and f'not for the kernels: {reason}'
    if kind.forward is not nn.Linear.forward:
        return f'of a class of its own, {kind.__name__}'
    return None


class Execution:
    """How one masked layer is run.

    Args:
        mask: The layer's mask, changed in place by its owner, who calls
            :meth:`renew_pattern` then.
        geometry: Of the layer.
        auto: Whether products are timed; else all of them run sparse.

    Attributes:
        ways: By size of the input (:func:`size_of_input`), which products
            run sparse.
        timings: Those taken, by the same key.
        dense_gradient: Whether the gradient outside the mask is wanted.
        reason: Why the layer ran dense, as far as that is known only then.
    """

    def __init__(self, mask: Tensor, geometry: Geometry, auto: bool) -> None:
        self.mask = mask
        self.geometry = geometry
        self.numbers = geometry.numbers()
        self.auto = auto
        self.ways: dict[int, Ways] = {}
        self.timings: dict[int, Timing] = {}
        self.dense_gradient = False
        self.reason = ''
        self.pattern: list[Tensor] | None = None
        if not auto:
            self.index()

    def index(self) -> list[Tensor]:
        """Read the mask as the kernels do."""
        mask = self.mask
        if mask.ndim == 2:
            mask = mask[..., None, None]
        self.pattern = make_pattern(mask, self.geometry)
        return self.pattern

    def renew_pattern(self) -> None:
        """Follow the mask, which has changed."""
        if self.pattern is not None:
            self.index()

    def adopt(self, ways: Mapping[int, Ways]) -> None:
        """Run inputs of these sizes so from now on."""
        self.ways |= ways
        wanted = any(map(any, self.ways.values()))
        if not wanted:
            self.pattern = None  # Of no use until another size is timed.
        elif self.pattern is None:
            self.index()

    def run(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        training: bool,
        dense: Callable[[], Tensor],
    ) -> Tensor:
        """The layer's output.

        Args:
            x: Input of four dimensions, or rows of two.
            weight: The masked weight.
            bias: The bias, or None.
            training: Whether the layer is in training mode.
            dense: What the layer does of its own.
        """
        if not self._can(x, weight):
            return dense()
        # Only in training are weights outside the mask known to be zero: an
        # average that EMAHook puts in their place has others, and changes
        # neither address nor version of the tensor.
        learns = training and torch.is_grad_enabled()
        ways = self._choose(x, weight, bias, learns)
        if not learns:
            ways = (ways[0], False, False)
        elif self.dense_gradient:
            ways = (*ways[:2], False)
        if ways == DENSE:
            return dense()
        assert self.pattern is not None
        return masked_layer(
            x, weight, bias, self.pattern, self.numbers, ways, not learns
        )

    def _can(self, x: Tensor, weight: Tensor) -> bool:
        """Whether this input can run sparse."""
        if torch.is_autocast_enabled(x.device.type):
            self.reason = 'under autocast'
            return False
        return (
            x.dtype == weight.dtype == torch.float32
            and x.device.type == weight.device.type == 'cpu'
            and x.ndim == self.mask.ndim
            and x.numel() > 0
            and not torch.jit.is_tracing()
        )

    def _choose(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, learns: bool
    ) -> Ways:
        if not self.auto:
            return SPARSE
        size = size_of_input(x)
        if size in self.ways:
            return self.ways[size]
        if not learns:
            # Nearest in size; tests are no time for timing.
            if not self.ways:
                return DENSE
            return self.ways[min(self.ways, key=lambda s: abs(s - size))]
        if size not in self.timings and not torch.compiler.is_compiling():
            self.timings[size] = self._time(x, weight, bias)
        return DENSE

    def _time(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Timing:
        x, weight = x.detach(), weight.detach()
        if multiplications(x, weight, self.geometry) < SMALLEST:
            return Timing((0.0,) * 3, (0.0,) * 3)
        pattern = self.pattern or self.index()
        return time_products(x, weight, bias, pattern, self.geometry)


def size_of_input(x: Tensor) -> int:
    """A number that changes where an input grows by a factor of four."""
    return (x.numel() // x.shape[1]).bit_length() // 2


class _MaskedLayer(nn.Module):
    """Mixin of the class that an attached layer has for the time being.

    A copy, and what is unpickled, is of the class that the layer had.
    """

    plain_class: Any
    execution: Any

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Of all protocols the first alone lets a class stand for another.
        reduced: Any = super().__reduce_ex__(0)
        make, (_, *rest), state = reduced
        state = {k: v for k, v in state.items() if k != 'execution'}
        return make, (self.plain_class, *rest), state


class _MaskedConv2d(_MaskedLayer, nn.Conv2d):
    execution: Execution

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        return self.execution.run(
            input,
            weight,
            bias,
            self.training,
            lambda: nn.Conv2d._conv_forward(self, input, weight, bias),
        )


class _MaskedLinear(_MaskedLayer, nn.Linear):
    execution: Execution

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])
        out = self.execution.run(
            rows,
            self.weight,
            self.bias,
            self.training,
            lambda: nn.functional.linear(rows, self.weight, self.bias),
        )
        return out.view(*input.shape[:-1], out.shape[-1])


@dataclass
class Company:
    """How layers without masks are run, whose inputs are wide.

    Attributes:
        sparse: Whether any masked layer runs sparse; else the network does
            what it does without an execution, bit for bit.
    """

    sparse: bool

    def runs(self) -> bool:
        """Whether they run on kernels now; a trace is of PyTorch alone."""
        return self.sparse and not torch.jit.is_tracing()


class _WideMaxPool2d(_MaskedLayer, nn.MaxPool2d):
    execution: Company

    def forward(self, input: Tensor) -> Tensor:
        if not self.execution.runs():
            return super().forward(input)
        return max_pool2d(
            input,
            pair(self.kernel_size),
            pair(self.stride),
            pair(self.padding),
        )


class _WideReLU(_MaskedLayer, nn.ReLU):
    execution: Company

    def forward(self, input: Tensor) -> Tensor:
        if not self.execution.runs():
            return super().forward(input)
        return relu(input, self.inplace)


class _WideBatchNorm2d(_MaskedLayer, nn.BatchNorm2d):
    execution: Company

    def forward(self, input: Tensor) -> Tensor:
        own: Any = self
        out: Tensor | None = None
        affine = own.weight, own.bias
        if self.execution.runs() and self.training:
            found = batch_norm(input, *affine, self.eps)
            if found is not None:
                out, mean, variance = found
                if self.track_running_stats and own.running_mean is not None:
                    self._follow(mean, variance, input.numel() / len(mean))
        elif self.execution.runs() and own.running_mean is not None:
            known = own.running_mean, own.running_var
            out = frozen_batch_norm(input, *affine, *known, self.eps)
        return super().forward(input) if out is None else out

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """Move the running statistics, as PyTorch's layer does."""
        own: Any = self
        if own.num_batches_tracked is not None:
            own.num_batches_tracked.add_(1)
        rate = self.momentum
        if rate is None:  # The average of all batches.
            rate = 1 / float(own.num_batches_tracked)
        unbiased = variance * (count / (count - 1))
        own.running_mean.mul_(1 - rate).add_(mean, alpha=rate)
        own.running_var.mul_(1 - rate).add_(unbiased, alpha=rate)


MIXINS: dict[type, type] = {
    nn.Conv2d: _MaskedConv2d,
    nn.Linear: _MaskedLinear,
    nn.MaxPool2d: _WideMaxPool2d,
    nn.BatchNorm2d: _WideBatchNorm2d,
    nn.ReLU: _WideReLU,
}


@cache
def _masked_class(plain: Any) -> Any:
    """The class of an attached layer, in place of the one that it had."""
    mixin = next(
        mixin for kind, mixin in MIXINS.items() if issubclass(plain, kind)
    )
    # Printed, traced and initialised like the class that it stands for.
    names = {'__module__': plain.__module__, 'plain_class': plain}
    return type(plain.__name__, (mixin, plain), names)


def attach(layer: Any, execution: Any) -> None:
    """Let a layer run through an execution, in place of an earlier one.

    Args:
        layer (nn.Module): Of a kind in :data:`MIXINS`.
        execution (Execution | Company): Of a layer without a mask, its
            network's company.
    """
    detach(layer)
    plain: Any = type(layer)
    layer.__class__ = _masked_class(plain)
    layer.execution = execution


def detach(layer: Any) -> None:
    """Make a layer again what it was."""
    if isinstance(layer, _MaskedLayer):
        layer.__class__ = layer.plain_class
        del layer.execution
