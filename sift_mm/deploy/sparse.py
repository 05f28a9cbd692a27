"""Sparse execution of a trained network, for inference.

Masked layers keep only their nonzeros. A batch norm, a residual sum and a ReLU
behind a convolution are part of its kernel: a separate pass over wide
activations costs as much as many multiplications (:mod:`.fusion`).
"""

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sift_mm.checkpoint.state import weight_of
from sift_mm.deploy.folding import altered, has_own_methods
from sift_mm.deploy.fusion import fuse
from sift_mm.deploy.sparse_calls import is_patched
from sift_mm.deploy.sparse_layers import (
    FastMaxPool2d,
    SparseLayer,
    sparsify,
)
from sift_mm.errors import UserCallError, UserError, UserTypeError
from sift_mm.kernels import geometry_of, reads_images, why_unavailable
from sift_mm.layers.plain import plain_type
from sift_mm.orientation import inputs_first

#: Density above which dense kernels are as fast, except for layers that read
#: images.
MAX_DENSITY = 0.6
SparseMode = Literal['auto', 'sparse']


@dataclass
class SparseReport:
    """Report of the execution of each layer of a network on sparse kernels.

    Args:
        layers (dict[str, nn.Module]): Layers that can run sparse, by name.
        fused (dict[str, str]): Parts that are fused into them.
        kept (dict[str, str]): Reasons of layers with zeros that stay dense.
        pools (list[str]): Max-poolings on the kernels.
    """

    layers: dict[str, Any] = field(default_factory=dict)
    fused: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    pools: list[str] = field(default_factory=list)

    @property
    def sparse(self) -> dict[str, str]:
        """Density and fused parts of each layer on sparse kernels."""
        found = {}
        for name, layer in self.layers.items():
            if name in self.dense:
                continue
            density = layer.values.numel() / layer.weight_shape.numel()
            fused = self.fused.get(name)
            more = f', with {fused}' if fused else ''
            found[name] = f'density {density:.3f}{more}'
        return found

    @property
    def dense(self) -> dict[str, str]:
        """Reason of each layer with zeros that runs dense."""
        found = dict(self.kept)
        for name, layer in self.layers.items():
            if not isinstance(layer, SparseLayer):
                found[name] = 'its weight was read'
            elif layer.choices and not any(layer.choices.values()):
                found[name] = 'faster so, as timed'
        return found

    def __str__(self) -> str:
        sparse, dense = self.sparse, self.dense
        lines = [
            f'Layers on sparse kernels: {len(sparse)}, dense: {len(dense)}'
        ]
        lines += [f'  {name}: sparse, {how}' for name, how in sparse.items()]
        lines += [f'  {name}: dense, {why}' for name, why in dense.items()]
        lines += [f'  {name}: max-pooling, fast' for name in self.pools]
        return '\n'.join(lines)


@torch.no_grad()
def to_sparse(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    execution: SparseMode = 'auto',
) -> nn.Module:
    """Put a trained network on sparse kernels, for inference on a CPU.

    Args:
        model (nn.Module): Network in evaluation mode; it does not change.
        masks (Mapping[str, Tensor], optional): Bool masks by the name of the
            weight; by default, the nonzero weights are active.
        execution (str): 'auto': each layer is timed at the first input of a
            size and runs sparse if that is faster; 'sparse': all layers run
            sparse that can.

    Returns:
        nn.Module: A copy of equal outputs up to float32 rounding, whose
        parameters take no gradients. Its ``sparse_report``, to print, lists
        sparse and dense layers with reasons. Inputs that the kernels do not
        take (another type or device, autocast, gradients) run dense.

    Raises:
        ValueError: The model is in training mode, a mask names no weight or
            has another shape, or no layer of it can run sparse.
        TypeError: The masks are not a mapping.
        RuntimeError: There are no kernels for this machine.
    """
    if execution not in get_args(SparseMode):
        raise UserError(
            f"execution is {execution!r}; it has to be 'auto' or 'sparse'."
        )
    reason = why_unavailable()
    if reason:
        raise UserCallError(f'There is no sparse execution here: {reason}.')
    if any(module.training for module in model.modules()):
        raise UserError(
            'The model is in training mode, and sparse execution of a whole '
            'network is for inference; call model.eval() first.'
        )
    masks = {} if masks is None else masks
    _check_masks(model, masks)
    # Tensors made in inference mode could not be used outside of it.
    with torch.inference_mode(False):
        model = copy.deepcopy(model).requires_grad_(False)
        report = SparseReport()
        chosen = _choose(model, masks, report)
        if all(bool(mask.all()) for _, mask in chosen.values()):
            raise UserError(_nothing(report))
        for name, (layer, mask) in chosen.items():
            sparsify(layer, mask, timed=execution == 'auto')
            report.layers[name] = layer
        _convert(model, report)
    model.sparse_report = report  # type: ignore[assignment]
    return model


