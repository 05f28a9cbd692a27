"""Plan of a run's masks: parameters, active weights and FLOP budget."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mmengine.config import Config
from torch import nn

from sift_mm.backbones import SparseIFTBackbone
from sift_mm.backbones.base import sparse_backbone
from sift_mm.errors import UserError
from sift_mm.flops import FlopCount, count_flops
from sift_mm.flops.isoflop import solve_sparsity
from sift_mm.sparsity import (
    Distribution,
    Explicit,
    Initializer,
    MaskSet,
    Structure,
    Unstructured,
    select_parameters,
    sparse_parameter_names,
)
from sift_mm.sparsity.parameters import layer_densities


@dataclass(frozen=True)
class FlopBudget:
    """FLOPs of a network and of its dense twin, in 2 x MACs.

    Args:
        own (FlopCount): FLOPs of the network with dense weights.
        dense (float): FLOPs of the dense twin.
        prefix (str): Prefix of the names of ``own`` in the model.
        classifier (float): FLOPs of a linear head that is not in ``own``.
    """

    own: FlopCount
    dense: float
    prefix: str = ''
    classifier: float = 0

    def cost(self, densities: Mapping[str, float]) -> float:
        """Return the FLOPs under masks of given densities, by full name."""
        return self.classifier + self.own.sparse(
            {
                name.removeprefix(self.prefix): density
                for name, density in densities.items()
                if name.startswith(self.prefix)
            }
        )

    def ratio(self, densities: Mapping[str, float]) -> float:
        """Return :meth:`cost` divided by the FLOPs of the dense twin."""
        return self.cost(densities) / self.dense


@dataclass(eq=False)
class MaskPlan:
    """Plan of a run's masks: parameters, active weights and FLOP budget.

    Properties are computed on first access: a run that takes the masks of a
    checkpoint needs no counts.

    Args:
        model (nn.Module): Model of the run.
        distribution (Distribution): Distribution of the sparsity over layers.
        hook_sparsity (float, optional): Sparsity option of the hook.
        include (Sequence[str], optional): Patterns of parameters to mask.
        exclude (Sequence[str]): Patterns of parameters to leave dense.
        count_whole (Callable, optional): Function that returns the budget of
            the whole model at the size of test images; None without config.
        structure (Structure): Structure of the masks.
    """

    model: nn.Module
    distribution: Distribution
    hook_sparsity: float | None = None
    include: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    count_whole: Callable[[], FlopBudget] | None = None
    structure: Structure = Unstructured()  # noqa: RUF009, has no state

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
        if (
            self.include is None
            and self.backbone
            and not sparse_parameter_names(self.model)
        ):
            return {}
        return select_parameters(self.model, self.include, self.exclude)

    @cached_property
    def nominal_sparsity(self) -> float:
        """Sparsity of the run, from the backbone or the hook.

        Raises:
            ValueError: If both differ, or none is given.
        """
        sparsity = self.hook_sparsity
        if self.backbone is not None:
            sizes = {self.backbone.sparsity}
        else:
            # Layers of sift_mm.transform.
            densities = layer_densities(self.model).values()
            sizes = {round(1 - density, 12) for density in densities}
        if len(sizes) > 1:
            raise UserError(
                f'The layers of the model have several sparsities, '
                f'{sorted(sizes)}; masks are drawn at one.'
            )
        written = next(iter(sizes), sparsity)
        if written is None and isinstance(self.distribution, Explicit):
            return 0.0  # Each layer has its own sparsity.
        if written is None:
            raise UserError(
                'No sparsity is given: the model has no Sparse-IFT layers, so '
                'SparseTrainingHook needs sparsity=... and include=[...].'
            )
        if sparsity is not None and not math.isclose(sparsity, written):
            raise UserError(
                f'The layers of the model have sparsity={written} and '
                f'SparseTrainingHook sparsity={sparsity}. Write it once, in '
                'the model: the hook takes it from there.'
            )
        return written

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
            or isinstance(self.distribution, Explicit)
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
        shapes = self.shapes
        target = budget
        try:
            return solve_sparsity(
                lambda s: target.cost(self.distribution.densities(shapes, s)),
                target.dense,
            )
        except ValueError as error:
            raise UserError(f'{error} {self._advice}') from None

    @property
    def _advice(self) -> str:
        """Advice for masks that cannot have the dense network's FLOPs."""
        assert self.backbone is not None
        if self.backbone.flops == 'match_model':
            return (
                'Necks and heads that read wider features cost too much: '
                "choose a smaller sparsity, or flops='match'."
            )
        everything = self.include is None and not self.exclude
        if everything and self.backbone.grows:
            return self.backbone.advice(self._classifier[1])
        return "Mask more layers, or set flops='nominal'."

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters to mask, by full name."""
        return {n: tuple(p.shape) for n, p in self.parameters.items()}

    @cached_property
    def counts(self) -> dict[str, int]:
        """Active weights of each parameter, rounded by the structure."""
        return {
            name: self.structure.fit(self.shapes[name], count)
            for name, count in self._asked.items()
        }

    @cached_property
    def _asked(self) -> dict[str, int]:
        """Active weights of each parameter before the structure rounds."""
        return self.distribution.counts(self.shapes, self.solved_sparsity)

    @property
    def rounds(self) -> str:
        """Description of the structure's rounding of active weights, or ''."""
        asked, found = sum(self._asked.values()), sum(self.counts.values())
        if asked == found:
            return ''
        size = sum(p.numel() for p in self.parameters.values())
        return (
            f'structure={type(self.structure).__name__!r} rounds density '
            f'{asked / size:.6f} to {found / size:.6f}'
        )

    def draw(self, initializer: Initializer, seed: int) -> MaskSet:
        """Draw the first masks of a run, the same on every rank."""
        return MaskSet.draw(
            self.parameters, self.counts, initializer, seed, self.structure
        )

    @property
    def densities(self) -> dict[str, float]:
        """Density of each parameter, by full name."""
        return {
            n: self.counts[n] / p.numel() for n, p in self.parameters.items()
        }

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


