"""A trained network on sparse kernels, for inference.

Each masked layer keeps its nonzeros alone. Where ``torch.fx`` shows what
follows a layer, its batch norm is multiplied into it and ReLU and a residual
sum happen while its outputs are written, since a pass over activations that
are several times as wide costs as much as many multiplications. What cannot
be traced runs layer by layer.
"""

import copy
import inspect
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sift_mm.deploy.folding import altered, fuse, mismatch
from sift_mm.deploy.sparse_layers import (
    FastMaxPool2d,
    SparseConv2d,
    SparseLinear,
)
from sift_mm.errors import Mistake, MistakenCall, MistakenType
from sift_mm.kernels import (
    can_pool,
    geometry_of,
    reads_images,
    why_unavailable,
)
from sift_mm.layers.plain import plain_type

#: Denser layers run dense, but for those that read images: there the dense
#: kernels are as fast.
MAX_DENSITY = 0.6
_LEAVES = (_BatchNorm, nn.MaxPool2d, nn.ReLU, nn.Identity, SparseConv2d)
_IN_PLACE = {operator.iadd, 'add_'}
_SUMS = {operator.add, torch.add, 'add'} | _IN_PLACE
_RELUS = {
    torch.relu,
    torch.relu_,
    nn.functional.relu,
    nn.functional.relu_,
    'relu',
    'relu_',
}


@dataclass
class SparseReport:
    """What runs how in a network on sparse kernels, by module name.

    Args:
        sparse (dict[str, str]): Layers on sparse kernels: density, and what
            was fused into them.
        dense (dict[str, str]): Layers with zeros that stay dense, and why.
        pools (list[str]): Max-poolings on the kernels.
        by_layer (dict[str, str]): Modules that could not be traced, so that
            what is in them runs layer by layer, and why.
    """

    sparse: dict[str, str] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)
    pools: list[str] = field(default_factory=list)
    by_layer: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f'Layers on sparse kernels: {len(self.sparse)}, dense: '
            f'{len(self.dense)}'
        ]
        lines += [
            f'  {name}: sparse, {how}' for name, how in self.sparse.items()
        ]
        lines += [
            f'  {name}: dense, {why}' for name, why in self.dense.items()
        ]
        lines += [f'  {name}: max-pooling, fast' for name in self.pools]
        lines += [
            f'  {name or "the model"}: layer by layer, {why}'
            for name, why in self.by_layer.items()
        ]
        return '\n'.join(lines)


@torch.no_grad()
def to_sparse(
    model: nn.Module, masks: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Put a trained network on sparse kernels, for inference on a CPU.

    Args:
        model (nn.Module): In evaluation mode; it is left as it is.
        masks (Mapping[str, Tensor], optional): Bool masks by the name of the
            weight; by default, what is not zero.

    Returns:
        nn.Module: A copy of equal outputs up to float32 rounding. Its
        ``sparse_report`` says what runs how, and why not; print it.

    Raises:
        ValueError: The model is in training mode, a mask names no weight or
            has another shape, or no layer of it can run sparse.
        RuntimeError: There are no kernels for this machine.
    """
    reason = why_unavailable()
    if reason:
        raise MistakenCall(f'There is no sparse execution here: {reason}.')
    if any(module.training for module in model.modules()):
        raise Mistake(
            'The model is in training mode, and sparse execution of a whole '
            'network is for inference; call model.eval() first.'
        )
    _check_masks(model, masks or {})
    model = copy.deepcopy(model)
    conversion = _Conversion(model, masks or {})
    if all(bool(mask.all()) for mask in conversion.chosen.values()):
        raise Mistake(
            'No layer of the model can run sparse. '
            + (
                str(conversion.report)
                if conversion.report.dense
                else 'Its convolutions and linear layers have no zeros: was '
                'it trained with masks?'
            )
        )
    model = conversion.convert(model, '')
    model.sparse_report = conversion.report  # type: ignore[assignment]
    return model


def _check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    weights = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in weights:
            raise Mistake(f'A mask is for {name!r}, which the model lacks.')
        if mask.shape != weights[name].shape:
            raise Mistake(
                f'The mask of {name!r} has shape {tuple(mask.shape)}, the '
                f'weight {tuple(weights[name].shape)}.'
            )


class _Traced:
    """Runs a module by its optimised graph; takes the place of ``forward``."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph

    def __call__(self, x: Tensor) -> Any:
        if not isinstance(x, Tensor):
            raise MistakenType(
                f'This network on sparse kernels takes a tensor, not a '
                f'{type(x).__name__}.'
            )
        return self.graph(x)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            plain_type(m) is not None
            or isinstance(m, _LEAVES)
            or bool(m._forward_hooks or m._forward_pre_hooks)
            or super().is_leaf_module(m, module_qualified_name)
        )


