"""Operators of networks that run on the meta device, without numbers."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_map_only

# Integers of larger tensors are features, of smaller ones shapes.
SMALL = 64


class _SmallOnHost(TorchFunctionMode):
    """Mode that makes tensors of literals on the CPU, with values."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor):
            kwargs['device'] = 'cpu'
        return func(*args, **kwargs)


class _ShapesKnown(TorchDispatchMode):
    """Mode for models on the meta device whose shapes follow from tensors.

    Small integer tensors stay on the CPU: transformers keep the sizes of
    their feature maps there. An operation with a meta tensor gives a meta
    tensor. A search in a meta tensor finds all places, which costs the most.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        aten = torch.ops.aten
        if func is aten._to_copy.default and _is_small(args[0]):
            kwargs['device'] = torch.device('cpu')
        elif tree_any(_is_meta, (args, kwargs)):
            if func is aten.nonzero.default:
                found = (args[0].numel(), args[0].dim())
                return args[0].new_empty(found, dtype=torch.int64)
            if func is aten._unique2.default:
                # All indices are of the first image or class.
                first = torch.zeros(1, dtype=args[0].dtype, device='cpu')
                return first, torch.empty_like(args[0]).long(), first.long()
            if func is aten._to_copy.default:
                kwargs['device'] = torch.device('meta')
            if func is aten._local_scalar_dense.default and (
                args[0].dtype is torch.bool
            ):
                return True
            if func is aten.index.Tensor:
                args = (args[0], _all_places(args[1]))
            new = (aten.new_zeros.default, aten.new_ones.default)
            if func not in new:
                args, kwargs = tree_map_only(
                    Tensor, lambda t: t.to('meta'), (args, kwargs)
                )
        return func(*args, **kwargs)


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _is_small(tensor: Tensor) -> bool:
    return (
        not tensor.is_meta
        and not tensor.is_floating_point()
        and tensor.numel() <= SMALL
    )


def _all_places(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Return indices of all places instead of boolean masks."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype is not torch.bool:
            places.append(index)
        else:
            one = index.new_empty(index.numel(), dtype=torch.int64)
            places += [one] * index.dim()
    return places


@contextmanager
def plain_operators() -> Iterator[None]:
    """Make a network on the meta device run, with mmcv's operators.

    Deformable convolutions count as plain ones of the same MACs, and NMS keeps
    all boxes. Other operators write into their arguments. Autocast, which the
    meta device lacks, is the CPU's.
    """
    functions: dict[str, Callable[..., Tensor]] = {
        'modulated_deform_conv.ModulatedDeformConv2dFunction': (
            lambda ctx, x, offset, mask, weight, bias, *rest: (
                functional.conv2d(x, weight, bias, *rest[:4])
            )
        ),
        'deform_conv.DeformConv2dFunction': (
            lambda ctx, x, offset, weight, *rest: functional.conv2d(
                x, weight, None, *rest[:4]
            )
        ),
        'nms.NMSop': lambda ctx, boxes, scores, *rest: torch.empty_like(
            scores, dtype=torch.int64
        )[: max(rest[-1], 0) or None],
    }
    autocast = torch.autocast

    def on_cpu(device_type: str, *args: Any, **kwargs: Any) -> Any:
        known = 'cpu' if device_type == 'meta' else device_type
        return autocast(known, *args, **kwargs)

    with ExitStack() as stack, _SmallOnHost(), _ShapesKnown():
        stack.enter_context(mock.patch.object(torch, 'autocast', on_cpu))
        for name, function in functions.items():
            module, _, kind = name.partition('.')
            operator = getattr(sys.modules.get(f'mmcv.ops.{module}'), kind, 0)
            if operator:
                stack.enter_context(
                    mock.patch.object(operator, 'forward', function)
                )
        compiled = sys.modules.get('mmcv._ext')
        for name in dir(compiled):
            if name.endswith('_forward'):
                stack.enter_context(
                    mock.patch.object(compiled, name, lambda *_, **__: None)
                )
        yield
