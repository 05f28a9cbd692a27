"""Layers that hold only their nonzero weights and run on the sparse kernels.

A layer keeps its identity, hooks and attributes; only its class changes.
Inputs that the kernels do not take run through the layer's own dense function.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sift_mm.deploy import sparse_calls as calls
from sift_mm.deploy.sparse_calls import PATTERN, dense_weight
from sift_mm.errors import UserCallError
from sift_mm.kernels import (
    Geometry,
    geometry_of,
    is_channels_last,
    make_pattern,
)
from sift_mm.kernels.unmasked_layers import (
    ExecutedMaxPool2d,
    UnmaskedExecution,
)
from sift_mm.layers.plain import filters_of
from sift_mm.orientation import inputs_first


class SparseLayer(nn.Module):
    """Mixin of a layer with a masked weight, for inference.

    Reading ``weight`` turns the layer back into its dense layer, so that code
    that computes with the weight stays right.
    """

    plain_class: Any
    values: Tensor
    weight_shape: torch.Size
    geometry: Geometry
    inputs_first: bool
    channels_last: bool
    settings: tuple
    choices: dict[tuple[int, int], bool]
    timed: bool
    # Derived tensors, each with the tensors that it was derived from.
    _dense: tuple | None = None
    _folded: tuple | None = None

    @property
    def weight(self) -> Tensor:
        """The dense weight."""
        given = self._parameters.get('weight')
        if given is not None:
            return given
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
            raise UserCallError(
                'A network from to_sparse is for inference; train the '
                'network that it was made from, and convert it again.'
            )
        return super().train(mode)

    def forward(self, input: Tensor) -> Tensor:
        """Run sparse where the kernels take the input, else dense."""
        if not isinstance(self, SparseLayer):
            return self.forward(input)  # A pre-hook read the weight.
        if isinstance(input, Tensor) and calls.is_replaced(self):
            return self.__prepare_scriptable__().forward(input)
        if calls.fits(self, input):
            return calls.run(self, input)
        return calls.run_dense(self, input)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any
    ) -> None:
        if f'{prefix}weight' in state_dict:  # State of the dense network.
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
        settings = super().extra_repr()
        return ', '.join(filter(None, (settings, f'density={density:.3f}')))


class SparseConv2d(SparseLayer, nn.Conv2d):
    """Convolution with a masked weight, for inference."""


class SparseLinear(SparseLayer, nn.Linear):
    """Linear layer with a masked weight, for inference."""


class SparseConv1D(SparseLayer):
    """Conv1D of transformers with a masked weight, for inference."""


class FastMaxPool2d(ExecutedMaxPool2d):
    """``nn.MaxPool2d`` on the kernels, with bit-identical outputs."""

    execution = UnmaskedExecution(sparse=True)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Copies and pickles stay fast.
        return nn.Module.__reduce_ex__(self, protocol)


def sparsify(layer: Any, mask: Tensor, timed: bool) -> None:
    """Replace the weight of a layer by its active weights, in place.

    Args:
        layer (nn.Module): Convolution over two dimensions or linear layer.
        mask (Tensor): Bool of the weight's shape; the weight is zero outside.
        timed (bool): Whether the layer runs sparse only if that is faster.
    """
    weight = filters_of(layer).detach()
    layer.inputs_first = inputs_first(layer)
    mask = mask.t() if layer.inputs_first else mask
    layer.plain_class = type(layer)
    layer.weight_shape = weight.shape
    layer.geometry = geometry_of(layer)
    taps = mask if mask.ndim == 4 else mask[..., None, None]
    pattern = make_pattern(taps, layer.geometry, False)
    layer.channels_last = is_channels_last(weight)
    layer.settings = calls.settings_of(layer)
    layer.timed, layer.choices = timed, {}
    # Not removed: torch.func.functional_call puts another weight in its place.
    layer._parameters['weight'] = None
    for name, part in zip(PATTERN, pattern, strict=True):
        layer.register_buffer(name, part)
    flat = weight.reshape(-1)
    layer.register_buffer('values', flat[pattern[-1].long()])
    layer.__class__ = (
        SparseConv1D
        if layer.inputs_first
        else SparseLinear
        if isinstance(layer, nn.Linear)
        else SparseConv2d
    )


def restore(layer: Any) -> None:
    """Turn a sparse layer back into its dense layer, in place."""
    weight = nn.Parameter(dense_weight(layer), requires_grad=False)
    for name in ('values', *PATTERN):
        del layer._buffers[name]
    layer._dense = layer._folded = None
    layer.__class__ = layer.plain_class
    bias = layer._parameters.pop('bias')
    layer._parameters.update(weight=weight, bias=bias)
