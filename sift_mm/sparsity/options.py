"""Options of mask training, as checked dataclasses."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import isclose
from typing import Annotated, Any, Literal, Self

from sift_mm.errors import UserError, located
from sift_mm.names import check_names, first_matches
from sift_mm.sparsity.algorithms import ALGORITHMS, Algorithm, RigL
from sift_mm.sparsity.counts import Assignment, CountSchedule
from sift_mm.sparsity.distributions import (
    DISTRIBUTIONS,
    Distribution,
    Grouped,
    Uniform,
)
from sift_mm.sparsity.execution import ExecutionMode
from sift_mm.sparsity.initializers import (
    INITIALIZERS,
    Initializer,
    NetworkInitializer,
)
from sift_mm.sparsity.masks import MaskSet
from sift_mm.sparsity.schedules import (
    DROP_FRACTIONS,
    Cosine,
    DropFraction,
    UpdateSchedule,
)
from sift_mm.sparsity.structures import (
    Structure,
    Unstructured,
)
from sift_mm.sparsity.trainer import MaskTrainer, Placement
from sift_mm.validation import (
    AnyGlobs,
    Count,
    End,
    Globs,
    Groups,
    Seed,
    Sparsity,
    read_arguments,
)

# Use of the masks that come with loaded weights.
Transfer = Literal['fixed', 'train', 'dense']
#: Options that a group of layers may have of its own.
OF_GROUPS = ('algorithm', 'sparsity', 'drop_fraction', 'interval', 'end')


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
        groups (Mapping): Other options for some of the masked parameters, by
            glob pattern: ``{'*.layer4.*': dict(algorithm='Static')}``. A
            group takes algorithm, sparsity, drop_fraction, interval and end;
            the first matching pattern counts.
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
    groups: Groups = field(default_factory=dict)
    seed: Seed | None = None
    execution: ExecutionMode = 'auto'

    def __post_init__(self) -> None:
        for name, value in read_arguments(type(self), vars(self)).items():
            object.__setattr__(self, name, value)
        self._check_init()
        groups = {p: self._read_group(p, g) for p, g in self.groups.items()}
        object.__setattr__(self, 'groups', groups)
        own = any(
            group.get('sparsity') is not None for group in groups.values()
        )
        if own and isinstance(self.init, NetworkInitializer):
            raise UserError(
                f'init={type(self.init).__name__!r} gives each layer a '
                'density by its scores; leave the sparsity out of groups, and '
                'structures of one density.'
            )

    def _check_init(self) -> None:
        """Refuse options beside first masks that set densities of layers."""
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

    def _read_group(
        self, pattern: str, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the checked options of a group.

        A structure with one density is the group's sparsity too.
        """
        who = f'groups[{pattern!r}]'
        check_names(f'{who} has no option', given, OF_GROUPS)
        if not given:
            raise UserError(
                f'{who} has no option; it takes {", ".join(OF_GROUPS)}.'
            )
        with located(who):
            found = read_arguments(MaskOptions, given)
            if 'algorithm' in found and found.get('sparsity') is None:
                density = found['algorithm'].structure.density
                found |= {} if density is None else {'sparsity': 1 - density}
            replace(self, groups={}, **found)
        return found

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

    @property
    def shares(self) -> Distribution:
        """Distribution that keeps the sparsities of groups."""
        if not self.groups:
            return self.distribution
        fixed = {p: g.get('sparsity') for p, g in self.groups.items()}
        return Grouped(self.distribution, fixed)

    def nominal_sparsity(
        self, densities: Iterable[float], needed: bool
    ) -> float:
        """Return the sparsity of the layers, which the option may repeat.

        Args:
            densities (Iterable[float]): Densities of the Sparse-IFT layers.
            needed (bool): True if a layer has no sparsity of its own.

        Raises:
            ValueError: If there are several sparsities, or none and one is
                needed.
        """
        found = sorted({round(1 - density, 12) for density in densities})
        if len(found) > 1 and needed:
            raise UserError(
                f'The layers of the model have several sparsities, {found}; '
                'masks are drawn at one.'
            )
        given = self.sparsity
        if len(found) != 1 and given is None and needed:
            raise UserError(
                'No sparsity is given, and the model has no Sparse-IFT '
                'layers: give sparsity=... and include=[...].'
            )
        if len(found) != 1:
            return given or 0.0
        if given is not None and not isclose(given, found[0], rel_tol=1e-6):
            raise UserError(
                f'The layers of the model have sparsity={found[0]} and the '
                f'masks sparsity={given}. Write it once, in the model.'
            )
        return found[0]

    @property
    def algorithms(self) -> list[Algorithm]:
        """Algorithm of the run, and those of its groups."""
        groups = [group.get('algorithm') for group in self.groups.values()]
        return [self.algorithm, *filter(None, groups)]

    def of_layers(self, names: Iterable[str]) -> dict[str, Self]:
        """Return the options of each layer: a group's, or these.

        Raises:
            ValueError: If a group has no layer.
        """
        own, names = self._of_groups(), list(names)
        found = first_matches(own, names, 'groups')
        return {n: own[found[n]] if n in found else self for n in names}

    def _of_groups(self) -> dict[str, Self]:
        """Return the options of each group, by pattern."""
        return {
            p: replace(self, groups={}, **g) for p, g in self.groups.items()
        }

    def structures(self, names: Iterable[str]) -> dict[str, Structure]:
        """Return the structure of each layer."""
        layers = self.of_layers(names)
        return {name: own.algorithm.structure for name, own in layers.items()}

    def name_algorithms(self, names: Iterable[str]) -> str:
        """Return algorithm and structure, of groups with their layers.

        Args:
            names (Iterable[str]): Names of all masked parameters.
        """
        if not self.groups:
            return _name(self.algorithm)
        names, layers = list(names), Counter[str]()
        found = first_matches(self.groups, names, 'groups')
        for name in names:
            own = self.groups.get(found.get(name, ''), {})
            text = _name(own.get('algorithm', self.algorithm))
            if (sparsity := own.get('sparsity')) is not None:
                text += f' at sparsity {sparsity:g}'
            layers[text] += 1
        return ', '.join(f'{text} ({n})' for text, n in layers.items())

    def assign(self, steps: int) -> Assignment:
        """Return algorithm and schedules of a training, without groups.

        Args:
            steps (int): Optimizer steps of the whole training.

        Raises:
            ValueError: If masks would never be updated.
        """
        updates = None
        if self.algorithm.dynamic:
            end = int(self.end * steps + 1e-9)
            updates = UpdateSchedule(self.interval, end)
        return Assignment(self.algorithm, updates, self.drop_fraction)

    def _assign_groups(
        self, names: Iterable[str], steps: int
    ) -> dict[str, Assignment]:
        """Return algorithm and schedules of the layers of groups."""
        made = {}
        for pattern, own in self._of_groups().items():
            with located(f'groups[{pattern!r}]'):
                made[pattern] = own.assign(steps)
        found = first_matches(made, names, 'groups')
        return {name: made[pattern] for name, pattern in found.items()}

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
        groups = self._assign_groups(shapes, steps)
        return CountSchedule(self.assign(steps), shapes, final, groups)

    def trainer(
        self,
        masks: MaskSet,
        steps: int,
        seed: int,
        final: Mapping[str, int] | None = None,
    ) -> MaskTrainer:
        """Build the trainer of masks.

        Arguments are those of :meth:`count_schedule` and of
        :class:`MaskTrainer`.
        """
        own = self.assign(steps)
        return MaskTrainer(
            masks,
            own.algorithm,
            own.updates,
            own.drop_fraction,
            seed,
            self.placement,
            final,
            self._assign_groups(masks, steps),
        )

    def training_flops(
        self,
        cost: Callable[[Mapping[str, float]], float],
        densities: Mapping[str, float],
    ) -> float:
        """Return the FLOPs per training sample, averaged over all steps.

        Those of an algorithm are linear in the FLOPs of a forward pass, so
        that groups add up.

        Args:
            cost (Callable): FLOPs of a forward pass under masks of given
                densities, by name.
            densities (Mapping): Densities of all masks, averaged over the
                training.
        """

        def count(own: MaskOptions, sparse: float, dense: float) -> float:
            each = own.interval, own.end
            return own.algorithm.training_flops(sparse, dense, *each)

        total = count(self, cost(densities), cost({}))
        layers = self.of_layers(densities)
        groups = {id(each): each for each in layers.values()}
        groups.pop(id(self), None)
        for own in groups.values():
            none = {n: 0.0 for n, each in layers.items() if each is own}
            sparse = cost(densities) - cost({**densities, **none})
            dense = cost({}) - cost(none)
            total += count(own, sparse, dense) - count(self, sparse, dense)
        return total


def _name(algorithm: Algorithm) -> str:
    """Return the name of an algorithm, with its structure."""
    name, structure = type(algorithm).__name__, algorithm.structure
    plain = isinstance(structure, Unstructured)
    return name if plain else f'{name} with structure={structure}'


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
