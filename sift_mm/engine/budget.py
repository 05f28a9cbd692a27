"""The sparsity of a run: as written, or solved for equal FLOPs."""

from collections.abc import Mapping
from math import prod

from torch import nn

from ..analysis import count_flops
from ..backbones import SparseIFTMixin
from ..isoflop import solve_sparsity
from ..sparsity import Distribution, Explicit


def sparse_backbone(model: nn.Module) -> tuple[str, SparseIFTMixin] | None:
    """The Sparse-IFT backbone of a model and the prefix of its names.

    Returns:
        tuple, optional: ('backbone.', module), or None without a backbone of
        a family.

    Raises:
        ValueError: If there are several: one sparsity cannot be matched for
            both.
    """
    found = [((f'{name}.' if name else ''), module)
             for name, module in model.named_modules()
             if isinstance(module, SparseIFTMixin) and module.family]
    if len(found) > 1:
        raise ValueError('The model has several Sparse-IFT backbones with a '
                         f'family, {[name for name, _ in found]}; masks can '
                         'be trained for one.')
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
    if found is None:
        if sparsity is None:
            raise ValueError(
                'No sparsity is given: the model has no Sparse-IFT backbone '
                'with a family, so SparseTrainingHook needs sparsity=... and '
                'include=[...].')
        return sparsity
    written = found[1].sparsity
    if sparsity is not None and sparsity != written:
        raise ValueError(
            f'The backbone has sparsity={written} and SparseTrainingHook '
            f'sparsity={sparsity}. Write it once, in the backbone: the hook '
            'follows where it has none.')
    return written


def matched_sparsity(model: nn.Module, shapes: Mapping[str, tuple[int, ...]],
                     distribution: Distribution,
                     nominal: float) -> tuple[float, float | None]:
    """The sparsity that masks are drawn at.

    Args:
        model (nn.Module): The model.
        shapes (Mapping): Shapes of the sparse parameters by full name.
        distribution (Distribution): Shares the sparsity out over layers.
        nominal (float): The sparsity as written.

    Returns:
        tuple[float, float | None]: The sparsity, and the backbone's FLOPs
        over those of its dense twin; None without a Sparse-IFT backbone.

    Raises:
        ValueError: If the backbone asks for a match that no sparsity gives.
    """
    found = sparse_backbone(model)
    if found is None:
        return nominal, None
    prefix, backbone = found
    in_channels = next(backbone.parameters()).shape[1]
    shape = backbone.match_shape
    own = count_flops(backbone, shape, in_channels)
    budget = count_flops(backbone.dense_twin(), shape, in_channels).total

    def cost(sparsity: float) -> float:
        counts = distribution.counts(shapes, sparsity)
        return own.sparse({
            name.removeprefix(prefix): counts[name] / prod(shapes[name])
            for name in shapes if name.startswith(prefix)
        })

    sparsity = nominal
    # An explicit distribution does not listen to the sparsity.
    if backbone.flops == 'match' and not isinstance(distribution, Explicit):
        sparsity = solve_sparsity(cost, budget)
    return sparsity, cost(sparsity) / budget