def backbone_flops(backbone: SparseIFTBackbone) -> tuple[FlopCount, float]:
    """Count the FLOPs of a backbone with dense weights, and of its dense twin.

    Counts are 2 x MACs at the backbone's ``match_shape``.

    Raises:
        ValueError: If the backbone does not run on an image of that shape.
    """
    shape, channels = backbone.match_shape, backbone.image_channels
    try:
        return (
            count_flops(backbone, shape, channels),
            count_flops(backbone.dense_twin(), shape, channels).total,
        )
    except Exception as error:  # Layers raise errors of any type.
        kind = getattr(backbone, 'kind', type(backbone))
        raise UserError(
            f'The FLOPs of {kind.__name__} cannot be matched: it '
            f'does not run on an image of {shape[0]} x {shape[1]} pixels '
            f'alone ({type(error).__name__}: '
            f'{str(error).partition(chr(10))[0]}); set match_shape of the '
            "backbone, or flops='nominal'."
        ) from error


def whole_model_budget(cfg: Config, model: nn.Module) -> FlopBudget:
    """Count the FLOPs of a model and of its dense twin for a test image.

    Raises:
        ValueError: If the config has no image size, or the FLOPs cannot be
            counted.
    """
    from sift_mm.config.dense import build_dense
    from sift_mm.config.images import channels_of, find_sizes
    from sift_mm.flops.model_forward import count_model

    (shape, _), _ = find_sizes(cfg, None)
    channels = channels_of(cfg, model)
    own, _ = count_model(model, shape, channels)
    found = sparse_backbone(model)
    if found is None:
        return FlopBudget(own, own.total)
    wide = found[1] if found[0] == 'backbone.' else None
    dense, _ = count_model(build_dense(cfg, wide), shape, channels)
    return FlopBudget(own, dense.total)
