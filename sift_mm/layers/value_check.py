"""Check by values that a network may be widened along given chains.

The network runs with random weights, dense and with its chains twice as wide.
Equal shapes prove nothing: attention that is wider only in q and out has the
right shapes, and shows later tokens to a causal network.
"""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sift_mm.layers.chains import Place
from sift_mm.layers.doubling import (
    arguments,
    double_chain,
    random_copy,
    with_other_middle,
    with_twice_the_batch,
)
from sift_mm.layers.plain import channels_in, size_of

# Relative differences that rounding does not reach.
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-7}
DROPOUTS = {
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
}


class ValueCheck:
    """Comparison of a dense network with a wider one, by values.

    Args:
        module (nn.Module): The network; it does not change.
        example (Tensor | tuple | Mapping): Its input, its positional or its
            keyword arguments. Tensors on the meta device get random values.

    Attributes:
        called (set[str]): Names of the modules that the example runs.
        trains (bool): Whether the network runs in training mode too.

    Raises:
        Exception: Any error of the network in evaluation with the example.
    """

    def __init__(self, module: nn.Module, example: Any) -> None:
        self.dtype = torch.float32
        self.called: set[str] = set()
        with _seeded():
            self.dense: Any = random_copy(module)
            self.inputs = arguments(example)
        # Outputs by mode: of evaluation, and of training if that runs.
        self.expected = {False: self._run(self.dense, False)}
        # Batch norm may need two images in training.
        for inputs in (self.inputs, with_twice_the_batch(self.inputs)):
            with suppress(Exception):  # Any error of a layer.
                trained = self._run(self.dense, True, inputs)
                evaluated = self._run(self.dense, False, inputs)
                self.expected = {False: evaluated, True: trained}
                self.inputs = inputs
                break
        self.trains = True in self.expected
        self._run(self.dense, self.trains, watch=self._note)

    def _note(self, network: nn.Module, hooks: ExitStack) -> None:
        """Note the names of the modules that run."""
        for name, one in network.named_modules():
            hooks.enter_context(
                one.register_forward_pre_hook(
                    lambda *_, name=name: self.called.add(name)
                )
            )

    def objection(self, places: Sequence[Place]) -> str:
        """Return why the network cannot be widened at places, or ''.

        Double precision decides where rounding may be the reason.

        Raises:
            Exception: Any error of the wider network.
        """
        found = self._compare(places)
        if not found or self.dtype == torch.float64:
            return found
        try:
            return self._in_double.objection(places)
        except Exception:  # Some networks have a fixed precision.
            return found

    @cached_property
    def _in_double(self) -> 'ValueCheck':
        other = copy.copy(self)
        other.dtype = torch.float64
        other.dense = copy.deepcopy(self.dense).double()
        other.inputs = tree_map_only(
            Tensor,
            lambda t: t.double() if t.is_floating_point() else t,
            self.inputs,
        )
        other.expected = {
            mode: other._run(other.dense, mode) for mode in self.expected
        }
        return other

    def _compare(self, places: Sequence[Place]) -> str:
        wide = self._doubled(places, reads_new=False)
        for training, expected in self.expected.items():
            if not self._equal(expected, self._run(wide, training)):
                again = self._run(self.dense, training)
                if not self._equal(expected, again):
                    return 'each run gives other outputs'
                when = 'training' if training else 'evaluation'
                return f'unread new channels change the outputs in {when}'
        return self._find_mixing(places) or self._find_leak(places)

    def _equal(self, one: list[Tensor], other: list[Tensor]) -> bool:
        return len(one) == len(other) and all(
            a.shape == b.shape and not self._changed(a, b).any()
            for a, b in zip(one, other, strict=True)
        )

    def _changed(
        self, one: Tensor, other: Tensor, share: float = 1.0
    ) -> Tensor:
        """Return where tensors differ by a share of the tolerance."""
        if not one.is_floating_point():
            return one != other
        finite = one.isfinite() & other.isfinite()
        size = one[finite].abs().max() if finite.any() else 0
        near = (one - other).abs() <= share * TOLERANCES[self.dtype] * size
        same = (one == other) | (one.isnan() & other.isnan())
        return ~torch.where(finite, near, same)

    def _run(
        self,
        network: nn.Module,
        training: bool,
        inputs: Any = None,
        watch: Callable[[nn.Module, ExitStack], None] | None = None,
    ) -> list[Tensor]:
        """Run a network reproducibly, without dropout."""
        network.train(training)
        args, kwargs = tree_map_only(
            Tensor, torch.clone, inputs or self.inputs
        )
        # Running statistics move in training.
        kept = [(one, one._buffers) for one in network.modules()]
        for one, buffers in kept:
            one._buffers = tree_map_only(Tensor, torch.clone, buffers)
        try:
            with ExitStack() as hooks, _seeded(), _NoDropout():
                if watch:
                    watch(network, hooks)
                with torch.no_grad():
                    out = network(*args, **kwargs)
        finally:
            for one, buffers in kept:
                one._buffers = buffers
        return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]

    def _doubled(self, places: Sequence[Place], reads_new: bool) -> nn.Module:
        # The copy shares all weights except those of the chains.
        memo = {id(weight): weight for weight in self.dense.parameters()}
        wide = copy.deepcopy(self.dense, memo)
        with _seeded():
            for place in places:
                double_chain(wide, place, reads_new)
        return wide

    def _find_mixing(self, places: Sequence[Place]) -> str:
        """Find a layer that reads a mixture of a chain's channels.

        Noise on some output channels of a layer may reach only the same
        channels of the next layer's input. That input is then restored, so
        that one run checks all chains.
        """
        trial = _Mixing(self._changed, places)
        self._run(self.dense, self.trains, watch=trial.record)
        self._run(self.dense, self.trains, watch=trial.disturb)
        if not trial.mixed:
            return ''
        return (
            f'channels mix before {trial.mixed[0]} reads them, by heads, a '
            'softmax or a norm'
        )

    def _find_leak(self, places: Sequence[Place]) -> str:
        """Find wide outputs that depend on more tokens than dense outputs.

        The inputs change at the middle token, a position of dimension 1.
        """
        lengths = set(map(_length, tree_leaves(self.inputs)))
        tokens = [
            _length(one) in lengths - {0} for one in self.expected[False]
        ]
        if not any(tokens):
            return ''
        other = tree_map_only(Tensor, with_other_middle, self.inputs)
        wide = self._doubled(places, reads_new=True)
        before = self.expected[False], self._run(wide, False)
        try:
            after = [
                self._run(one, False, other) for one in (self.dense, wide)
            ]
        except Exception:  # The network may refuse other inputs.
            return ''
        for is_tokens, dense, new, dense_after, new_after in zip(
            tokens, *before, *after, strict=True
        ):
            if is_tokens:
                new_changes = _by_token(self._changed(new, new_after))
                changes = self._changed(dense, dense_after, share=1e-3)
                if (new_changes & ~_by_token(changes)).any():
                    return 'outputs depend on further tokens'
        return ''


