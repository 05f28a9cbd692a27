"""Layers that hold only their nonzero weights and run on the sparse kernels.

A layer stays the object that it was, with its hooks and attributes; only its
class changes. Inputs that the kernels do not take run through the layer's own
dense function.
"""

from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from sift_mm.deploy.folding import altered
from sift_mm.errors import MistakenCall
from sift_mm.kernels import (
    can_pool,
    geometry_of,
    make_pattern,
    max_pool2d,
    pair,
    sparse_conv2d_fused,
)

PATTERN = ('row', 'position', 'index')
NORM_FORWARDS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)
RELUS = (torch.relu, torch.relu_, F.relu, F.relu_)
_RELU_FORWARD = nn.ReLU.forward
#: Multiplications below which calling an operator costs more than the product.
SMALLEST = 4_000_000
#: Multiplications of a timed run; further images are left out.
ENOUGH = 1_000_000_000
#: Timed runs of each kind (the fastest counts), and seconds for all of them.
ROUNDS, SECONDS = 3, 0.25


class SparseLayer(nn.Module):
    """Mixin of a layer with a masked weight, for inference.

    Reading ``weight`` turns the layer into the dense layer that it was, so
    that code that computes with the weight stays right.
    """

    plain_class: Any
    values: Tensor
    bias: Tensor | None
    weight_shape: torch.Size
    numbers: list[int]
    settings: tuple
    choices: dict[tuple[int, int], bool]
    timed: bool
    # Derived tensors; each is kept with what it was derived from.
    _dense: tuple | None = None
    _folded: tuple | None = None

    @property
    def weight(self) -> Tensor:
        """The dense weight."""
        if torch.compiler.is_compiling():
            return dense_weight(self)  # A trace must not change the layer.
        restore(self)
        return self._parameters['weight']  # type: ignore[return-value]

    @weight.setter
    def weight(self, value: Any) -> None:
        restore(self)
        self.weight = value

    def train(self, mode: bool = True) -> Any:
        """Refuse training mode.

        Raises:
            RuntimeError: If ``mode`` is true.
        """
        if mode:
            raise MistakenCall(
                'A network from to_sparse is for inference; train the '
                'network that it was made from, and convert it again.'
            )
        return super().train(mode)

    def forward(self, input: Tensor) -> Tensor:
        """Run sparse where the kernels take the input, else dense."""
        if not isinstance(self, SparseLayer):
            return self.forward(input)  # A pre-hook has read the weight.
        if fits(self, input):
            return run(self, input)
        return run_dense(self, input)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any
    ) -> None:
        if f'{prefix}weight' in state_dict:  # Of the trained network.
            restore(self)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | dict(_dense=None, _folded=None)

    def __prepare_scriptable__(self) -> nn.Module:
        """Return the dense layer, which TorchScript can compile."""
        layer = self.__new__(type(self))
        layer.__dict__ = self.__dict__ | {
            key: self.__dict__[key].copy()
            for key in ('_buffers', '_parameters')
        }
        restore(layer)
        return layer

    def extra_repr(self) -> str:
        """Return the settings of the layer and its density."""
        density = self.values.numel() / self.weight_shape.numel()
        return f'{super().extra_repr()}, density={density:.3f}'


class SparseConv2d(SparseLayer, nn.Conv2d):
    """Convolution with a masked weight, for inference."""


class SparseLinear(SparseLayer, nn.Linear):
    """Linear layer with a masked weight, for inference."""


class FastMaxPool2d(nn.MaxPool2d):
    """``nn.MaxPool2d`` on the kernels, with bit-identical outputs."""

    def forward(self, input: Tensor) -> Tensor:
        """Pool."""
        if not (can_pool(self) and is_plain(input) and input.ndim == 4):
            return super().forward(input)
        window = self.kernel_size, self.stride, self.padding
        return _in_format_of(input, max_pool2d(input, *map(pair, window)))

    def __prepare_scriptable__(self) -> nn.Module:
        """Return PyTorch's layer, which TorchScript can compile."""
        layer = nn.MaxPool2d(1)
        layer.__dict__ = self.__dict__.copy()
        return layer


def sparsify(layer: Any, mask: Tensor, timed: bool) -> None:
    """Replace the weight of a layer by its nonzeros, in place.

    Args:
        layer (nn.Module): Convolution over two dimensions or linear layer.
        mask (Tensor): Bool of the weight's shape; the weight is zero outside.
        timed (bool): Whether the layer runs sparse only where that is faster.
    """
    weight, geometry = layer.weight.detach(), geometry_of(layer)
    pattern = make_pattern(
        mask if mask.ndim == 4 else mask[..., None, None], geometry, False
    )
    layer.plain_class = type(layer)
    layer.weight_shape = weight.shape
    layer.numbers = geometry.numbers()
    layer.settings = _settings(layer)
    layer.timed, layer.choices = timed, {}
    del layer._parameters['weight']
    for name, part in zip(PATTERN, pattern, strict=True):
        layer.register_buffer(name, part)
    flat = weight.reshape(-1)
    layer.register_buffer('values', flat[pattern[-1].long()])
    linear = isinstance(layer, nn.Linear)
    layer.__class__ = SparseLinear if linear else SparseConv2d


