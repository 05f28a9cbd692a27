"""Proof by values that a network may be widened along given chains.

The network runs with random weights, dense and with its chains twice as wide.
Shapes that fit prove nothing: attention widened in q and out alone has the
right shapes, and lets a causal network see later tokens.
"""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sift_mm.layers.doubling import (
    Place,
    arguments,
    double_chain,
    random_copy,
    with_other_middle,
    with_twice_the_batch,
)
from sift_mm.layers.plain import channels_in

# Relative differences above those of rounding.
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
    """Comparison of a dense network with itself, wider, by values.

    Args:
        module (nn.Module): The network, left as it is.
        example (Tensor | tuple | Mapping): Its input, its positional or its
            keyword arguments. Tensors on the meta device get random values.

    Attributes:
        called (set[str]): Names of the modules that the example runs.

    Raises:
        Exception: Whatever the network raises, if it does not run with the
            example in evaluation.
    """

    def __init__(self, module: nn.Module, example: Any) -> None:
        self.dtype = torch.float32
        self.called: set[str] = set()
        with _seeded():
            self.dense: Any = random_copy(module)
            self.inputs = arguments(example)
        # Outputs by mode: of evaluation, and of training where that runs.
        self.expected = {False: self._run(self.dense, False)}
        # Batch norm trains on two images where one may do in evaluation.
        for inputs in (self.inputs, with_twice_the_batch(self.inputs)):
            try:
                self._expect_training(inputs)
                return
            except Exception:  # Whatever a network makes of it.
                continue
        self._run(self.dense, False, self._note)

    def _expect_training(self, inputs: Any) -> None:
        first, self.inputs = self.inputs, inputs
        try:
            trained = self._run(self.dense, True, self._note)
            evaluated = self._run(self.dense, False)
        except Exception:
            self.inputs = first
            raise
        self.expected = {False: evaluated, True: trained}

    def _note(self, network: nn.Module, hooks: ExitStack) -> None:
        """Note the names of the modules that run."""
        for name, one in network.named_modules():
            hooks.enter_context(
                one.register_forward_pre_hook(
                    lambda *_, name=name: self.called.add(name)
                )
            )

    def objection(self, places: Sequence[Place]) -> str:
        """Return why the network cannot be widened at places; '' if it can.

        Double precision decides where rounding may be the reason.

        Raises:
            Exception: Whatever the wider network raises, if it does not run.
        """
        found = self._compare(places)
        if not found or self.dtype == torch.float64:
            return found
        try:
            return self._in_double().objection(places)
        except Exception:  # It has a fixed precision somewhere.
            return found

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
        """Tell where tensors differ by more than a share of the tolerance."""
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
        watch: Callable[[nn.Module, ExitStack], None] | None = None,
    ) -> list[Tensor]:
        """Run a network, the same at every call, without dropout."""
        network.train(training)
        args, kwargs = tree_map_only(Tensor, torch.clone, self.inputs)
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
        # All weights are shared but those of the chains.
        memo = {id(weight): weight for weight in self.dense.parameters()}
        wide = copy.deepcopy(self.dense, memo)
        with _seeded():
            for place in places:
                double_chain(wide, place, reads_new)
        return wide

    def _find_mixing(self, places: Sequence[Place]) -> str:
        """Find a layer that does not read the channels of a chain singly.

        Noise on some channels that one layer gives must reach the same
        channels of the next layer's input alone. That input is then put
        right, so that one run tries all chains.
        """
        trial = _Mixing(self._changed, places)
        training = True in self.expected
        self._run(self.dense, training, trial.record)
        self._run(self.dense, training, trial.disturb)
        if not trial.mixed:
            return ''
        return (
            f'channels mix before {trial.mixed[0]} reads them, by heads, a '
            'softmax or a norm'
        )

    def _find_leak(self, places: Sequence[Place]) -> str:
        """Find wide outputs that depend on tokens that dense ones do not.

        The inputs change at the middle token, a position of dimension 1.
        """
        inputs = self.inputs
        networks = self.dense, self._doubled(places, reads_new=True)
        before = [self._run(one, False) for one in networks]
        try:
            self.inputs = tree_map_only(Tensor, with_other_middle, inputs)
            after = [self._run(one, False) for one in networks]
        except Exception:  # An input may have to be what it was.
            return ''
        finally:
            self.inputs = inputs
        lengths = {
            tensor.shape[1]
            for tensor in tree_leaves(inputs)
            if isinstance(tensor, Tensor) and tensor.dim() > 1
        }
        for dense, wide, dense_after, wide_after in zip(
            *before, *after, strict=True
        ):
            if dense.dim() < 2 or dense.shape[1] not in lengths:
                continue
            new = self._changed(wide, wide_after)
            old = self._changed(dense, dense_after, share=1e-3)
            seen, saw = (
                one.transpose(0, 1).flatten(1).any(1) for one in (new, old)
            )
            if (seen & ~saw).any():
                return 'outputs depend on tokens that they did not depend on'
        return ''


