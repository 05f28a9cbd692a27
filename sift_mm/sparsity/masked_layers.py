"""How the products with a masked weight are run: sparse, dense, timed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from sift_mm.kernels import (
    SMALLEST,
    Geometry,
    Timing,
    is_zero_outside,
    make_pattern,
    multiplications,
    pair,
    sparse_conv2d,
    time_products,
)

Ways = tuple[bool, ...]
SPARSE: Ways = (True, True, True)
DENSE: Ways = (False, False, False)
#: Stride, padding and dilation as ``conv2d`` is given them; () for a linear
#: layer.
Call = tuple[Any, ...]
LINEAR: Call = ()
# Before torch 2.7 nothing tells an export from a compilation.
_is_exporting = getattr(
    torch.compiler, 'is_exporting', torch.compiler.is_compiling
)


# Compiled code guards on both levels itself.
@torch.compiler.assume_constant_result
def _is_transformed() -> bool:
    level = torch._C._functorch.maybe_current_level()
    return level is not None or forward_ad._current_level >= 0


def why_dense(*tensors: Tensor | None) -> str:
    """Return why a call with these tensors has to run dense, or ''."""
    if torch.is_autocast_enabled('cpu'):
        return 'under autocast'
    if torch.jit.is_tracing() or _is_exporting():
        return 'while traced'
    if _is_transformed():
        return 'under torch.func or forward-mode derivatives'
    if not torch.compiler.is_compiling():
        if torch._C._len_torch_dispatch_stack():
            return 'under a dispatch mode'
    for tensor in tensors:
        if tensor is None:
            continue
        kind = type(tensor)
        executed = getattr(tensor, 'execution', None) is not None
        if not executed and kind not in (Tensor, nn.Parameter):
            return f'for a {kind.__name__}'
        if (
            tensor.dtype != torch.float32
            or tensor.device.type != 'cpu'
            or tensor.layout != torch.strided
        ):
            return 'for tensors other than float32 on the CPU'
    return ''


class _Use:
    """Pattern of a mask for one kind of call.

    Args:
        geometry: Of the convolution.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.numbers = geometry.numbers()
        self.pattern: list[Tensor] | None = None

    def index(self, mask: Tensor) -> list[Tensor]:
        """Make the pattern."""
        if mask.ndim == 2:
            mask = mask[..., None, None]
        self.pattern = make_pattern(mask, self.geometry)
        return self.pattern


