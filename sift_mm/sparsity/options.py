"""Options of mask training, as checked dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, Self

from sift_mm.errors import UserError
from sift_mm.names import check_names
from sift_mm.sparsity.algorithms import ALGORITHMS, Algorithm, RigL
from sift_mm.sparsity.counts import CountSchedule
from sift_mm.sparsity.distributions import (
    DISTRIBUTIONS,
    Distribution,
    Uniform,
)
from sift_mm.sparsity.execution import ExecutionMode
from sift_mm.sparsity.initializers import (
    INITIALIZERS,
    Initializer,
    NetworkInitializer,
)
from sift_mm.sparsity.schedules import (
    DROP_FRACTIONS,
    Cosine,
    DropFraction,
    UpdateSchedule,
)
from sift_mm.sparsity.trainer import Placement
from sift_mm.validation import (
    AnyGlobs,
    Count,
    End,
    Globs,
    Seed,
    Sparsity,
    read_arguments,
)

# Use of the masks that come with loaded weights.
Transfer = Literal['fixed', 'train', 'dense']
#: Options that a resumed run may change, with a warning.
MAY_CHANGE = (
    'algorithm',
    'placement',
    'interval',
    'end',
    'drop_fraction',
    'execution',
)


@dataclass(frozen=True)
class MaskOptions:
    """Options of mask training, the arguments of ``SparseTraining``.

    Each part is a name, a ``dict(type=name, ...)`` or an object.

    Args:
        algorithm (str | dict): 'RigL' or another registered algorithm, with
            its arguments: ``dict(type='GraNet', initial=0.5)``.
        sparsity (float, optional): Share of zero weights, in [0, 1). None
            takes the sparsity of the Sparse-IFT layers; give a number only
            for networks without them.
        distribution (str | dict): Distribution of the sparsity over layers:
            'Uniform', 'UniformPlus', 'ER', 'ERK' or ``dict(type='Explicit',
            sparsities={pattern: sparsity})``.
        init (str | dict, optional): First masks: 'Random', 'TopK',
            'FromWeights', 'SNIP', 'GraSP' or 'SynFlow'. None takes the masks
            of loaded weights; a run from scratch draws random masks.
        drop_fraction (float | str | dict): Share of the active weights to
            drop at an update: a number, the start of a cosine, or 'Constant',
            'Linear', 'Cosine' or ``dict(type='Linear', initial=0.3)``.
        interval (int): Optimizer steps between two updates.
        end (float): Share of all optimizer steps after which masks stay, in
            (0, 1].
        placement (str): 'after_step' updates masks after the optimizer step;
            'replace_step' updates them in its place.
        include (Sequence[str], optional): Glob patterns of the parameters to
            mask. None masks the parameters of the Sparse-IFT layers.
        exclude (Sequence[str]): Glob patterns of parameters to leave dense.
        seed (int, optional): Seed of the masks. None takes the run's seed,
            or 0 without a run.
        execution (str): Execution of masked layers on a CPU: 'auto' runs each
            product sparse if a timing in the first step finds it faster;
            'sparse' runs all products sparse, 'dense' none.

    Raises:
        ValueError: If a value is not allowed.
    """

    algorithm: Annotated[Algorithm, ALGORITHMS] = field(default_factory=RigL)
    sparsity: Sparsity | None = None
    distribution: Annotated[Distribution, DISTRIBUTIONS] = Uniform()
    init: Annotated[Initializer, INITIALIZERS] | None = None
    drop_fraction: Annotated[DropFraction, DROP_FRACTIONS] = Cosine(0.3)
    interval: Count = 100
    end: End = 0.75
    placement: Placement = 'after_step'
    include: Globs | None = None
    exclude: AnyGlobs = ()
    seed: Seed | None = None
    execution: ExecutionMode = 'auto'

    def __post_init__(self) -> None:
        for name, value in read_arguments(type(self), vars(self)).items():
            object.__setattr__(self, name, value)
        if not isinstance(self.init, NetworkInitializer):
            return
        name = type(self.init).__name__
        if self.distribution != Uniform():
            raise UserError(
                f'init={name!r} spreads the active weights over the layers by '
                'its scores; leave distribution out.'
            )
        if self.algorithm.changes_density:
            raise UserError(
                f'init={name!r} gives each layer a density of its own, and '
                f'{type(self.algorithm).__name__} changes densities; choose '
                "the algorithm 'RigL', 'SET' or 'Static'."
            )

    @classmethod
    def of(cls, who: str, given: Mapping[str, Any]) -> Self:
        """Build the options from the arguments of ``who``.

        Raises:
            ValueError: If an option is unknown, or a value is wrong.
        """
        names = [option.name for option in fields(cls)]
        check_names(f'{who} has no argument', given, names)
        return cls(**given)

    @property
    def initializer(self) -> Initializer:
        """Initializer of drawn masks, random by default."""
        return self.init or INITIALIZERS.build('Random')

    def schedule(
        self, steps: int, algorithm: Algorithm | None = None
    ) -> UpdateSchedule | None:
        """Return the update schedule of a training, None for static masks.

        Args:
            steps (int): Optimizer steps of the whole training.
            algorithm (Algorithm, optional): Replacement of the option.

        Raises:
            ValueError: If masks would never be updated.
        """
        if not (algorithm or self.algorithm).dynamic:
            return None
        return UpdateSchedule(self.interval, int(self.end * steps + 1e-9))

    def count_schedule(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        final: Mapping[str, int],
        steps: int,
    ) -> CountSchedule:
        """Return the active weights of each layer as a function of the step.

        Args:
            shapes (Mapping): Weight shapes by name.
            final (Mapping): Active weights after the last update, by name.
            steps (int): Optimizer steps of the whole training.
        """
        return CountSchedule(
            self.algorithm,
            shapes,
            final,
            self.schedule(steps),
            self.drop_fraction,
        )


@dataclass(frozen=True)
class RunOptions(MaskOptions):
    """Options of mask training in an MMEngine run, the hook's arguments.

    Args:
        transfer (str): Use of the masks of loaded weights: 'fixed' keeps them;
            'train' trains them further; 'dense' drops them and trains all
            weights, at more FLOPs.
        log_layers (bool | int): True to log each layer too, at each mask
            update; a number to log it every so many optimizer steps.

    Raises:
        ValueError: If ``init`` and ``transfer`` contradict each other.
    """

    transfer: Transfer = 'fixed'
    log_layers: bool | Count = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init is not None and self.transfer != 'fixed':
            raise UserError(
                f'init={type(self.init).__name__!r} draws new masks, and '
                f'transfer={self.transfer!r} uses the masks of loaded '
                'weights; leave one out.'
            )


def find_changes(
    now: Mapping[str, Any], then: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Return the options that a resumed run changes.

    Args:
        now: State of the run's trainer.
        then: Saved state.

    Returns:
        list: Name of the option, saved value, new value.
    """
    return [
        (key, then[key], now[key])
        for key in MAY_CHANGE
        if key in then and then[key] != now[key]
    ]
