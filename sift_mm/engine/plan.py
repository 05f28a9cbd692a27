"""The masks of a run: on what, and how many weights, for equal FLOPs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from sift_mm.analysis import FlopCount, count_flops
from sift_mm.backbones import SparseIFTMixin
from sift_mm.isoflop import solve_sparsity
from sift_mm.layers import Composite, Wide
from sift_mm.sparsity import (
    Distribution,
    Explicit,
    select_parameters,
    sparse_parameter_names,
)


@dataclass(frozen=True)
class MaskPlan:
    """Which parameters get masks, and of how many weights.

    Args:
        parameters (dict[str, nn.Parameter]): By full name; empty for a
            Sparse-IFT backbone that needs no masks.
        counts (dict[str, int]): Active weights of each.
        nominal (float): The sparsity as written.
        sparsity (float): That the masks are drawn at.
        ratio (float, optional): FLOPs of the Sparse-IFT backbone, with its
            classifier if it has one, over those of its dense twin; None
            without such a backbone.
    """

    parameters: dict[str, nn.Parameter]
    counts: dict[str, int]
    nominal: float
    sparsity: float
    ratio: float | None

    @property
    def densities(self) -> dict[str, float]:
        """Share of active weights by parameter."""
        return {
            n: self.counts[n] / p.numel() for n, p in self.parameters.items()
        }


def sparse_backbone(model: nn.Module) -> tuple[str, SparseIFTMixin] | None:
    """The Sparse-IFT backbone of a model and the prefix of its names.

    Returns:
        tuple, optional: ('backbone.', module), or None without a backbone of
        a family.

    Raises:
        ValueError: If there are several: one sparsity cannot be matched for
            both.
    """
    found = [
        ((f'{name}.' if name else ''), module)
        for name, module in model.named_modules()
        if isinstance(module, SparseIFTMixin) and module.family
    ]
    if len(found) > 1:
        raise ValueError(
            'The model has several Sparse-IFT backbones with a '
            f'family, {[name for name, _ in found]}; masks can '
            'be trained for one.'
        )
    return found[0] if found else None


def nominal_sparsity(model: nn.Module, sparsity: float | None) -> float:
    """The one sparsity of a run, written in backbone or hook.

    Args:
        model (nn.Module): The model, with or without Sparse-IFT backbone.
        sparsity (float, optional): What the hook was given.

    Returns:
        float: The nominal sparsity.

    Raises:
        ValueError: If the two disagree or neither says it.
    """
    found = sparse_backbone(model)
    if found is not None:
        sizes = {found[1].sparsity}
    else:
        # Of layers that sift_mm.transform put in.
        sizes = {
            round(1 - module.density, 12)
            for module in model.modules()
            if isinstance(module, (Composite, Wide))
            and module.sparse_parameter_names()
        }
    if len(sizes) > 1:
        raise ValueError(
            f'The layers of the model have several sparsities, '
            f'{sorted(sizes)}; masks are drawn at one.'
        )
    written = next(iter(sizes), sparsity)
    if written is None:
        raise ValueError(
            'No sparsity is given: the model has no Sparse-IFT layers, so '
            'SparseTrainingHook needs sparsity=... and include=[...].'
        )
    if sparsity is not None and not math.isclose(sparsity, written):
        raise ValueError(
            f'The layers of the model have sparsity={written} and '
            f'SparseTrainingHook sparsity={sparsity}. Write it once, in the '
            'model: the hook follows where it has none.'
        )
    return written


@dataclass(frozen=True)
class FlopBudget:
    """FLOPs of a Sparse-IFT backbone beside those of its dense twin.

    All in 2 x MACs, at the backbone's ``match_shape``.

    Args:
        prefix (str): Of the backbone's names in the model.
        own (FlopCount): Of the backbone, with dense weights.
        classifier (float): Of a linear head on it, 0 without one.
        dense (float): Of the dense twin, with its linear head.
    """

    prefix: str
    own: FlopCount
    classifier: float
    dense: float

    def cost(self, densities: Mapping[str, float]) -> float:
        """FLOPs under masks of these densities, by full name."""
        return self.classifier + self.own.sparse(
            {
                name.removeprefix(self.prefix): density
                for name, density in densities.items()
                if name.startswith(self.prefix)
            }
        )

    def ratio(self, densities: Mapping[str, float]) -> float:
        """:meth:`cost` over the FLOPs of the dense twin."""
        return self.cost(densities) / self.dense


def flop_budget(model: nn.Module) -> FlopBudget | None:
    """The FLOPs that the masks of a model have to keep to.

    Returns:
        FlopBudget, optional: None without a backbone of a family.
    """
    found = sparse_backbone(model)
    if found is None:
        return None
    prefix, backbone = found
    own, dense = backbone_flops(backbone)
    classifier, dense_classifier = _classifier_flops(model, backbone)
    return FlopBudget(prefix, own, classifier, dense + dense_classifier)


def masked_parameters(
    model: nn.Module,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> dict[str, nn.Parameter]:
    """The parameters of a model that get masks.

    Args:
        model (nn.Module): The model.
        include (Sequence[str], optional): As for :func:`select_parameters`.
        exclude (Sequence[str]): Likewise.

    Returns:
        dict[str, nn.Parameter]: By full name; empty for a Sparse-IFT
        backbone that needs no masks.

    Raises:
        ValueError: If patterns match nothing, or nothing is selected.
    """
    if (
        include is None
        and sparse_backbone(model)
        and not sparse_parameter_names(model)
    ):
        return {}
    return select_parameters(model, include, exclude)


def plan_masks(
    model: nn.Module,
    distribution: Distribution,
    sparsity: float | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    budget: FlopBudget | None = None,
) -> MaskPlan:
    """Decide on the masks of a model, at the FLOPs that it asks for.

    Args:
        model (nn.Module): The model.
        distribution (Distribution): Shares the sparsity out over layers.
        sparsity (float, optional): As written in the hook.
        include (Sequence[str], optional): As for :func:`select_parameters`.
        exclude (Sequence[str]): Likewise.
        budget (FlopBudget, optional): The model's, where it was counted
            already.

    Returns:
        MaskPlan: Parameters and counts.

    Raises:
        ValueError: If the model and the arguments do not say one sparsity
            and some parameters, or no masks give the dense twin's FLOPs.
    """
    nominal = nominal_sparsity(model, sparsity)
    parameters = masked_parameters(model, include, exclude)
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    budget = budget or flop_budget(model)
    found = sparse_backbone(model)
    if budget is None or found is None:
        return MaskPlan(
            parameters,
            distribution.counts(shapes, nominal),
            nominal,
            nominal,
            None,
        )
    backbone = found[1]
    solved = nominal
    # An explicit distribution does not listen to the sparsity.
    if (
        backbone.flops == 'match'
        and parameters
        and not isinstance(distribution, Explicit)
    ):
        try:
            solved = solve_sparsity(
                lambda s: budget.cost(distribution.densities(shapes, s)),
                budget.dense,
            )
        except ValueError as error:
            everything = include is None and not exclude
            _, dense_classifier = _classifier_flops(model, backbone)
            advice = (
                backbone.advice(dense_classifier)
                if everything and backbone.grows
                else "Mask more layers, or set flops='nominal'."
            )
            raise ValueError(f'{error} {advice}') from None
    counts = distribution.counts(shapes, solved)
    plan = MaskPlan(parameters, counts, nominal, solved, None)
    return replace(plan, ratio=budget.ratio(plan.densities))


def backbone_flops(backbone: SparseIFTMixin) -> tuple[FlopCount, float]:
    """FLOPs of a backbone with dense weights, and of its dense twin.

    Returns:
        tuple[FlopCount, float]: In 2 x MACs, at the backbone's
        ``match_shape``.
    """
    shape = backbone.match_shape
    channels = next(backbone.parameters()).shape[1]
    return (
        count_flops(backbone, shape, channels),
        count_flops(backbone.dense_twin(), shape, channels).total,
    )


def _classifier_flops(
    model: nn.Module, backbone: SparseIFTMixin
) -> tuple[float, float]:
    """FLOPs of a linear classifier on the backbone, and of its dense twin's.

    It grows with the features. Necks and heads of detectors and segmentors
    are left out: their FLOPs depend on the image otherwise than a backbone's.
    """
    layer = getattr(getattr(model, 'head', None), 'fc', None)
    width = backbone.out_channels[-1]
    if not isinstance(layer, nn.Linear) or layer.in_features != width:
        return 0, 0
    flops = 2 * width * layer.out_features
    return flops, flops * backbone.dense_base_channels / backbone.base_channels