def restore(layer: Any) -> None:
    """Turn a sparse layer into the dense layer that it was, in place."""
    weight = nn.Parameter(dense_weight(layer), requires_grad=False)
    for name in ('values', *PATTERN):
        del layer._buffers[name]
    layer._dense = layer._folded = None
    layer.__class__ = layer.plain_class
    bias = layer._parameters.pop('bias')
    layer._parameters.update(weight=weight, bias=bias)


def dense_weight(layer: Any) -> Tensor:
    """Return the dense weight of a sparse layer."""
    source = layer.values, _version(layer.values)
    if layer._dense and _same(layer._dense[:2], source):
        return layer._dense[2]
    # An inference tensor could not be used where gradients are taken.
    with torch.inference_mode(False), torch.no_grad():
        weight = layer.values.new_zeros(layer.weight_shape.numel())
        where = (layer.index.long(),)
        weight = weight.index_put(where, layer.values)
        weight = weight.view(layer.weight_shape)
    if type(weight) is Tensor and not torch.compiler.is_compiling():
        layer._dense = *source, weight
    return weight


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _same(found: tuple, source: tuple) -> bool:
    return found[0] is source[0] and found[1] == source[1]


def _settings(layer: Any) -> tuple:
    """Return the attributes on which a layer's geometry depends."""
    names = ('stride', 'padding', 'dilation', 'groups', 'padding_mode')
    return tuple(getattr(layer, name, None) for name in names)