def _length(value: Any) -> int:
    """Return the size of dimension 1, 0 without one."""
    has_tokens = isinstance(value, Tensor) and value.dim() > 1
    return value.shape[1] if has_tokens else 0


def _by_token(changed: Tensor) -> Tensor:
    """Return whether anything changed, for each position of dimension 1."""
    return changed.transpose(0, 1).flatten(1).any(1)


class _Mixing:
    """Search for layers that read a mixture of a chain's channels.

    Args:
        changed (Callable): Function that returns where two tensors differ.
        places (Sequence[Place]): The chains, by their place in a network.
    """

    def __init__(
        self, changed: Callable[..., Tensor], places: Sequence[Place]
    ) -> None:
        self.changed = changed
        self.pairs = [pair for place in places for pair in place.pairs()]
        self.clean: dict[str, list[Tensor]] = {}
        self.mixed: list[str] = []
        # Not the global generator: the network may draw numbers too.
        self.generator = torch.Generator().manual_seed(0)

    def record(self, network: nn.Module, hooks: ExitStack) -> None:
        """Record the input of each layer that reads a chain's channels."""

        def keep(name: str, _: Any, args: Any) -> None:
            self.clean.setdefault(name, []).append(args[0].clone())

        for name in (name for _, readers in self.pairs for name in readers):
            layer = network.get_submodule(name)
            hooks.enter_context(
                layer.register_forward_pre_hook(partial(keep, name))
            )

    def disturb(self, network: nn.Module, hooks: ExitStack) -> None:
        """Add noise to each layer's output, and restore the next input."""

        def shake(chosen: Tensor, _: Any, args: Any, out: Tensor) -> Tensor:
            noise = torch.randn(out.shape, generator=self.generator)
            return out + noise.to(out.dtype) * chosen

        def restore(name: str, chosen: Tensor, _: Any, args: Any) -> Any:
            clean = self.clean[name].pop(0)
            changed = self.changed(clean, args[0], share=0.1)
            if (changed & ~chosen).any():
                self.mixed.append(name)
            return clean, *args[1:]

        for layers, readers in self.pairs:
            count = channels_in(next(iter(readers.values())))
            chosen = torch.rand(count, generator=self.generator) < 0.5
            for name, layer in layers.items():
                # All parts of a gate get noise on the same channels.
                given = chosen.repeat(size_of(layer)[1] // count)
                hooks.enter_context(
                    network.get_submodule(name).register_forward_hook(
                        partial(shake, _along_channels(given, layer))
                    )
                )
            for name, reader in readers.items():
                along = _along_channels(chosen, reader)
                hooks.enter_context(
                    network.get_submodule(name).register_forward_pre_hook(
                        partial(restore, name, along)
                    )
                )


def _along_channels(values: Tensor, layer: Any) -> Tensor:
    """Reshape values of channels to broadcast over a layer's features."""
    return values.view(-1, *[1] * (layer.weight.dim() - 2))


class _NoDropout(TorchFunctionMode):
    """Mode without dropout, whose random numbers depend on the width."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUTS:
            return args[0] if args else kwargs['input']
        return func(*args, **kwargs)


@contextmanager
def _seeded() -> Iterator[None]:
    """Fix all random numbers inside, and restore the states after."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