class _Mixing:
    """Search for layers that read a mixture of a chain's channels.

    Args:
        changed (Callable): Function that tells where two tensors differ.
        places (Sequence[Place]): The chains, by their place in a network.
    """

    def __init__(
        self, changed: Callable[..., Tensor], places: Sequence[Place]
    ) -> None:
        self.changed = changed
        self.pairs = [pair for place in places for pair in place.pairs()]
        self.clean: dict[str, list[Tensor]] = {}
        self.mixed: list[str] = []
        # Of its own: the network may draw numbers too.
        self.generator = torch.Generator().manual_seed(0)

    def record(self, network: nn.Module, hooks: ExitStack) -> None:
        """Record the input of each layer that reads a chain's channels."""

        def keep(name: str, _: Any, args: Any) -> None:
            self.clean.setdefault(name, []).append(args[0].clone())

        for _, (name, _) in self.pairs:
            layer = network.get_submodule(name)
            hooks.enter_context(
                layer.register_forward_pre_hook(partial(keep, name))
            )

    def disturb(self, network: nn.Module, hooks: ExitStack) -> None:
        """Disturb the output of each layer, and restore what is read."""

        def shake(chosen: Tensor, _: Any, args: Any, out: Tensor) -> Tensor:
            noise = torch.randn(out.shape, generator=self.generator)
            return out + noise.to(out.dtype) * chosen

        def restore(name: str, chosen: Tensor, _: Any, args: Any) -> Any:
            clean = self.clean[name].pop(0)
            changed = self.changed(clean, args[0], share=0.1)
            if (changed & ~chosen).any():
                self.mixed.append(name)
            return clean, *args[1:]

        for (name, layer), (reader_name, reader) in self.pairs:
            count = channels_in(reader)
            chosen = torch.rand(count, generator=self.generator) < 0.5
            # The halves of a gate are disturbed alike.
            given = chosen.repeat(layer.weight.shape[0] // count)
            hooks.enter_context(
                network.get_submodule(name).register_forward_hook(
                    partial(shake, _along_channels(given, layer))
                )
            )
            hooks.enter_context(
                network.get_submodule(reader_name).register_forward_pre_hook(
                    partial(
                        restore, reader_name, _along_channels(chosen, reader)
                    )
                )
            )


def _along_channels(values: Tensor, layer: Any) -> Tensor:
    """Shape a value for each channel as what the layer reads or gives."""
    return values.view(-1, *[1] * (layer.weight.dim() - 2))


class _NoDropout(TorchFunctionMode):
    """Mode in which dropout, whose draws follow the width, does nothing."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUTS:
            return args[0] if args else kwargs['input']
        return func(*args, **kwargs)


@contextmanager
def _seeded() -> Iterator[None]:
    """Draw the same random numbers each time, and leave all states alone."""
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