def is_plain(x: Any) -> bool:
    """Return whether only a plain forward pass without gradients sees x."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.layout is torch.strided
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.maybe_current_level() is None
        and forward_ad._current_level < 0
        and not torch.jit.is_tracing()
    )


def can_run(layer: Any, x: Any) -> bool:
    """Return whether the kernels take an input of a layer, or its trace."""
    compiling = torch.compiler.is_compiling()
    if compiling:
        traced = not torch.onnx.is_in_onnx_export() and isinstance(x, Tensor)
        if not traced or (torch.is_grad_enabled() and x.requires_grad):
            return False
    elif not is_plain(x):
        return False
    bias = layer.bias
    if (
        torch.is_autocast_enabled('cpu')
        or any(t.dtype != torch.float32 for t in (x, layer.values))
        or any(t.device.type != 'cpu' for t in (x, layer.values))
        or _settings(layer) != layer.settings
        or (
            bias is not None and bias.requires_grad and torch.is_grad_enabled()
        )
    ):
        return False
    channels = layer.weight_shape[1]
    if isinstance(layer, nn.Linear):
        return x.ndim > 0 and x.shape[-1] == channels and x.numel() > 0
    return (
        x.ndim == 4
        and x.shape[1] == channels
        and x.numel() > 0
        and min(out_shape(layer, x)) > 0
    )


def out_shape(layer: Any, x: Tensor) -> tuple[int, int, int, int]:
    """Return the shape of the output of a convolution."""
    height, width = (
        (x.shape[i + 2] + before + after - dilation * (kernel - 1) - 1)
        // stride
        + 1
        for i, (kernel, stride, before, after, dilation) in enumerate(
            (layer.numbers[:5], layer.numbers[5:])
        )
    )
    return x.shape[0], layer.weight_shape[0], height, width


def is_norm(norm: Any, layer: Any) -> bool:
    """Return whether a module is a batch norm that can be folded."""
    statistics = getattr(norm, 'running_mean', None)
    return (
        isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
        and type(norm).forward in NORM_FORWARDS
        and not norm.training
        and not altered(norm)
        and statistics is not None
        and len(statistics) == layer.weight_shape[0]
        and all(t is None or t.dtype == torch.float32 for t in _parts(norm))
        and not (
            torch.is_grad_enabled()
            and any(t is not None and t.requires_grad for t in _parts(norm))
        )
    )


def is_relu(relu: Any) -> bool:
    """Return whether a module or function is a ReLU."""
    if isinstance(relu, nn.ReLU):
        return type(relu).forward is _RELU_FORWARD and not altered(relu)
    return any(relu is function for function in RELUS)


def is_idle(module: Any) -> bool:
    """Return whether calling a module changes nothing."""
    return type(module) is nn.Identity and not altered(module)


def _parts(norm: Any) -> tuple[Tensor | None, ...]:
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


def fits(
    layer: Any,
    x: Any,
    norm: Any = None,
    residual: Any = None,
    relu: Any = None,
) -> bool:
    """Return whether one kernel call is to replace a layer and what follows.

    Args:
        layer (nn.Module): The layer.
        x (Tensor): Input of the layer.
        norm (nn.Module, optional): Module called with the layer's output.
        residual (Tensor, optional): Tensor added to the output.
        relu (nn.Module or function, optional): Called with the sum.
    """
    fused = not (norm is None and residual is None and relu is None)
    if not isinstance(layer, SparseLayer) or (fused and altered(layer)):
        return False
    if not can_run(layer, x):
        return False
    if torch.compiler.is_compiling():
        return not fused  # A trace must not depend on values or timings.
    if fused and (
        isinstance(layer, nn.Linear)
        or not (norm is None or is_norm(norm, layer))
        or not (relu is None or is_relu(relu))
        or not (residual is None or _can_add(residual, out_shape(layer, x)))
    ):
        return False
    return not layer.timed or _is_faster(layer, x, norm, residual, relu)


def _can_add(residual: Any, shape: tuple) -> bool:
    return (
        is_plain(residual)
        and residual.shape == shape
        and residual.dtype == torch.float32
        and residual.device.type == 'cpu'
    )


def run(
    layer: Any,
    x: Tensor,
    norm: Any = None,
    residual: Tensor | None = None,
    relu: Any = None,
) -> Tensor:
    """Run what :func:`fits` accepted."""
    values, bias = layer.values, layer.bias
    if norm is not None:
        values, bias = _fold(layer, norm)
    linear = isinstance(layer, nn.Linear)
    # Rows become the pixels of one image: lanes then are rows.
    image = x.reshape(-1, x.shape[-1]).t()[None, :, None] if linear else x
    out = sparse_conv2d_fused(
        image,
        values,
        bias,
        residual,
        relu is not None,
        [getattr(layer, name) for name in PATTERN],
        layer.numbers,
        layer.weight_shape[0],
    )
    if linear:
        rows = out[0, :, 0].t().contiguous()
        return rows.view(*x.shape[:-1], rows.shape[1])
    return _in_format_of(x, out)


def _in_format_of(x: Tensor, out: Tensor) -> Tensor:
    """Return an output in the memory format of the input, as PyTorch does."""
    last = torch.channels_last
    if x.is_contiguous(memory_format=last) and not x.is_contiguous():
        return out.contiguous(memory_format=last)
    return out


def run_dense(layer: Any, x: Tensor) -> Tensor:
    """Run the dense function of a layer."""
    weight = dense_weight(layer)
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    return layer._conv_forward(x, weight, layer.bias)


@torch.no_grad()
def _fold(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Return the values and the bias of a layer with its norm folded in.

    They are kept until a value that they depend on changes.
    """
    parts = layer.bias, *_parts(norm)
    source = layer.values, (_version(layer.values), norm.eps)
    kept = layer._folded
    if kept and _same(kept[:2], source) and all(map(_equal, kept[2], parts)):
        return kept[3], kept[4]
    with torch.inference_mode(False):
        bias, gain, shift, mean, variance = (
            None if part is None else part.double() for part in parts
        )
        scale = (variance + norm.eps).rsqrt()  # type: ignore[operator]
        scale = scale if gain is None else scale * gain
        moved = -mean if bias is None else bias - mean  # type: ignore
        moved = moved * scale
        moved = moved if shift is None else moved + shift
        filters = layer.index.long() // layer.weight_shape[1:].numel()
        values = (layer.values * scale[filters]).float()
        copies = [None if part is None else part.clone() for part in parts]
    layer._folded = *source, copies, values, moved.float()
    return layer._folded[3:]


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _is_faster(
    layer: Any, x: Tensor, norm: Any, residual: Tensor | None, relu: Any
) -> bool:
    """Return whether a layer is faster sparse; timed once a size of input.

    A size is the number of pixels up to a factor of four; the choice also
    depends on the number of threads.
    """
    linear = isinstance(layer, nn.Linear)
    pixels = x.numel() // layer.weight_shape[1]
    key = pixels.bit_length() // 2, torch.get_num_threads()
    if key in layer.choices:
        return layer.choices[key]
    if linear:
        x = x.reshape(-1, x.shape[-1])
        work = len(x) * layer.weight_shape.numel()
    else:
        images, _, height, width = out_shape(layer, x)
        work = images * height * width * layer.weight_shape.numel()
    if work < SMALLEST:
        layer.choices[key] = False
        return False
    part = min(len(x), -(-len(x) * ENOUGH // work))
    x, residual = x[:part], None if residual is None else residual[:part]

    def dense() -> None:
        out = run_dense(layer, x)
        out = out if norm is None else norm(out)
        out = out if residual is None else out + residual
        if relu is not None:
            out.relu_()

    best = [float('inf')] * 2
    start = perf_counter()
    for done in range(ROUNDS):
        for i, timed in enumerate(
            (dense, lambda: run(layer, x, norm, residual, relu))
        ):
            begin = perf_counter()
            timed()
            best[i] = min(best[i], perf_counter() - begin)
        if done and perf_counter() - start > SECONDS:
            break
    layer.choices[key] = best[1] < best[0]
    if not any(layer.choices.values()):
        layer._folded = None
    elif all(layer.choices.values()):
        layer._dense = None
    return layer.choices[key]
