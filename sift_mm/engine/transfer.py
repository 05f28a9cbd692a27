"""Masks of the checkpoint from which a run starts."""

import glob
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sift_mm.checkpoint.reading import load_pretrained
from sift_mm.checkpoint.state import (
    CHECKPOINT_KEY,
    check_keys,
    mask_training,
    pretrained_cfg,
    with_context,
    without_prefix,
)
from sift_mm.engine.plan import MaskPlan
from sift_mm.errors import UserError
from sift_mm.names import shortened
from sift_mm.sparsity import (
    MaskSet,
    RunOptions,
    Static,
    Unstructured,
)

# Slots with the shape of their weight in every optimizer.
ELEMENTWISE = ('momentum_buffer', 'exp_avg')


def pretrained_source(
    model: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> tuple[str, Mapping[str, Any]] | None:
    """Find the ``init_cfg`` that loads a checkpoint into sparse parameters.

    Args:
        model: Model of a run.
        parameters: Sparse parameters by full name.

    Returns:
        tuple: Name prefix of the config's module, and the config; or None.
    """
    for name, module in model.named_modules():
        config = pretrained_cfg(getattr(module, 'init_cfg', None))
        inside = f'{name}.' if name else ''
        if config and any(n.startswith(inside) for n in parameters):
            return inside, config
    return None


class Origin(Enum):
    """Origin of the first masks of a run."""

    #: Masks of the resumed run.
    RESTORED = 'restored'
    #: Masks of loaded weights, in this run or before it was resumed.
    TRANSFERRED = 'transferred'
    #: New masks.
    DRAWN = 'drawn'
    #: No masks: masks are dropped, and all weights train.
    DROPPED = 'dropped'
    #: No masks: the network has no sparse parameters.
    NEEDLESS = 'needless'


@dataclass(frozen=True)
class Start:
    """Checkpoint from which a run starts.

    Args:
        state (Mapping, optional): Mask training of the loaded or resumed
            checkpoint.
        loaded (bool): True if weights come from a checkpoint.
        resumed (bool): True if an earlier run is resumed.
    """

    state: Mapping[str, Any] | None = None
    loaded: bool = False
    resumed: bool = False

    @property
    def saved(self) -> Mapping[str, Any]:
        """Mask training of the resumed run, else empty."""
        return (self.resumed and self.state) or {}

    def find_origin(self, options: RunOptions) -> Origin:
        """Return the origin of the masks of a network that needs masks.

        Raises:
            ValueError: If a resumed run has no masks or would lose them, or
                loaded weights have no masks and no option draws them.
        """
        if self.resumed:
            return self._resumed_origin(options.transfer)
        if options.init is not None or not self.loaded:
            return Origin.DRAWN
        if options.transfer == 'dense':
            return Origin.DROPPED
        if self.state is None:
            raise UserError(
                'Weights come from a checkpoint without masks (load_from, or '
                'an init_cfg of type Pretrained), and random masks would cut '
                'them away; choose the first masks of SparseTrainingHook: '
                "init='FromWeights', 'TopK' or 'Random'; or train all "
                "weights, transfer='dense'."
            )
        return Origin.TRANSFERRED

    def _resumed_origin(self, transfer: str) -> Origin:
        if self.state is None:
            if transfer == 'dense':  # A dense run saves no masks.
                return Origin.DROPPED
            raise UserError(
                'The checkpoint to resume from holds no masks (no key '
                f'{CHECKPOINT_KEY!r}): masks are restored, never guessed. '
                'Resume from a checkpoint that SparseTrainingHook saved, or '
                'start a new run with load_from and an explicit init.'
            )
        if not self.state.get('transfer'):
            return Origin.RESTORED
        if transfer == 'dense':
            raise UserError(
                "The run to be resumed has masks, and transfer='dense' would "
                'drop them in the middle. Start a new run from its checkpoint '
                'with load_from.'
            )
        return Origin.TRANSFERRED


def read_start(start: Start, plan: MaskPlan) -> Start:
    """Return the start of a run, with the checkpoint of an ``init_cfg``.

    A Sparse-IFT backbone checks a checkpoint that it loads itself. A
    checkpoint that another module loads is checked here.

    Args:
        start (Start): Start from the checkpoint that the runner loaded.
        plan (MaskPlan): Plan of the model's masks.

    Raises:
        ValueError: If the checkpoint belongs to another backbone.
    """
    if start.loaded:
        return start
    found = plan.found
    backbone = found[1].named_parameters(found[0][:-1]) if found else ()
    source = pretrained_source(plan.model, dict(backbone) | plan.parameters)
    if source is None:
        return start
    inside, config = source
    owner: Any = plan.model.get_submodule(inside.removesuffix('.'))
    checkpoint = getattr(owner, 'loaded', None)
    if checkpoint is not None:
        owner.loaded = None  # Frees the checkpoint, which is read once.
    else:
        checkpoint = load_pretrained(config)
        if found:
            check_keys(
                found[1],
                without_prefix(checkpoint['state_dict'], config.get('prefix')),
                config['checkpoint'],
                found[0].removeprefix(inside),
            )
    with with_context(config['checkpoint']):
        state = mask_training(checkpoint)
    if state is not None:
        masks = without_prefix(state['masks'], config.get('prefix'))
        state['masks'] = {inside + n: m for n, m in masks.items()}
        groups = without_prefix(state.get('groups', {}), config.get('prefix'))
        state['groups'] = {inside + n: g for n, g in groups.items()}
    return Start(state, loaded=True)


def choose_options(
    options: RunOptions, start: Start, names: Iterable[str]
) -> RunOptions:
    """Return the options for transferred masks.

    Args:
        options (RunOptions): Options of the run.
        start (Start): Start from the masks.
        names (Iterable[str]): Names of the masked parameters.

    Raises:
        ValueError: If an algorithm would change their density.
    """
    if options.transfer != 'fixed':
        for algorithm in options.algorithms:
            if algorithm.changes_density:
                raise UserError(
                    "transfer='train' trains the masks of the checkpoint at "
                    f'their density, and {type(algorithm).__name__} changes '
                    'it: choose another algorithm, or first masks by the '
                    "hook's init."
                )
        return options
    state = start.state or {}
    saved = state.get('groups', {})
    groups = {
        glob.escape(name): dict(algorithm=_fixed(own, saved.get(name, state)))
        for name, own in options.of_layers(names).items()
        if own is not options or name in saved
    }
    return replace(options, algorithm=_fixed(options, state), groups=groups)


def _fixed(options: RunOptions, saved: Mapping[str, Any]) -> Static:
    """Return the algorithm that fixes masks with their saved structure.

    A structure of the hook has priority.
    """
    structure: Any = options.algorithm.structure
    if isinstance(structure, Unstructured):
        structure = saved.get('structure', structure)
    return Static(structure)


def check_member(state: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse mask training of another member of the family.

    Shapes do not suffice: Sparse Parallel has two branches at 0.5 and 0.55.

    Raises:
        ValueError: If the two differ.
    """
    there = dict(state.get('member', {}))
    if 'nominal' in state.get('budget', {}):
        # Old checkpoints without a member have the sparsity.
        there.setdefault('sparsity', state['budget']['nominal'])
    wrong = [
        f'{key}={there[key]!r} there and {value!r} here'
        for key, value in here.items()
        if key in there and there[key] != value
    ]
    if wrong:
        raise UserError(
            'The checkpoint is of another member of the family '
            f'than the model: {", ".join(wrong)}.'
        )


def fit_masks(
    state: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    expected: Mapping[str, int],
) -> MaskSet:
    """Fit the masks of a checkpoint to a network with loaded weights.

    The masks keep their density: a classifier's differs from the density of a
    detector from scratch.

    Args:
        state (Mapping): Mask training of the checkpoint.
        parameters (Mapping): Parameters to mask, with loaded weights.
        expected (Mapping): Active weights by the config.

    Raises:
        ValueError: If the masks have other parameters, do not fit the weights,
            or are full.
    """
    here, there = parameters.keys(), state['masks'].keys()
    if here != there:
        raise UserError(
            'The masks of the checkpoint are on other parameters than this '
            f"run's: they lack {shortened(sorted(here - there))} and have "
            f'{shortened(sorted(there - here))} besides. '
            'include and exclude of SparseTrainingHook have to be those of '
            'the run that the checkpoint is from.'
        )
    masks = MaskSet(parameters, state['masks'])
    size = sum(mask.numel() for mask in masks.values())
    if sum(masks.counts().values()) == size > sum(expected.values()):
        raise UserError(
            'The masks of the checkpoint have no zeros, and the network is '
            'sparse: it was trained with other masks. Choose first masks by '
            "the hook's init."
        )
    cut = [
        name
        for name, mask in masks.items()
        if parameters[name].detach().masked_fill(mask, 0).any()
    ]
    if cut:
        raise UserError(
            'The masks of the checkpoint would cut weights in '
            f'{shortened(cut)}: it was trained with other masks. Choose first '
            "masks by the hook's init, or train dense with transfer='dense', "
            'in a new run with load_from.'
        )
    return masks


def check_optimizer(saved: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Refuse the optimizer state of another network.

    PyTorch compares only the number of parameters.

    Raises:
        ValueError: If parameters or the shapes of slots differ.
    """
    here = [group['params'] for group in optimizer.param_groups]
    there = [group['params'] for group in saved.get('param_groups', [])]
    own, other = ([*map(len, groups)] for groups in (here, there))
    if own != other:
        raise UserError(
            f'The optimizer of the checkpoint has groups of {other} '
            f'parameters, and that of this run of {own}: resume with the '
            'optimizer and the network of that run.'
        )
    slots = [
        (key, tuple(getattr(slot, 'shape', ())), tuple(parameter.shape))
        for parameters, indices in zip(here, there, strict=True)
        for parameter, index in zip(parameters, indices, strict=True)
        for key, slot in saved.get('state', {}).get(index, {}).items()
        if slot is not None
    ]
    # Other slots differ on purpose: a step count, the rows of Adafactor.
    fits: Counter[str] = Counter()
    for key, shape, wanted in slots:
        fits[key] += (1 if shape == wanted else -1) if wanted else 0
    for key, shape, wanted in slots:
        if (key in ELEMENTWISE or fits[key] > 0) and shape != wanted:
            raise UserError(
                f'{key!r} of the optimizer of the checkpoint has the shape '
                f'{shape} for a parameter of {wanted}: resume '
                'with the optimizer and the network of that run.'
            )
