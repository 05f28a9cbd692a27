"""Mask training of any network in a plain loop, with all that it takes."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from sift_mm.arguments import (
    AnyGlobs,
    Count,
    End,
    Globs,
    Seed,
    Sparsity,
    checked,
)
from sift_mm.errors import Mistake
from sift_mm.sparsity.algorithms import ALGORITHMS, AlgorithmLike
from sift_mm.sparsity.distributions import (
    DISTRIBUTIONS,
    Distribution,
    DistributionLike,
)
from sift_mm.sparsity.execution import ExecutionMode, SparseExecution
from sift_mm.sparsity.grown import GrownSteps
from sift_mm.sparsity.initializers import (
    INITIALIZERS,
    InitializerLike,
    count_tolerance,
)
from sift_mm.sparsity.masks import MaskSet
from sift_mm.sparsity.metrics import density
from sift_mm.sparsity.parameters import select_parameters, sparse_weights
from sift_mm.sparsity.schedules import (
    DropFractionLike,
    UpdateSchedule,
    make_drop_fraction,
)
from sift_mm.sparsity.trainer import MaskTrainer, UpdateReport


class SparseTraining:
    """Masks on a network and their training, for a loop of one's own.

    Call :meth:`step` in place of ``optimizer.step()``, which is refused from
    then on. The order that matters: ``sift_mm.transform``, the optimizer,
    this class (weights outside the first masks become zero), then
    checkpoints.

    Args:
        model (nn.Module): The network; it keeps its dense tensors.
        optimizer (Optimizer): Holds its parameters.
        algorithm (str | dict | Algorithm): 'Static', 'SET', 'RigL', or
            another that is registered.
        steps (int): Optimizer steps of the whole training.
        sparsity (float, optional): Share of zero weights, in [0, 1). None
            takes that of the layers that ``sift_mm.transform`` made.
        distribution (str | dict | Distribution): How layers share it.
        init (str | dict | Initializer, optional): First masks; random if
            None.
        drop_fraction (float | str | dict | DropFraction): Share of the active
            weights dropped at an update; a number is the start of a cosine.
        interval (int): Optimizer steps between two updates.
        end (float): Share of the steps after which masks stay, in (0, 1].
        include (Sequence[str], optional): Glob patterns of the parameters to
            be sparse, in place of those that the layers name.
        exclude (Sequence[str]): Glob patterns of parameters to leave dense.
        seed (int): Seed of the masks.
        execution (str): How masked layers run on a CPU: 'auto', 'sparse' or
            'dense', see :class:`SparseExecution`.
        grown_steps (str): Steps of weights that are grown late: 'free', as
            the optimizer has them; 'bounded', see :class:`MaskTrainer`.

    Raises:
        ValueError: If an argument is wrong, layers and arguments do not say
            one sparsity, or the optimizer does not hold a sparse parameter.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        algorithm: AlgorithmLike = 'RigL',
        *,
        steps: Count,
        sparsity: Sparsity | None = None,
        distribution: DistributionLike = 'Uniform',
        init: InitializerLike | None = None,
        drop_fraction: DropFractionLike = 0.3,
        interval: Count = 100,
        end: End = 0.75,
        include: Globs | None = None,
        exclude: AnyGlobs = (),
        seed: Seed = 0,
        execution: ExecutionMode = 'auto',
        grown_steps: GrownSteps = 'free',
    ) -> None:
        parameters = select_parameters(model, include, exclude)
        _check_held(parameters, optimizer)
        layers = _layer_densities(model, parameters)
        share = DISTRIBUTIONS.build(distribution)
        wanted = _sparsity(sparsity, layers, share)
        rule = ALGORITHMS.build(algorithm)
        masks = MaskSet.draw(
            parameters,
            share.counts(
                {n: tuple(p.shape) for n, p in parameters.items()}, wanted
            ),
            INITIALIZERS.build(init or 'Random'),
            seed,
            rule.structure,
        )
        _check_density(masks, layers)
        self.optimizer = optimizer
        self.trainer = MaskTrainer(
            masks,
            rule,
            UpdateSchedule(interval, int(end * steps + 1e-9))
            if rule.dynamic
            else None,
            make_drop_fraction(drop_fraction),
            seed,
            grown_steps=grown_steps,
        )
        self.trainer.enforce(optimizer)
        self.trainer.guard(optimizer)
        self.trainer.execute(SparseExecution(model, masks, execution))
        self._drawn = self._weight_versions()

    @property
    def masks(self) -> MaskSet:
        """The masks, by parameter name."""
        return self.trainer.masks

    @property
    def density(self) -> float:
        """Share of active weights over all masks together."""
        return density(self.masks)

    @property
    def execution(self) -> str:
        """A line on how masked layers run; known after the first step."""
        assert self.trainer.execution is not None
        return self.trainer.execution.describe()

    def step(
        self, scaler: GradScaler | None = None, clip: float | None = None
    ) -> UpdateReport | None:
        """One optimizer step under the masks, after ``backward()``.

        Args:
            scaler (GradScaler, optional): The one that scaled the loss; its
                ``unscale_``, ``step`` and ``update`` are called here.
            clip (float, optional): Largest norm of all gradients together,
                those outside the masks left out.

        Returns:
            UpdateReport, optional: None where no update was due.

        Raises:
            TypeError: If the optimizer moves weights outside the masks.
        """
        if scaler is not None:
            scaler.unscale_(self.optimizer)

        def run() -> None:
            if clip is not None:
                groups = self.optimizer.param_groups
                held = [p for group in groups for p in group['params']]
                nn.utils.clip_grad_norm_(held, clip)
            if scaler is None:
                self.optimizer.step()
            else:
                scaler.step(self.optimizer)

        self.trainer.step(self.optimizer, run)
        if scaler is not None:
            scaler.update()
        return self.trainer.report

    def state_dict(self) -> dict[str, Any]:
        """Masks, history and schedule: tensors, ints, strings and dicts."""
        return self.trainer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume, after the network's own ``load_state_dict``.

        Warns of an algorithm, interval, end, drop fraction or execution that
        is another than the saved one.

        Raises:
            ValueError: If the state is not whole, of another network or
                another sparsity, or the network's weights were not loaded
                before.
        """
        if self._weight_versions() == self._drawn:
            raise Mistake(
                'The weights still are those that the first masks left over; '
                'create SparseTraining, then load the network, then this.'
            )
        now, counts = self.state_dict(), self.masks.counts()
        for name, mask in state.get('masks', {}).items():
            count = int(mask.count_nonzero())
            miss = abs(count - counts.get(name, count))
            if miss > count_tolerance(mask.numel()):
                raise Mistake(
                    f'The mask of {name!r} has {count} active weights and '
                    f'{counts[name]} are asked for; use the sparsity and '
                    'distribution that it was trained with.'
                )
        self.trainer.load_state_dict(state)
        self.trainer.enforce(self.optimizer)
        for key in (
            'algorithm',
            'interval',
            'end',
            'drop_fraction',
            'execution',
            'grown_steps',
        ):
            if key in state and state[key] != now[key]:
                warnings.warn(
                    f'The saved run had {key}={state[key]!r}; it goes on '
                    f'with {now[key]!r}.',
                    stacklevel=2,
                )

    def _weight_versions(self) -> list[int]:
        return [p._version for p in self.masks.parameters.values()]


def _check_held(
    parameters: Mapping[str, nn.Parameter], optimizer: Optimizer
) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group['params']}
    missing = [n for n, p in parameters.items() if id(p) not in held]
    if missing:
        raise Mistake(
            f'The optimizer does not hold {", ".join(missing)}; create it '
            'after sift_mm.transform, from the parameters of the new network.'
        )


def _layer_densities(
    model: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> dict[str, float]:
    """What layers that name their sparse weights are built for, by weight."""
    return {
        name: share
        for name, module in sparse_weights(model)
        if name in parameters
        and isinstance(share := getattr(module, 'density', None), float)
    }


def _sparsity(
    sparsity: float | None,
    layers: Mapping[str, float],
    distribution: Distribution,
) -> float:
    """The one sparsity of layers and arguments.

    Raises:
        ValueError: If there are several, or none where one is needed.
    """
    found = {round(1 - value, 12) for value in layers.values()}
    if not distribution.needs_sparsity:
        return 0.0
    if sparsity is not None:
        if any(abs(sparsity - one) > 1e-6 for one in found):
            raise Mistake(
                f'sparsity={sparsity}, but the layers are built for '
                f'{", ".join(map(str, sorted(found)))}; leave it out.'
            )
        return sparsity
    if len(found) != 1:
        raise Mistake(
            f'The layers are built for the sparsities {sorted(found)}; masks '
            'are drawn at one.'
            if found
            else 'No sparsity is given, and no layer of sift_mm.transform '
            'says one; give sparsity=.'
        )
    return found.pop()


def _check_density(masks: MaskSet, layers: Mapping[str, float]) -> None:
    """Warn of masks that miss the FLOPs that the layers are built for."""
    if not layers:
        return
    size = sum(masks[name].numel() for name in layers)
    wanted = sum(value * masks[n].numel() for n, value in layers.items())
    found = sum(int(masks[name].count_nonzero()) for name in layers)
    if abs(found - wanted) > max(0.01 * wanted, len(layers)):
        warnings.warn(
            f'The masks have density {found / size:.4f} where the layers are '
            f'built for {wanted / size:.4f}: FLOPs will not be those of the '
            'dense network.',
            stacklevel=3,
        )