class Execution:
    """How the products with one masked weight are run.

    Args:
        module: The module that holds the weight. Gradients are sparse only
            where it is in training mode.
        mask: The mask, changed in place by its owner.
        auto: Whether products are timed; else all of them run sparse.

    Attributes:
        ways: Whether each product runs sparse, by size of the input
            (:func:`size_of_input`).
        timings: Timings taken, by the same key.
        dense_gradient: Whether the gradient outside the mask is wanted.
        called: Whether the weight was used so far.
        reason: Why it ran dense the last time, or ''.
    """

    def __init__(self, module: nn.Module, mask: Tensor, auto: bool) -> None:
        self.module = module
        self.mask = mask
        self.auto = auto
        self.ways: dict[int, Ways] = {}
        self.timings: dict[int, Timing] = {}
        self.dense_gradient = False
        self.called = False
        self.reason = ''
        self._uses: dict[Call, _Use] = {}
        self._version = mask._version
        # A compiled network finds the module's own use made.
        call = _call_of(module)
        if call is not None and not _geometry_of(mask, call).why_not():
            use = self._uses[call] = _Use(_geometry_of(mask, call))
            if not auto:
                use.index(mask)

    def refuse(self, reason: str) -> None:
        """Say why a call runs dense."""
        self.called, self.reason = True, reason

    def refresh(self) -> None:
        """Follow the mask, if it has changed."""
        if self._version == self.mask._version:
            return
        for use in self._uses.values():
            if use.pattern is not None:
                use.index(self.mask)
        self._version = self.mask._version

    def adopt(self, ways: Mapping[int, Ways]) -> None:
        """Run inputs of these sizes so from now on."""
        self.ways |= ways
        wanted = any(map(any, self.ways.values()))
        for use in self._uses.values():
            if not wanted:
                use.pattern = None  # Of no use until another size is timed.
            elif use.pattern is None:
                use.index(self.mask)

    def run(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, call: Call
    ) -> Tensor | None:
        """Return the output of a call, or None if PyTorch is to run it.

        Args:
            x: Input of four dimensions, or rows of two.
            weight: The masked weight.
            bias: The bias, or None.
            call: Arguments of the call.
        """
        use = self._use(call)
        reason = why_dense(x, weight, bias) or use.geometry.why_not()
        self.refuse(reason or '')
        if reason or not self._fits(x, weight, bias, use):
            return None
        learns = self.module.training and torch.is_grad_enabled()
        ways = self._choose(use, x, weight, bias, learns)
        if not learns:
            ways = (ways[0], False, False)
        elif self.dense_gradient or _has_listeners(weight):
            ways = (*ways[:2], False)
        if ways == DENSE:
            return None
        compiled = torch.compiler.is_compiling()
        if not compiled:
            self.refresh()
            # An average that EMAHook puts in place of the weights has others
            # outside the mask, and changes neither address nor version.
            if not is_zero_outside(weight, self.mask):
                self.refuse('with nonzeros outside the mask')
                return None
        pattern = use.pattern or use.index(self.mask)
        # A compiled network cannot branch on numbers: the operator does.
        check = compiled and not learns
        return sparse_conv2d(
            x, weight, bias, pattern, use.numbers, ways, check
        )

    def _use(self, call: Call) -> _Use:
        if call not in self._uses:
            self._uses[call] = _Use(_geometry_of(self.mask, call))
        return self._uses[call]

    def _fits(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, use: _Use
    ) -> bool:
        """Return whether shapes fit and leave an output.

        PyTorch has the word on others: an error, or an empty tensor.
        """
        return (
            weight.shape == self.mask.shape
            and x.shape[1] == weight.shape[1]
            and (bias is None or bias.shape == weight.shape[:1])
            and x.numel() > 0
            and (x.ndim == 2 or min(use.geometry.out_size(*x.shape[2:])) > 0)
        )

    def _choose(
        self,
        use: _Use,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        learns: bool,
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
            self.timings[size] = self._time(use, x, weight, bias)
        return DENSE

    def _time(
        self, use: _Use, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Timing:
        x, weight = x.detach(), weight.detach()
        if multiplications(x, weight, use.geometry) < SMALLEST:
            return Timing((0.0,) * 3, (0.0,) * 3)
        self.refresh()
        pattern = use.pattern or use.index(self.mask)
        return time_products(x, weight, bias, pattern, use.geometry)


def size_of_input(x: Tensor) -> int:
    """Return a number that changes where an input grows fourfold."""
    return (x.numel() // x.shape[1]).bit_length() // 2


def _has_listeners(weight: Tensor) -> bool:
    """Return whether hooks of the user's read the gradient of a weight."""
    if torch.compiler.is_compiling():
        return False
    hooks = weight._backward_hooks, weight._post_accumulate_grad_hooks
    return any(hooks)


def _call_of(module: Any) -> Call | None:
    """Return the call that a module makes of its own."""
    if isinstance(module, nn.Linear):
        return LINEAR
    if isinstance(module, nn.Conv2d):
        padding = module.padding
        if module.padding_mode != 'zeros':
            padding = (0, 0)  # It has padded before.
        return module.stride, padding, module.dilation
    return None


def _geometry_of(mask: Tensor, call: Call) -> Geometry:
    if call == LINEAR:
        return Geometry.of((1, 1))
    stride, padding, dilation = call
    kernel = mask.shape[-2], mask.shape[-1]
    return Geometry.of_call(kernel, pair(stride), padding, pair(dilation))
