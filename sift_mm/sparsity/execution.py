"""Sparse execution of a network in training."""

import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from sift_mm import validation
from sift_mm.errors import UserError
from sift_mm.kernels import (
    PRODUCTS,
    geometry_of,
    reads_images,
    why_unavailable,
)
from sift_mm.kernels.executed_parameters import attach, detach
from sift_mm.kernels.masked_layers import SPARSE, Choice, Execution
from sift_mm.kernels.unmasked_layers import (
    ExecutedMaxPool2d,
    UnmaskedExecution,
)
from sift_mm.sparsity.masks import MaskSet
from sift_mm.sparsity.processes import world_size

ExecutionMode = Literal['auto', 'sparse', 'dense']


class SparseExecution:
    """Sparse execution of the masked layers of a network.

    It ends with :meth:`detach`, or with the life of this object. Copies of the
    network run dense. Convolutions of images, max-poolings and batch norms
    beside masked layers run on kernels too.

    Args:
        model (nn.Module): Network.
        masks (MaskSet): Masks of the network.
        mode (str): 'auto' runs each product of each layer sparse if a timing
            in the first training step finds it faster; 'sparse' runs all
            products sparse, 'dense' none.

    Raises:
        ValueError: If the mode is unknown, or is 'sparse' and no layer can
            run sparse.
    """

    def __init__(
        self, model: nn.Module, masks: MaskSet, mode: ExecutionMode = 'auto'
    ) -> None:
        validation.read('execution', mode, ExecutionMode)
        self.mode = mode
        self.layers: dict[str, Execution] = {}
        self._stems: set[str] = set()
        self.reasons: dict[str, str] = {}
        self._others = UnmaskedExecution(sparse=mode == 'sparse')
        self._chosen = self._begun = False
        self._level = 0  # Level of the density at the last timing.
        self._on_cpu = any(m.device.type == 'cpu' for m in masks.values())
        if mode == 'dense':
            return
        self._attached: list[tuple[Any, object]] = []
        self._detach = weakref.finalize(self, _detach_all, self._attached)
        self._detach.atexit = False
        try:
            self._attach(model, masks)
            self._level = self._density_level()
        except BaseException:
            self.detach()
            raise
        if mode == 'sparse' and not self._masked():
            self.detach()
            raise UserError(
                "execution='sparse' is not available: the masked layers are "
                f'{_listed(self.reasons) or "in none of its modules"}; use '
                "'auto'."
            )

    def _attach(self, model: nn.Module, masks: MaskSet) -> None:
        names = {id(masks.parameters[name]): name for name in masks}
        seen: set[int] = set()
        others = []
        for prefix, module, key, parameter in _parameters(model):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            detach(parameter)
            if id(parameter) not in names:
                others.append((prefix, module, key, parameter))
                continue
            layer = prefix if key == 'weight' else f'{prefix}.{key}'
            if reason := _why_dense(module, parameter, self.mode):
                self.reasons[layer] = reason
            else:
                mask = masks[names[id(parameter)]]
                self._execute(layer, module, parameter, mask)
        if not self.layers:
            return
        for prefix, module, key, parameter in others:
            if key != 'weight' or type(parameter) is not nn.Parameter:
                continue
            if isinstance(module, nn.BatchNorm2d):
                self._run(parameter, self._others)
            elif reads_images(module) and not _why_dense(
                module, parameter, self.mode
            ):
                self._stems.add(prefix)
                full = torch.ones_like(parameter, dtype=torch.bool)
                self._execute(prefix, module, parameter, full)
        for module in model.modules():
            if type(module) in (nn.MaxPool2d, ExecutedMaxPool2d):
                self._run(module, self._others)

    def _execute(
        self,
        name: str,
        module: nn.Module,
        parameter: nn.Parameter,
        mask: Tensor,
    ) -> None:
        self.layers[name] = Execution(module, mask, self.mode == 'auto')
        self._run(parameter, self.layers[name])

    def _run(
        self, plain: Any, execution: Execution | UnmaskedExecution
    ) -> None:
        # The entry comes first: an interruption in between detaches too.
        self._attached.append((plain, execution))
        attach(plain, execution)

    def _masked(self) -> dict[str, Execution]:
        """Return the masked layers, without convolutions of images."""
        return {
            name: layer
            for name, layer in self.layers.items()
            if name not in self._stems
        }

    def detach(self) -> None:
        """End the execution: all layers are plain again."""
        if self.mode != 'dense':
            self._detach()

    def refresh_patterns(self) -> None:
        """Rebuild the patterns of changed masks.

        Products are timed again each time that the density has halved.
        """
        for layer in self._masked().values():
            layer.refresh()
        if self.mode == 'auto' and self._level != self._density_level():
            self._level = self._density_level()
            for layer in self.layers.values():
                layer.choices, layer.timings = {}, {}
            self._chosen = False

    def _density_level(self) -> int:
        """Return how often the masked layers were halved, rounded down."""
        masks = [layer.mask for layer in self._masked().values()]
        active = sum(int(mask.count_nonzero()) for mask in masks)
        size = sum(mask.numel() for mask in masks)
        return (size // active).bit_length() if active else 0

    def expect_dense_gradient(self, needed: bool) -> None:
        """Set whether the next step reads gradients outside the masks."""
        for layer in self._masked().values():
            layer.dense_gradient = needed

    def update_choices(self, may_wait: bool) -> None:
        """Choose products by new timings; all ranks take those of rank 0.

        All ranks call this after each optimizer step.

        Args:
            may_wait (bool): True if ranks may wait for each other. They always
                wait after the first step.
        """
        self._begun = True
        if self.mode != 'auto' or not self._on_cpu:
            return
        several = world_size() > 1
        if several and self._chosen and not may_wait:
            return
        found = [
            {
                name: {
                    size: timing.choice
                    for size, timing in layer.timings.items()
                    if size not in layer.choices
                }
                for name, layer in self.layers.items()
            }
        ]
        if several:
            distributed.broadcast_object_list(found)
        self._set_choices(found[0])
        self._chosen = True

    def _set_choices(
        self, choices: Mapping[str, Mapping[int, Choice]]
    ) -> None:
        for name, layer in self.layers.items():
            layer.set_choices(choices.get(name, {}))
        self._others.sparse = any(
            any(choice)
            for layer in self.layers.values()
            for choice in layer.choices.values()
        )

    def choices(self) -> dict[str, dict[int, list[bool]]]:
        """Return the choices by layer and size of input, for a checkpoint."""
        return {
            name: {
                size: list(choice) for size, choice in layer.choices.items()
            }
            for name, layer in self.layers.items()
            if layer.choices
        }

    def restore(self, choices: Mapping[str, Mapping[int, Any]]) -> None:
        """Restore saved choices: new timings could give others."""
        if self.mode != 'auto':
            return
        for layer in self.layers.values():
            layer.choices = {}
        self._level = self._density_level()
        self._set_choices(
            {
                name: {size: tuple(each) for size, each in choice.items()}
                for name, choice in choices.items()
            }
        )
        self._chosen = any(layer.choices for layer in self.layers.values())

    def products(self, parameter: str) -> int:
        """Count the products, of three, of a weight that run sparse."""
        prefix, _, key = parameter.rpartition('.')
        layer = self.layers.get(prefix if key == 'weight' else parameter)
        if layer is None or self._reason(layer):
            return 0
        return sum(self._choice(layer))

    def describe(self) -> str:
        """Return a line on the sparse layers, and why others run dense."""
        if self.mode == 'dense':
            return 'Masked layers run dense.'
        masked = self._masked()
        dense = {name: self._reason(layer) for name, layer in masked.items()}
        ran = {
            name: self._choice(layer)
            for name, layer in masked.items()
            if not dense[name]
        }
        sparse = [choice for choice in ran.values() if any(choice)]
        counts = [sum(w[i] for w in sparse) for i in range(len(PRODUCTS))]
        text = (
            f'Sparse execution ({self.mode}): '
            f'{len(sparse)} of {len(masked) + len(self.reasons)} masked layers'
        )
        if sparse:
            products = zip(PRODUCTS, counts, strict=True)
            text += f' ({", ".join(f"{name} {n}" for name, n in products)})'
        for name in sorted(self._stems):
            if any(self._choice(self.layers[name])):
                text += f', and {name}, a convolution of images'
        text += self._seconds()
        reasons = dict(self.reasons)
        for name, layer in masked.items():
            if dense[name]:
                reasons[name] = dense[name]
            elif not any(ran[name]):
                reasons[name] = 'faster dense' if layer.choices else 'untimed'
        return f'{text}; dense: {_listed(reasons)}.' if reasons else f'{text}.'

    def _reason(self, layer: Execution) -> str:
        """Return why a layer ran dense regardless of timings, or ''."""
        if self._begun and not layer.called:
            return 'not used as the weight of conv2d, linear or addmm so far'
        return layer.reason

    @staticmethod
    def _choice(layer: Execution) -> Choice:
        """Return True for each product that runs sparse for some input."""
        if not layer.auto:
            return SPARSE
        found = zip(*layer.choices.values(), strict=True)
        return tuple(map(any, found)) or (False,) * len(PRODUCTS)

    def _seconds(self) -> str:
        """Describe the seconds of the timed products, chosen and dense."""
        dense = chosen = 0.0
        for layer in self.layers.values():
            for size, timing in layer.timings.items():
                choice = layer.choices.get(size, ())
                for way, *both in zip(
                    choice, timing.dense, timing.sparse, strict=False
                ):
                    dense += both[0]
                    chosen += both[way]
        if not dense:
            return ''
        return (
            f', as timed {dense - chosen:.3g} s less a step than dense '
            f'({chosen:.3g} in place of {dense:.3g} s)'
        )


def _parameters(
    model: nn.Module,
) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Yield name of the module, module, name and parameter."""
    for prefix, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            yield prefix, module, key, parameter


def _why_dense(
    module: nn.Module, parameter: nn.Parameter, mode: ExecutionMode
) -> str | None:
    """Return why a module's parameter can never run sparse, or None."""
    kind = type(module)
    layer = isinstance(module, (nn.Conv2d, nn.Linear))
    if parameter.ndim not in (2, 4) or (
        kind.__module__.startswith('torch.nn.modules') and not layer
    ):
        return f'of the kind {kind.__name__}'
    if type(parameter) is not nn.Parameter:
        return f'held by a {type(parameter).__name__}'
    if parameter.device.type != 'cpu':
        return 'on an accelerator, where sparse kernels do not pay'
    if parameter.dtype != torch.float32:
        return f'of {str(parameter.dtype).removeprefix("torch.")}'
    if isinstance(module, nn.Conv2d):
        if module.groups > 1:
            return 'grouped'
        if reason := geometry_of(module).why_not():
            return f'not for the kernels: {reason}'
    if mode == 'auto' and torch.are_deterministic_algorithms_enabled():
        return 'because deterministic algorithms exclude timings'
    # Checked last: kernels are compiled only for a network that needs them.
    if reason := why_unavailable():
        return f'without kernels ({reason})'
    return None


def _detach_all(attached: list[tuple[Any, object]]) -> None:
    for executed, execution in attached:
        # A later execution may have taken over.
        if getattr(executed, 'execution', None) is execution:
            detach(executed)


def _listed(reasons: Mapping[str, str]) -> str:
    """Describe reasons, each with the number of its layers and the first."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        names[reason].append(name)
    return '; '.join(
        f'{len(found)} {reason} ({found[0]}{", ..." if found[1:] else ""})'
        for reason, found in names.items()
    )