class _Conversion:
    """Replaces layers of one network, and remembers what it did."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self.report = SparseReport()
        self.uses = Counter(
            m for _, m in model.named_modules(remove_duplicate=False)
        )
        # By the module, not its id, which is free when the module is.
        self.chosen: dict[nn.Module, Tensor] = {}
        for name, module in model.named_modules():
            mask = self._choose(name, module, masks)
            if mask is not None:
                self.chosen[module] = mask

    def _choose(
        self, name: str, layer: Any, masks: Mapping[str, Tensor]
    ) -> Tensor | None:
        """Mask of a layer that is to run sparse."""
        if plain_type(layer) is None:
            return None
        given = masks.get(f'{name}.weight' if name else 'weight')
        mask = layer.weight != 0 if given is None else given
        density = float(mask.float().mean())
        if density == 1 and not reads_images(layer):
            return None
        why = _why_dense(layer, density)
        if why and density < 1:
            self.report.dense[name] = why
        return None if why else mask

    def convert(self, module: nn.Module, name: str) -> nn.Module:
        """Convert a module, as a whole if it can be traced."""
        if can_pool(module):
            self.report.pools.append(name)
            return FastMaxPool2d(module).eval()  # type: ignore[arg-type]
        if module in self.chosen:
            return self.make_sparse(module, self.chosen[module], name)
        concerned = any(m in self.chosen for m in module.modules())
        graph = self._trace(module, name) if concerned else None
        if graph is not None:
            _Fusion(self, module, name, graph).run()
        for child_name, child in list(module.named_children()):
            path = f'{name}.{child_name}' if name else child_name
            new = self.convert(child, path)
            if new is not child:
                module._modules[child_name] = new
        if graph is not None:
            module.__dict__['forward'] = _Traced(fx.GraphModule(module, graph))
        return module

    def _trace(self, module: nn.Module, name: str) -> fx.Graph | None:
        """The graph of a module that takes one tensor."""
        parameters = inspect.signature(module.forward).parameters
        if len(parameters) != 1 or isinstance(module, nn.ModuleList):
            return None
        if any(self.uses[m] > 1 for m in module.modules()):
            # What is shared may be called from elsewhere, unfused.
            self.report.by_layer[name] = 'it shares modules'
            return None
        try:
            return _Tracer().trace(module)
        except Exception as error:  # Whatever forward does with a proxy.
            first = str(error).strip().split('\n')[0]
            self.report.by_layer[name] = f'tracing says: {first}'
            return None

    def make_sparse(self, layer: Any, mask: Tensor, name: str) -> SparseConv2d:
        """What runs in the place of a layer, by its name."""
        weight = layer.weight.detach()
        new = (
            SparseLinear(weight, layer.bias, mask)
            if isinstance(layer, nn.Linear)
            else SparseConv2d(weight, layer.bias, mask, geometry_of(layer))
        )
        self.report.sparse[name] = f'density {float(mask.float().mean()):.3f}'
        return new.eval()


def _why_dense(layer: Any, density: float) -> str | None:
    """Why a plain layer with zeros is not to run sparse, or None."""
    kind, weight = plain_type(layer), layer.weight
    groups = getattr(layer, 'groups', 1)
    if density > MAX_DENSITY and not reads_images(layer):
        return f'a density of {density:.3f} gains nothing'
    if groups > 1:
        return f'it has {groups} groups'
    if kind is not nn.Linear and (
        kind is not nn.Conv2d or layer.padding_mode != 'zeros'
    ):
        return 'it is no convolution over two dimensions with zeros as padding'
    if weight.dtype != torch.float32 or weight.is_cuda:
        return f'its weight is {weight.dtype} on {weight.device}'
    if layer._forward_hooks:
        return 'it has hooks or parametrizations'
    return geometry_of(layer).why_not()


class _Fusion:
    """Fuses what follows the layers of a traced module into them."""

    def __init__(
        self,
        conversion: _Conversion,
        module: nn.Module,
        name: str,
        graph: fx.Graph,
    ) -> None:
        self.conversion = conversion
        self.module = module
        self.name = name
        self.graph = graph
        self.calls = Counter(
            node.target for node in graph.nodes if node.op == 'call_module'
        )

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if isinstance(self._called(node), nn.Identity):
                self._skip(node)
        for node in list(self.graph.nodes):
            layer = self._called(node)
            if plain_type(layer) is None or self.calls[node.target] > 1:
                continue
            mask = self.conversion.chosen.get(layer)
            norm = self._norm_behind(node, layer)
            if norm is not None:
                layer = fuse(layer, self._called(norm))
                self._put(node.target, layer)
                self._put(norm.target, nn.Identity())
                self._skip(norm)
            if mask is not None:
                self._fuse(node, layer, mask, ['norm'] if norm else [])
        self.graph.lint()

    def _called(self, node: fx.Node) -> Any:
        if node.op != 'call_module':
            return None
        return self.module.get_submodule(str(node.target))

    def _put(self, target: Any, new: nn.Module) -> None:
        parent, _, child = str(target).rpartition('.')
        self.module.get_submodule(parent)._modules[child] = new

    def _skip(self, node: fx.Node) -> None:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        self.graph.erase_node(node)

    def _only_user(self, node: fx.Node) -> fx.Node | None:
        users = list(node.users)
        return users[0] if len(users) == 1 else None

    def _norm_behind(self, node: fx.Node, layer: nn.Module) -> fx.Node | None:
        """A batch norm that is the one reader of a convolution."""
        user = self._only_user(node)
        if user is None or plain_type(layer) is not nn.Conv2d:
            return None
        norm = self._called(user)
        fits = (
            self.calls[user.target] == 1
            and mismatch(layer, norm) is None
            and not altered(norm)
        )
        return user if fits else None

    def _is_relu(self, node: fx.Node) -> bool:
        return type(self._called(node)) is nn.ReLU or (
            node.op in ('call_function', 'call_method')
            and node.target in _RELUS
        )

    def _fuse(
        self, node: fx.Node, layer: nn.Module, mask: Tensor, said: list[str]
    ) -> None:
        """Make a layer sparse, with a sum and a ReLU behind it."""
        name = f'{self.name}.{node.target}' if self.name else str(node.target)
        sparse = self.conversion.make_sparse(layer, mask, name)
        self._put(node.target, sparse)
        if isinstance(sparse, SparseLinear):
            return
        total = self._only_user(node)
        if total is not None and self._is_sum(total, node):
            other = next(a for a in total.args if a is not node)
            with self.graph.inserting_before(total):
                fused = self.graph.call_module(
                    str(node.target), (node.args[0], other)
                )
            total.replace_all_uses_with(fused)
            self.graph.erase_node(total)
            self.graph.erase_node(node)
            node = fused
            said.append('sum')
        relu = self._only_user(node)
        if relu is not None and self._is_relu(relu):
            sparse.relu = True
            self._skip(relu)
            said.append('ReLU')
        if said:
            self.conversion.report.sparse[name] += f', with {", ".join(said)}'

    def _is_sum(self, node: fx.Node, layer: fx.Node) -> bool:
        """Whether it adds two tensors of the graph, one of them a layer's."""
        if not (
            node.op in ('call_function', 'call_method')
            and node.target in _SUMS
            and len(node.args) == 2
            and not node.kwargs
            and all(isinstance(a, fx.Node) for a in node.args)
            and node.args[0] is not node.args[1]
        ):
            return False
        changed = node.args[0]
        assert isinstance(changed, fx.Node)
        # Added to in place, something else may be read afterwards.
        return (
            changed is layer
            or node.target not in _IN_PLACE
            or (len(changed.users) == 1 and changed.op != 'placeholder')
        )
