"""Sparse execution of a network in training: which layers, and how."""

import weakref
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from sift_mm import arguments
from sift_mm.errors import Mistake
from sift_mm.kernels import (
    PRODUCTS,
    can_normalize,
    can_pool,
    can_rectify,
    geometry_of,
    reads_images,
    why_unavailable,
)
from sift_mm.sparsity.agreement import world_size
from sift_mm.sparsity.masked_layers import (
    SPARSE,
    Company,
    Execution,
    Ways,
    attach,
    detach,
    why_dense,
)
from sift_mm.sparsity.masks import MaskSet

ExecutionMode = Literal['auto', 'sparse', 'dense']


class SparseExecution:
    """Runs the masked layers of a network through the sparse operators.

    Until :meth:`detach`, or until this object is gone. A copy of the network
    runs as if there were no such thing. Where there are such layers, what is
    wide beside them runs on kernels too: a convolution of images, max-pooling,
    batch norm and ReLU.

    Args:
        model (nn.Module): The network.
        masks (MaskSet): Its masks. Weights outside them have to be zero
            whenever a layer is in training mode.
        mode (str): 'auto': each product of each layer runs sparse where a
            timing in the first training step says that this is faster;
            'sparse': all of them do; 'dense': none.

    Raises:
        ValueError: If the mode is unknown, or is 'sparse' where no layer can
            run so.
    """

    def __init__(
        self, model: nn.Module, masks: MaskSet, mode: ExecutionMode = 'auto'
    ) -> None:
        arguments.read('execution', mode, ExecutionMode)
        self.mode = mode
        self.layers: dict[str, Execution] = {}
        self._stems: set[str] = set()
        self.reasons: dict[str, str] = {}
        self._company = Company(sparse=mode == 'sparse')
        self._chosen = False
        self._on_cpu = any(m.device.type == 'cpu' for m in masks.values())
        if mode == 'dense':
            return
        names = {id(masks.parameters[name]): name for name in masks}
        self._attached: list[tuple[nn.Module, object]] = []
        others = []
        for prefix, module in model.named_modules():
            name = names.get(id(getattr(module, 'weight', None)))
            if name is None:
                others.append((prefix, module))
                continue
            detach(module)
            if reason := _why_dense(module, mode):
                self.reasons[prefix] = reason
            else:
                self._attach_layer(prefix, module, masks[name])
        if self._attached:
            for prefix, module in others:
                self._attach_other(prefix, module)
        self._detach = weakref.finalize(self, _detach_all, self._attached)
        self._detach.atexit = False
        if mode == 'sparse' and not self._attached:
            raise Mistake(
                "execution='sparse' is not to be had, all masked layers are "
                f"{_listed(self.reasons) or 'of other kinds'}; use 'auto'."
            )

    def _attach(self, module: nn.Module, execution: object) -> None:
        attach(module, execution)
        self._attached.append((module, execution))

    def _attach_layer(self, name: str, layer: Any, mask: Tensor) -> None:
        self.layers[name] = Execution(
            mask, geometry_of(layer), self.mode == 'auto'
        )
        self._attach(layer, self.layers[name])

    def _attach_other(self, name: str, module: Any) -> None:
        """Of wide activations these take as long as a few convolutions."""
        detach(module)
        if any(can(module) for can in (can_pool, can_normalize, can_rectify)):
            self._attach(module, self._company)
        elif reads_images(module) and not _why_dense(module, self.mode):
            self._stems.add(name)
            full = torch.ones_like(module.weight, dtype=torch.bool)
            self._attach_layer(name, module, full)

    def _masked(self) -> dict[str, Execution]:
        """The layers that have a mask of their own."""
        return {
            name: layer
            for name, layer in self.layers.items()
            if name not in self._stems
        }

    def detach(self) -> None:
        """Make all layers again what they were."""
        if self.mode != 'dense':
            self._detach()

    def follow_masks(self) -> None:
        """To be called when masks have changed."""
        for layer in self._masked().values():
            layer.renew_pattern()

    def expect(self, dense_gradient: bool) -> None:
        """Say whether the next step reads gradients outside the masks."""
        for layer in self._masked().values():
            layer.dense_gradient = dense_gradient

    def adopt(self, may_wait: bool) -> None:
        """Run from now on as new timings say; on all ranks those of rank 0.

        To be called after each optimizer step, by all ranks.

        Args:
            may_wait (bool): Whether ranks may wait for each other. They do
                after the first step in any case.
        """
        if self.mode != 'auto' or not self._on_cpu:
            return
        several = world_size() > 1
        if several and self._chosen and not may_wait:
            return
        found = [
            {
                name: {
                    size: timing.ways
                    for size, timing in layer.timings.items()
                    if size not in layer.ways
                }
                for name, layer in self.layers.items()
            }
        ]
        if several:
            distributed.broadcast_object_list(found)
        self._adopt(found[0])
        self._chosen = True

    def _adopt(self, choices: Mapping[str, Mapping[int, Ways]]) -> None:
        for name, layer in self.layers.items():
            layer.adopt(choices.get(name, {}))
        self._company.sparse = any(
            any(ways)
            for layer in self.layers.values()
            for ways in layer.ways.values()
        )

    def choices(self) -> dict[str, dict[int, list[bool]]]:
        """What was chosen, for a checkpoint: by layer and size of input."""
        return {
            name: {size: list(ways) for size, ways in layer.ways.items()}
            for name, layer in self.layers.items()
            if layer.ways
        }

    def restore(self, choices: Mapping[str, Mapping[int, Any]]) -> None:
        """Choose as before; a clock would not give the same again."""
        if self.mode != 'auto':
            return
        for layer in self.layers.values():
            layer.ways = {}
        self._adopt(
            {
                name: {size: tuple(each) for size, each in ways.items()}
                for name, ways in choices.items()
            }
        )
        self._chosen = any(layer.ways for layer in self.layers.values())

    def describe(self) -> str:
        """One line: how many layers and products run sparse, and why not."""
        if self.mode == 'dense':
            return 'Masked layers run dense.'
        masked = self._masked()
        ran = {
            name: self._ways(layer)
            for name, layer in masked.items()
            if not layer.reason
        }
        sparse = [ways for ways in ran.values() if any(ways)]
        counts = [sum(w[i] for w in sparse) for i in range(len(PRODUCTS))]
        text = (
            f'Sparse execution ({self.mode}): '
            f'{len(sparse)} of {len(masked) + len(self.reasons)} masked layers'
        )
        if sparse:
            products = zip(PRODUCTS, counts, strict=True)
            text += f' ({", ".join(f"{name} {n}" for name, n in products)})'
        for name in sorted(self._stems):
            if any(self._ways(self.layers[name])):
                text += f', and {name}, which reads images'
        text += self._seconds()
        reasons = dict(self.reasons)
        for name, layer in masked.items():
            if layer.reason:
                reasons[name] = layer.reason
            elif not any(ran[name]):
                reasons[name] = 'faster so' if layer.ways else 'not timed'
        return f'{text}; dense: {_listed(reasons)}.' if reasons else f'{text}.'

    @staticmethod
    def _ways(layer: Execution) -> Ways:
        """Products that run sparse at any size of input."""
        if not layer.auto:
            return SPARSE
        found = zip(*layer.ways.values(), strict=True)
        return tuple(map(any, found)) or (False,) * len(PRODUCTS)

    def _seconds(self) -> str:
        """Words on the seconds of the timed products, in the dense way too."""
        dense = chosen = 0.0
        for layer in self.layers.values():
            for size, timing in layer.timings.items():
                ways = layer.ways.get(size, ())
                for way, *both in zip(
                    ways, timing.dense, timing.sparse, strict=False
                ):
                    dense += both[0]
                    chosen += both[way]
        if not dense:
            return ''
        return (
            f', as timed {dense - chosen:.3g} s less a step than dense '
            f'({chosen:.3g} in place of {dense:.3g} s)'
        )


def _why_dense(module: nn.Module, mode: ExecutionMode) -> str | None:
    if not isinstance(module, (nn.Conv2d, nn.Linear)):
        return f'of the kind {type(module).__name__}'
    # Nothing is compiled for a network that could not run sparse.
    if reason := why_dense(module):
        return reason
    if mode == 'auto' and torch.are_deterministic_algorithms_enabled():
        return 'since deterministic algorithms are asked for, and a clock not'
    if reason := why_unavailable():
        return f'without kernels ({reason})'
    return None


def _detach_all(attached: list[tuple[nn.Module, object]]) -> None:
    for module, execution in attached:
        # It may run through a later one by now.
        if getattr(module, 'execution', None) is execution:
            detach(module)


def _listed(reasons: Mapping[str, str]) -> str:
    """Reasons, each with the number of its layers and the first of them."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        names[reason].append(name)
    return '; '.join(
        f'{len(found)} {reason} ({found[0]}{", ..." if found[1:] else ""})'
        for reason, found in names.items()
    )
