"""Execution of the products with a masked weight: sparse, dense or timed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from sift_mm.orientation import inputs_first

from .convolution import is_zero_outside
from .geometry import Geometry, pair
from .memory_format import in_format_of
from .ops import sparse_conv2d
from .pattern import make_pattern
from .timing import SMALLEST, Timing, multiplications, time_products

#: For each of ``PRODUCTS``, True to run it sparse.
Choice = tuple[bool, ...]
SPARSE: Choice = (True, True, True)
DENSE: Choice = (False, False, False)
#: Stride, padding and dilation, as ``conv2d`` takes them; () for ``linear``.
Call = tuple[Any, ...]
LINEAR: Call = ()
#: Call of ``addmm``, with a weight of shape (in, out).
ADDMM: Call = ('addmm',)
# Before torch 2.7 an export cannot be told from a compilation.
_is_exporting = getattr(
    torch.compiler, 'is_exporting', torch.compiler.is_compiling
)


# Compiled code has its own guards on both levels.
@torch.compiler.assume_constant_result
def _is_transformed() -> bool:
    level = torch._C._functorch.maybe_current_level()
    return level is not None or forward_ad._current_level >= 0


def why_dense(*tensors: Tensor | None) -> str:
    """Return why a call with these tensors must run dense, or ''."""
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


@dataclass
class _Use:
    """Geometry and pattern of a mask for one kind of call."""

    geometry: Geometry
    transposed: bool
    pattern: list[Tensor] | None = None

    def __post_init__(self) -> None:
        self.numbers = self.geometry.numbers()
        self.why_not = self.geometry.why_not() or ''

    def index(self, mask: Tensor) -> list[Tensor]:
        """Build the pattern of a mask."""
        if mask.ndim == 2:
            mask = mask[..., None, None]
        self.pattern = make_pattern(mask, self.geometry)
        return self.pattern


class Execution:
    """Execution of the products with one masked weight.

    Args:
        module: Module that holds the weight. Gradients are sparse only while
            it is in training mode.
        mask: Mask of the weight, which its owner changes in place.
        auto: True to time products; False to run all of them sparse.

    Attributes:
        choices: Choice by size of the input (:func:`size_of_input`).
        timings: Timings by size of the input.
        dense_gradient: True if the gradient outside the mask is needed.
        called: True once a call has used the weight.
        reason: Why the last call ran dense, or ''.
    """

    def __init__(self, module: nn.Module, mask: Tensor, auto: bool) -> None:
        self.module = module
        self.mask = mask
        self.auto = auto
        self.choices: dict[int, Choice] = {}
        self.timings: dict[int, Timing] = {}
        self.dense_gradient = False
        self.called = False
        self.reason = ''
        self._uses: dict[Call, _Use] = {}
        self._version = mask._version
        # A compiled network must find the pattern of the module's own call.
        call = _call_of(module)
        if call is not None and not _geometry_of(mask, call).why_not():
            use = self._use(call)
            if not auto:
                use.index(mask)

    def refuse(self, reason: str) -> None:
        """Record why a call runs dense."""
        self.called, self.reason = True, reason

    def refresh(self) -> None:
        """Rebuild the patterns if the mask has changed."""
        if self._version == self.mask._version:
            return
        for use in self._uses.values():
            if use.pattern is not None:
                use.index(self.mask)
        self._version = self.mask._version

    def set_choices(self, choices: Mapping[int, Choice]) -> None:
        """Set the choices for inputs of these sizes."""
        self.choices |= choices
        wanted = any(map(any, self.choices.values()))
        for use in self._uses.values():
            if not wanted:
                use.pattern = None  # Not needed until another size is timed.
            elif use.pattern is None:
                use.index(self.mask)

    def run(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, call: Call
    ) -> Tensor | None:
        """Return the output of a call, or None if PyTorch has to run it.

        Args:
            x: Shape (images, channels, height, width) or (rows, features).
            weight: Masked weight.
            bias: Bias, or None.
            call: Stride, padding and dilation, ``LINEAR`` or ``ADDMM``.
        """
        use = self._use(call)
        reason = why_dense(x, weight, bias) or use.why_not
        self.refuse(reason)
        if reason or not self._fits(x, weight, bias, use):
            return None
        learns = self.module.training and torch.is_grad_enabled()
        choice = self._choose(use, x, weight, bias, learns)
        if not learns:
            choice = (choice[0], False, False)
        elif self.dense_gradient or _has_listeners(weight):
            choice = (*choice[:2], False)
        if choice == DENSE:
            return None
        compiled = torch.compiler.is_compiling()
        if not compiled:
            self.refresh()
            # EMAHook swaps in averaged weights, which may be nonzero outside
            # the mask, without a new address or version.
            if not is_zero_outside(weight, self.mask):
                self.refuse('with nonzeros outside the mask')
                return None
        pattern = use.pattern or use.index(self.mask)
        # A compiled network cannot branch on values, so the operator does.
        check = compiled and not learns
        out = sparse_conv2d(
            *(x, weight, bias, pattern, use.numbers),
            *(choice, check, use.transposed),
        )
        return in_format_of(out, x, weight)

    def _use(self, call: Call) -> _Use:
        if call not in self._uses:
            geometry = _geometry_of(self.mask, call)
            self._uses[call] = _Use(geometry, call == ADDMM)
        return self._uses[call]

    def _fits(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, use: _Use
    ) -> bool:
        """Return True if shapes fit and the output is not empty.

        PyTorch runs the other calls, and raises its own errors.
        """
        filters, channels = weight.shape[:2]
        if use.transposed:
            filters, channels = channels, filters
        return (
            weight.shape == self.mask.shape
            and x.shape[1] == channels
            and (bias is None or bias.shape == (filters,))
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
    ) -> Choice:
        if not self.auto:
            return SPARSE
        size = size_of_input(x)
        if size in self.choices:
            return self.choices[size]
        if not learns:
            # Inference is not timed: it takes the choice of the nearest size.
            nearest = min(self.choices, key=lambda s: abs(s - size), default=0)
            return self.choices.get(nearest, DENSE)
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
        layer = x, weight, bias, pattern, use.geometry, use.transposed
        return time_products(*layer)


def size_of_input(x: Tensor) -> int:
    """Return the size class of an input; classes differ by a factor of 4."""
    return (x.numel() // x.shape[1]).bit_length() // 2


def _has_listeners(weight: Tensor) -> bool:
    """Return True if a user's hook reads the gradient of a weight."""
    if torch.compiler.is_compiling():
        return False
    hooks = weight._backward_hooks, weight._post_accumulate_grad_hooks
    return any(hooks)


def _call_of(module: Any) -> Call | None:
    """Return the call that a module makes with its own arguments."""
    if isinstance(module, nn.Linear):
        return LINEAR
    if inputs_first(module):
        return ADDMM
    if isinstance(module, nn.Conv2d):
        padding = module.padding
        if module.padding_mode != 'zeros':
            padding = (0, 0)  # The module pads before the call.
        return module.stride, padding, module.dilation
    return None


def _geometry_of(mask: Tensor, call: Call) -> Geometry:
    if call in (LINEAR, ADDMM):
        return Geometry.of((1, 1))
    stride, padding, dilation = call
    kernel = mask.shape[-2], mask.shape[-1]
    return Geometry.of_call(kernel, pair(stride), padding, pair(dilation))
