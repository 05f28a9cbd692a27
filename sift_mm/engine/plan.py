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
from sift_mm.layers import Composite, Wide
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


@dataclass(frozen=True)
class FlopBudget:
    """FLOPs of a network beside those of its dense twin, in 2 x MACs.

    Args:
        own (FlopCount): Of the network, with dense weights.
        dense (float): Of the dense twin.
        prefix (str): Of the names of ``own`` in the model.
        classifier (float): Of a linear head that is not in ``own``.
    """

    own: FlopCount
    dense: float
    prefix: str = ''
    classifier: float = 0

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


@dataclass(eq=False)
class MaskPlan:
    """The masks that a model asks for, each fact looked up once, when asked.

    A run that takes the masks of a checkpoint never asks for counts.
    ``count_whole`` gives the FLOPs of the whole model beside the dense one,
    at the size of the test images; it is None where no config is known.
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
        """Prefix and Sparse-IFT backbone, see :func:`sparse_backbone`."""
        return sparse_backbone(self.model)

    @property
    def backbone(self) -> SparseIFTBackbone | None:
        """The Sparse-IFT backbone, if there is one with a family."""
        return self.found[1] if self.found else None

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that get masks, by full name.

        Empty for a Sparse-IFT backbone that needs none.

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
        """The one sparsity of a run, written in the backbone or the hook.

        Raises:
            ValueError: If the two disagree or neither says it.
        """
        sparsity = self.hook_sparsity
        if self.backbone is not None:
            sizes = {self.backbone.sparsity}
        else:
            # Of layers that sift_mm.transform put in.
            sizes = {
                round(1 - module.density, 12)
                for module in self.model.modules()
                if isinstance(module, (Composite, Wide))
                and module.sparse_parameter_names()
            }
        if len(sizes) > 1:
            raise UserError(
                f'The layers of the model have several sparsities, '
                f'{sorted(sizes)}; masks are drawn at one.'
            )
        written = next(iter(sizes), sparsity)
        if written is None and isinstance(self.distribution, Explicit):
            return 0.0  # Each layer has its own, and this one plays no part.
        if written is None:
            raise UserError(
                'No sparsity is given: the model has no Sparse-IFT layers, so '
                'SparseTrainingHook needs sparsity=... and include=[...].'
            )
        if sparsity is not None and not math.isclose(sparsity, written):
            raise UserError(
                f'The layers of the model have sparsity={written} and '
                f'SparseTrainingHook sparsity={sparsity}. Write it once, in '
                'the model: the hook follows where it has none.'
            )
        return written

    @cached_property
    def budget(self) -> FlopBudget | None:
        """FLOPs of a Sparse-IFT backbone and a classifier's linear head."""
        if self.found is None:
            return None
        prefix, backbone = self.found
        own, dense = backbone_flops(backbone)
        classifier, dense_classifier = self._classifier
        return FlopBudget(own, dense + dense_classifier, prefix, classifier)

    @cached_property
    def whole(self) -> FlopBudget:
        """FLOPs of the whole model, with neck and heads.

        Raises:
            ValueError: If they cannot be counted, with the reason.
        """
        if self.count_whole is None:
            raise UserError('the run has no config to read the model from')
        return self.count_whole()

    @cached_property
    def solved_sparsity(self) -> float:
        """The sparsity that masks are drawn at, as ``flops`` asks for it.

        Raises:
            ValueError: If no masks give the dense network's FLOPs.
        """
        backbone, budget = self.backbone, self.budget
        # An explicit distribution does not listen to the sparsity.
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
                    f"flops='match_model' cannot be had: {error}; set "
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
        """What to do where no masks give the dense network's FLOPs."""
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
        """Of the parameters that get masks, by full name."""
        return {n: tuple(p.shape) for n, p in self.parameters.items()}

    @cached_property
    def counts(self) -> dict[str, int]:
        """Active weights of each parameter, as the structure has them."""
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
        """Words on active weights that the structure rounds, or ''."""
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
        """Share of active weights, by full name of the parameter."""
        return {
            n: self.counts[n] / p.numel() for n, p in self.parameters.items()
        }

    @property
    def ratio(self) -> float | None:
        """FLOPs of the :attr:`budget` under masks, over the dense twin's."""
        if self.budget is None:
            return None
        return self.budget.ratio(self.densities)

    @cached_property
    def _classifier(self) -> tuple[float, float]:
        """FLOPs of a linear classifier, and of the dense twin's.

        It grows with the features. Necks and heads of detectors and
        segmentors are left out here: their FLOPs depend on the image
        otherwise than a backbone's.
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
    """FLOPs of a backbone with dense weights, and of its dense twin.

    In 2 x MACs, at the backbone's ``match_shape``.

    Raises:
        ValueError: If it does not run on an image of that shape alone.
    """
    shape, channels = backbone.match_shape, backbone.image_channels
    try:
        return (
            count_flops(backbone, shape, channels),
            count_flops(backbone.dense_twin(), shape, channels).total,
        )
    except Exception as error:  # Whatever a layer makes of the image.
        kind = getattr(backbone, 'kind', type(backbone))
        raise UserError(
            f'The FLOPs of {kind.__name__} cannot be matched: it '
            f'does not run on an image of {shape[0]} x {shape[1]} pixels '
            f'alone ({type(error).__name__}: '
            f'{str(error).partition(chr(10))[0]}); set match_shape of the '
            "backbone, or flops='nominal'."
        ) from error


def whole_model_budget(cfg: Config, model: nn.Module) -> FlopBudget:
    """FLOPs of a whole model and of its dense one, for one test image.

    Raises:
        ValueError: If the config does not say how large the images are, or
            the model cannot be counted.
    """
    from sift_mm.config.dense import build_dense
    from sift_mm.config.images import channels_of, find_sizes
    from sift_mm.flops.model_forward import count_model

    (shape, _), _ = find_sizes(cfg, None)
    channels = channels_of(cfg, model)
    own, _ = count_model(model, shape, channels)
    found = sparse_backbone(model)
    wide = found[1] if found and found[0] == 'backbone.' else None
    dense, _ = count_model(build_dense(cfg, wide), shape, channels)
    return FlopBudget(own, dense.total)
