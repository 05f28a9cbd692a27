"""Plan of a run's masks: parameters, active weights and FLOP budget."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from sift_mm.backbones import SparseIFTBackbone
from sift_mm.backbones.base import sparse_backbone
from sift_mm.engine.budget import FlopBudget, backbone_flops
from sift_mm.errors import UserError
from sift_mm.flops.isoflop import nearest_sparsity, solve_sparsity
from sift_mm.orientation import filter_shape
from sift_mm.sparsity import (
    Distribution,
    MaskOptions,
    MaskSet,
    Structure,
    select_parameters,
    sparse_parameter_names,
)
from sift_mm.sparsity.distributions import Grouped
from sift_mm.sparsity.first_masks import draw_masks, flops_per_weight
from sift_mm.sparsity.initializers.network_initializer import Passes
from sift_mm.sparsity.parameters import layer_densities
from sift_mm.sparsity.structures import (
    fit_counts,
    rounding,
)


@dataclass(eq=False)
class MaskPlan:
    """Plan of a run's masks: parameters, active weights and FLOP budget.

    Properties are computed on first access: a run that takes the masks of a
    checkpoint needs no counts.

    Args:
        model (nn.Module): Model of the run.
        options (MaskOptions): Options of the masks.
        count_whole (Callable, optional): Function that returns the budget of
            the whole model at the size of test images; None without config.
    """

    model: nn.Module
    options: MaskOptions = field(default_factory=MaskOptions)
    count_whole: Callable[[], FlopBudget] | None = None

    @cached_property
    def distribution(self) -> Distribution:
        """Distribution of the sparsity over layers."""
        return self.options.shares

    @cached_property
    def found(self) -> tuple[str, SparseIFTBackbone] | None:
        """Prefix and Sparse-IFT backbone of :func:`sparse_backbone`."""
        return sparse_backbone(self.model)

    @property
    def backbone(self) -> SparseIFTBackbone | None:
        """Sparse-IFT backbone with a family, or None."""
        return self.found[1] if self.found else None

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters to mask, by full name.

        Empty for a Sparse-IFT backbone without masks.

        Raises:
            ValueError: If patterns match nothing, or nothing is selected.
        """
        include, exclude = self.options.include, self.options.exclude
        if (
            include is None
            and self.backbone
            and not sparse_parameter_names(self.model)
        ):
            return {}
        return select_parameters(self.model, include, exclude)

    @cached_property
    def nominal_sparsity(self) -> float:
        """Sparsity of the run, from the backbone or the hook.

        Raises:
            ValueError: If both differ, or none is given.
        """
        if self.backbone is not None:
            densities = [1 - self.backbone.sparsity]
        else:
            # Layers of sift_mm.transform.
            densities = [*layer_densities(self.model).values()]
        needed = self.distribution.needs_sparsity_for(self.parameters)
        return self.options.nominal_sparsity(densities, needed)

    @cached_property
    def budget(self) -> FlopBudget | None:
        """Budget of a Sparse-IFT backbone and a linear classifier, or None."""
        if self.found is None:
            return None
        prefix, backbone = self.found
        own, dense = backbone_flops(backbone)
        classifier, dense_classifier = self._classifier
        return FlopBudget(own, dense + dense_classifier, prefix, classifier)

    @cached_property
    def whole(self) -> FlopBudget:
        """Budget of the whole model, with neck and heads.

        Raises:
            ValueError: If its FLOPs cannot be counted.
        """
        if self.count_whole is None:
            raise UserError('the run has no config to read the model from')
        return self.count_whole()

    @cached_property
    def solved_sparsity(self) -> float:
        """Sparsity to draw masks at, for the backbone's ``flops`` option.

        Raises:
            ValueError: If no sparsity gives the dense network's FLOPs.
        """
        backbone, budget = self.backbone, self.budget
        # An explicit distribution does not depend on the sparsity.
        if (
            backbone is None
            or budget is None
            or backbone.flops == 'nominal'
            or not self.distribution.needs_sparsity
        ):
            return self.nominal_sparsity
        if backbone.flops == 'match_model':
            try:
                budget = self.whole
            except ValueError as error:
                raise UserError(
                    f"flops='match_model' is not possible: {error}; set "
                    "flops='match', which matches the backbone alone."
                ) from None
            if not self.parameters:
                raise UserError(
                    "flops='match_model' solves for the density of masks, "
                    f'and family={backbone.family!r} has none; set '
                    "flops='match'."
                )
        if not self.parameters:
            return self.nominal_sparsity
        if self.options.algorithm.structure.density is not None:
            return self._fixed_sparsity(budget)
        return self._solve(budget)

    def _solve(self, target: FlopBudget) -> float:
        """Return the sparsity that gives a budget's dense FLOPs.

        Raises:
            ValueError: If there is none.
        """
        shapes = self.shapes
        try:
            found = solve_sparsity(
                lambda s: target.cost(self.distribution.densities(shapes, s)),
                target.dense,
            )
        except ValueError as error:
            raise UserError(f'{error} {self._advice}') from None
        if self._fit(found) == self.distribution.counts(shapes, found):
            return found
        # The FLOPs of rounded counts can be farther from the budget.
        return nearest_sparsity(
            lambda s: target.cost(self.densities_of(self._fit(s))),
            target.dense,
        )

    def _fixed_sparsity(self, target: FlopBudget) -> float:
        """Return the sparsity of a structure with one density.

        Raises:
            ValueError: If it does not give the budget's dense FLOPs.
        """
        counts = self._fit(self.nominal_sparsity)
        ratio = target.ratio(self.densities_of(counts))
        if not math.isclose(ratio, 1, rel_tol=1e-3):
            raise UserError(
                f'structure={self.options.algorithm.structure} fixes the '
                'density of the masks, at which the FLOPs are '
                f'{ratio:.4f} of the dense ones and cannot be matched; accept '
                "them by flops='nominal' of the backbone, or choose another "
                'structure.'
            )
        return self.nominal_sparsity

    def _fit(self, sparsity: float) -> dict[str, int]:
        """Return the active weights at a sparsity, rounded by structure."""
        asked = self.distribution.counts(self.shapes, sparsity)
        return fit_counts(self.structures, self.model, asked)

    @cached_property
    def structures(self) -> dict[str, Structure]:
        """Structure of each mask, by full name."""
        return self.options.structures(self.parameters)

    def densities_of(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Return the densities of active weights, by full name."""
        return {n: counts[n] / p.numel() for n, p in self.parameters.items()}

    @property
    def _advice(self) -> str:
        """Advice for masks that cannot have the dense network's FLOPs."""
        assert self.backbone is not None
        if self.backbone.flops == 'match_model':
            return (
                'Necks and heads that read wider features cost too much: '
                "choose a smaller sparsity, or flops='match'."
            )
        if isinstance(self.distribution, Grouped):
            return (
                "The groups' own sparsities are kept: change them, or set "
                "flops='nominal'."
            )
        everything = self.options.include is None and not self.options.exclude
        if everything and self.backbone.growth > 1:
            return self.backbone.advice(self._classifier[1])
        return "Mask more layers, or set flops='nominal'."

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters to mask, filters first, by full name."""
        return {n: filter_shape(p) for n, p in self.parameters.items()}

    @cached_property
    def counts(self) -> dict[str, int]:
        """Active weights of each parameter, rounded by the structure.

        Raises:
            ValueError: If the structure does not fit a layer.
        """
        return self._fit(self.solved_sparsity)

    @property
    def rounds(self) -> str:
        """Description of the structure's rounding of active weights, or ''."""
        size = sum(p.numel() for p in self.parameters.values())
        asked = self.distribution.counts(self.shapes, self.solved_sparsity)
        return rounding(self.structures, size, asked, self.counts)

    def draw(
        self,
        seed: int,
        counts: Mapping[str, int] | None = None,
        passes: Passes = (),
    ) -> MaskSet:
        """Draw the first masks of a run, the same on every rank.

        They have ``counts`` active weights, by default those of the plan.
        """
        model, parameters = self.model, self.parameters
        initializer = self.options.initializer
        measured = flops_per_weight(initializer, model, parameters, passes)
        return draw_masks(
            model,
            parameters,
            self.counts if counts is None else counts,
            initializer,
            seed,
            self.structures,
            passes,
            self.costs or measured,
        )

    @property
    def costs(self) -> dict[str, float]:
        """FLOPs of a weight in the budget, by full name; empty without one."""
        matched = self.backbone and self.backbone.flops == 'match_model'
        budget = self.whole if matched else self.budget
        if budget is None:
            return {}
        return {
            name: budget.own.of(name.removeprefix(budget.prefix)) / p.numel()
            for name, p in self.parameters.items()
        }

    @property
    def densities(self) -> dict[str, float]:
        """Density of each parameter, by full name."""
        return self.densities_of(self.counts)

    @property
    def ratio(self) -> float | None:
        """FLOPs under masks divided by those of the dense twin."""
        if self.budget is None:
            return None
        return self.budget.ratio(self.densities)

    @cached_property
    def _classifier(self) -> tuple[float, float]:
        """FLOPs of a linear classifier, and of the dense twin's classifier.

        They grow with the features. Necks and heads of detectors and
        segmentors are excluded: their FLOPs depend differently on the image
        size.
        """
        layer = getattr(getattr(self.model, 'head', None), 'fc', None)
        if self.backbone is None or not isinstance(layer, nn.Linear):
            return 0, 0
        out = getattr(self.backbone, 'out_channels', None)
        if not isinstance(out, list) or layer.in_features != out[-1]:
            return 0, 0
        flops = 2 * layer.in_features * layer.out_features
        return flops, flops / self.backbone.growth
