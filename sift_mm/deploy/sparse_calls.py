"""Calls of sparse layers: checks of inputs, execution and timing."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sift_mm.deploy.folding import altered, has_own_methods
from sift_mm.kernels import (
    SMALLEST,
    fastest,
    in_format_of,
    is_overridden,
    sparse_conv2d_fused,
    why_dense,
)

PATTERN = ('row', 'position', 'index')
RELUS = (torch.relu, torch.relu_, F.relu, F.relu_)
#: Multiplications of a timed run; it leaves further images out.
ENOUGH = 1_000_000_000


def dense_weight(layer: Any) -> Tensor:
    """Return the dense weight of a sparse layer, or the one given to it."""
    given = layer._parameters.get('weight')
    if given is not None:
        return given
    source = layer.values, _version(layer.values)
    if layer._dense and _same(layer._dense[:2], source):
        return layer._dense[2]
    # Autograd refuses inference tensors.
    with torch.inference_mode(False), torch.no_grad():
        weight = layer.values.new_zeros(layer.weight_shape.numel())
        where = (layer.index.long(),)
        weight = weight.index_put(where, layer.values)
        weight = weight.view(layer.weight_shape)
        if layer.inputs_first:
            weight = weight.t().contiguous()
    if type(weight) is Tensor and not torch.compiler.is_compiling():
        layer._dense = *source, weight
    return weight


def _version(tensor: Tensor) -> int:
    # Dynamo traces neither.
    if torch.compiler.is_compiling() or tensor.is_inference():
        return -1
    return tensor._version


def _same(found: tuple, source: tuple) -> bool:
    return found[0] is source[0] and found[1] == source[1]


def is_linear(layer: Any) -> bool:
    """Return whether a sparse layer is a linear one."""
    return len(layer.weight_shape) == 2


def is_replaced(layer: Any) -> bool:
    """Return whether a patch or a mode replaces the forward pass."""
    if torch.compiler.is_compiling():
        return False
    patched = layer.inputs_first and is_patched(layer.plain_class)
    return patched or is_overridden()


def is_patched(kind: Any) -> bool:
    """Return whether a class of Conv1D has another forward method.

    A patch has another name, or attributes of what it wraps.
    """
    forward = kind.forward
    return forward.__qualname__ != 'Conv1D.forward' or bool(vars(forward))


def settings_of(layer: Any) -> tuple:
    """Return the attributes that a layer's geometry depends on."""
    names = ('stride', 'padding', 'dilation', 'groups', 'padding_mode')
    return tuple(getattr(layer, name, None) for name in names)


def is_plain(x: Any) -> bool:
    """Return whether x is in a plain forward pass without gradients."""
    return (
        not torch.compiler.is_compiling()
        and isinstance(x, Tensor)
        and not why_dense(x)
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not is_overridden()
    )


def can_run(layer: Any, x: Any) -> bool:
    """Return whether the kernels take an input of a layer, or trace it."""
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
        or settings_of(layer) != layer.settings
        or (
            bias is not None and bias.requires_grad and torch.is_grad_enabled()
        )
    ):
        return False
    channels = layer.weight_shape[1]
    if is_linear(layer):
        return x.ndim > 0 and x.shape[-1] == channels and x.numel() > 0
    return (
        x.ndim == 4
        and x.shape[1] == channels
        and x.numel() > 0
        and min(out_shape(layer, x)) > 0
    )


def out_shape(layer: Any, x: Tensor) -> tuple[int, int, int, int]:
    """Return the shape of the output of a convolution."""
    size = layer.geometry.out_size(x.shape[2], x.shape[3])
    return x.shape[0], layer.weight_shape[0], *size