def _check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    if not isinstance(masks, Mapping):
        raise UserTypeError(
            f'masks is a {type(masks).__name__}; give bool masks by the name '
            'of the weight, or leave it out.'
        )
    weights = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        weight_of(weights, name, mask)


def _nothing(report: SparseReport) -> str:
    if report.kept:
        return f'No layer of the model can run sparse. {report}'
    return (
        'No layer of the model can run sparse. Its convolutions and linear '
        'layers have no zeros: was it trained with masks?'
    )


def _choose(
    model: nn.Module, masks: Mapping[str, Tensor], report: SparseReport
) -> dict[str, tuple[Any, Tensor]]:
    """Return the layers that can run sparse, with their masks, by name."""
    # A tied weight has other readers.
    owners = Counter(
        id(weight)
        for module in model.modules()
        for weight in module._parameters.values()
    )
    chosen = {}
    for name, layer in model.named_modules():
        weight: Any = layer._parameters.get('weight')
        if plain_type(layer) is None or weight is None:
            continue
        given = masks.get(f'{name}.weight' if name else 'weight')
        mask = weight != 0 if given is None else given.bool()
        density = float(mask.float().mean()) if mask.numel() else 1.0
        if density == 1 and not reads_images(layer):
            continue
        why = _why_dense(layer, weight, mask, density)
        if owners[id(weight)] > 1:
            why = 'its weight is also used elsewhere'
        if why is None:
            chosen[name] = layer, mask
        elif density < 1:
            report.kept[name] = why
    return chosen


def _why_dense(
    layer: Any, weight: Tensor, mask: Tensor, density: float
) -> str | None:
    """Return why a plain layer with zeros has to run dense, or None."""
    kind = plain_type(layer)
    groups = getattr(layer, 'groups', 1)
    if density > MAX_DENSITY and not reads_images(layer):
        return f'a density of {density:.3f} gains nothing'
    if groups > 1:
        return f'it has {groups} groups'
    if not (kind is nn.Linear or inputs_first(layer)) and (
        kind is not nn.Conv2d or layer.padding_mode != 'zeros'
    ):
        return (
            'it is neither a linear layer nor a 2d convolution with zero '
            'padding'
        )
    if type(weight) is not nn.Parameter:
        return f'its weight is a {type(weight).__name__}'
    if weight.dtype != torch.float32 or weight.device.type != 'cpu':
        return f'its weight is {weight.dtype} on {weight.device}'
    patched = inputs_first(layer) and is_patched(type(layer))
    if patched or has_own_methods(layer):
        return 'it has a forward method of its own'
    if bool((weight[~mask] != 0).any()):
        return 'its weight is not zero outside its mask'
    return geometry_of(layer).why_not()


def _convert(model: nn.Module, report: SparseReport) -> None:
    """Put poolings on the kernels, and fuse the parts behind convolutions."""
    names = {layer: name for name, layer in report.layers.items()}
    for name, module in list(model.named_modules()):
        if type(module) is nn.MaxPool2d and not altered(module):
            module.__class__ = FastMaxPool2d
            report.pools.append(name)
        for layer, words in fuse(module).items():
            report.fused[names[layer]] = words