def is_norm(norm: Any, layer: Any) -> bool:
    """Return whether a module is a batch norm that can be folded."""
    statistics = getattr(norm, 'running_mean', None)
    return (
        type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm)
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
        return type(relu) is nn.ReLU and not altered(relu)
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
    """Return whether one kernel call may replace a layer and the parts behind.

    Args:
        layer (nn.Module): The layer.
        x (Tensor): Input of the layer.
        norm (nn.Module, optional): Module called with the layer's output.
        residual (Tensor, optional): Tensor added to the output.
        relu (nn.Module or function, optional): Called with the sum.
    """
    fused = not (norm is None and residual is None and relu is None)
    if 'values' not in getattr(layer, '_buffers', ()):
        return False  # Dense, now or always.
    if layer._parameters.get('weight') is not None:
        return False  # Another weight is given for the time being.
    choice = None
    if layer.timed and type(x) is Tensor and not torch.compiler.is_compiling():
        choice = layer.choices.get(_size_class(layer, x))
        if choice is False:
            return False  # The checks would cost small layers half their time.
    if has_own_methods(layer) or (fused and altered(layer)):
        return False
    if not can_run(layer, x):
        return False
    if torch.compiler.is_compiling():
        return not fused  # A trace must not depend on values or timings.
    if fused and (
        is_linear(layer)
        or not (norm is None or is_norm(norm, layer))
        or not (relu is None or is_relu(relu))
        or not (residual is None or _can_add(residual, out_shape(layer, x)))
    ):
        return False
    return (
        choice is True
        or not layer.timed
        or _is_faster(layer, x, norm, residual, relu)
    )


def _can_add(residual: Any, shape: tuple) -> bool:
    return is_plain(residual) and residual.shape == shape


def run(
    layer: Any,
    x: Tensor,
    norm: Any = None,
    residual: Tensor | None = None,
    relu: Any = None,
) -> Tensor:
    """Run the kernel, with arguments that :func:`fits` accepted."""
    values, bias = layer.values, layer.bias
    if norm is not None:
        values, bias = _fold(layer, norm)
    linear = is_linear(layer)
    out = sparse_conv2d_fused(
        x.reshape(-1, x.shape[-1]) if linear else x,
        values,
        bias,
        residual,
        relu is not None,
        [getattr(layer, name) for name in PATTERN],
        layer.geometry.numbers(),
        layer.weight_shape[0],
    )
    if linear:
        return out.view(*x.shape[:-1], out.shape[1])
    if layer.channels_last:
        return out.contiguous(memory_format=torch.channels_last)
    return in_format_of(out, x)


def run_dense(layer: Any, x: Tensor) -> Tensor:
    """Run the dense function of a layer."""
    weight = dense_weight(layer)
    if is_linear(layer):
        weight = weight.t() if layer.inputs_first else weight
        return F.linear(x, weight, layer.bias)
    return layer._conv_forward(x, weight, layer.bias)


@torch.no_grad()
def _fold(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Return the values and bias of a layer with its norm folded in, cached.

    The cache compares values: a write to ``.data`` changes no version counter.
    """
    parts = layer.bias, *_parts(norm)
    source = layer.values, (_version(layer.values), norm.eps)
    kept = layer._folded
    if kept and _same(kept[:2], source) and all(map(_equal, kept[2], parts)):
        return kept[3], kept[4]
    with torch.inference_mode(False):
        bias, gain, shift, mean, variance = (
            torch.tensor(float(value), dtype=torch.float64, device='cpu')
            if part is None
            else part.double()
            for part, value in zip(parts, (0, 1, 0, 0, 1), strict=True)
        )
        scale = gain * (variance + norm.eps).rsqrt()
        moved = (bias - mean) * scale + shift
        filters = layer.index.long() // layer.weight_shape[1:].numel()
        values = (layer.values * scale[filters]).float()
        copies = [None if part is None else part.clone() for part in parts]
    layer._folded = *source, copies, values, moved.float()
    return layer._folded[3:]


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _size_class(layer: Any, x: Tensor) -> tuple[int, int]:
    """Return the number of pixels up to a factor of four, and of threads."""
    pixels = x.numel() // layer.weight_shape[1]
    return pixels.bit_length() // 2, torch.get_num_threads()


def _is_faster(
    layer: Any, x: Tensor, norm: Any, residual: Tensor | None, relu: Any
) -> bool:
    """Time a layer on a new size of input; return whether sparse is faster."""
    linear = is_linear(layer)
    key = _size_class(layer, x)
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

    seconds = fastest(dense, lambda: run(layer, x, norm, residual, relu))
    layer.choices[key] = seconds[1] < seconds[0]
    if not any(layer.choices.values()):
        layer._folded = None
    elif all(layer.choices.values()):
        layer._dense = None
    return layer.choices[key]
