"""First masks of a network, drawn the same way in runs, loops and reports."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from sift_mm.errors import UserError
from sift_mm.flops.counting import count_while
from sift_mm.orientation import filters_first
from sift_mm.sparsity.initializers import Initializer, NetworkInitializer
from sift_mm.sparsity.initializers.network_initializer import (
    Passes,
    undisturbed,
)
from sift_mm.sparsity.masks import MaskSet
from sift_mm.sparsity.processes import take_first_
from sift_mm.sparsity.structures import Structure


def draw_masks(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    counts: Mapping[str, int],
    initializer: Initializer,
    seed: int,
    structures: Mapping[str, Structure],
    passes: Passes = (),
    costs: Mapping[str, float] | None = None,
) -> MaskSet:
    """Draw the first masks of a network, the same on every rank.

    Args:
        model (nn.Module): Network, not changed.
        parameters (Mapping): Parameters to mask, by name.
        counts (Mapping): Active weights of each parameter. An initializer of
            the whole network spreads their FLOPs anew.
        initializer (Initializer): Initializer of the masks.
        seed (int): Seed of the masks.
        structures (Mapping): Structure of each mask.
        passes (Sequence): Functions that run the network, for initializers of
            the whole network.
        costs (Mapping, optional): FLOPs of a weight by parameter name, for
            initializers of the whole network.

    Raises:
        ValueError: If the passes give no score.
    """
    if not isinstance(initializer, NetworkInitializer):
        return MaskSet.draw(parameters, counts, initializer, seed, structures)
    size = sum(p.numel() for p in parameters.values())
    density = sum(counts.values()) / size
    scores = {
        name: filters_first(score, parameters[name])
        for name, score in initializer.network_scores(
            model, parameters, passes, density
        ).items()
    }
    if all(structure.density is None for structure in structures.values()):
        assert costs is not None
        counts = spread(scores, counts, costs, structures)
    first = {n: structures[n].first(s, counts[n]) for n, s in scores.items()}
    masks = MaskSet(
        parameters,
        {n: filters_first(first[n], p) for n, p in parameters.items()},
    )
    take_first_(list(masks.values()))
    return masks


def flops_per_weight(
    initializer: Initializer,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    passes: Passes,
) -> dict[str, float] | None:
    """Count the FLOPs of a weight in the first pass, by parameter name.

    None for an initializer that reads no batches.

    Raises:
        ValueError: If the initializer needs passes and has none, or has some
            and needs none.
    """
    name = type(initializer).__name__
    if not isinstance(initializer, NetworkInitializer):
        if passes:
            raise UserError(
                f'first_pass is for init=SNIP, GraSP and SynFlow; {name!r} '
                'reads no batch.'
            )
        return None
    if not passes:
        raise UserError(
            f'init={name!r} scores weights on first batches, and there are '
            'none here: give first_pass to SparseTraining, or to a command a '
            'checkpoint with masks.'
        )
    with undisturbed(model):
        # One input of ones has no statistics for norms.
        model.train(initializer.reads == 'loss')
        flops = count_while(model, passes[0])
    return {n: flops.of(n) / p.numel() for n, p in parameters.items()}


def spread(
    scores: Mapping[str, Tensor],
    counts: Mapping[str, int],
    costs: Mapping[str, float],
    structures: Mapping[str, Structure],
) -> dict[str, int]:
    """Share the FLOPs of active weights among layers by one threshold.

    The weights above the threshold have, as nearly as whole weights can, the
    FLOPs of the counts. Each layer keeps at least one.

    Args:
        scores (Mapping): Scores of the weights, by name.
        counts (Mapping): Active weights whose FLOPs are the budget.
        costs (Mapping): FLOPs of a weight, by name.
        structures (Mapping): Structure of each mask.
    """
    values = {
        name: score.flatten().nan_to_num(-torch.inf, torch.inf, -torch.inf)
        for name, score in scores.items()
    }
    ranked = np.sort(torch.cat([*values.values()]).numpy())[::-1]
    budget = sum(counts[name] * costs[name] for name in counts)

    def take(k: int) -> dict[str, int]:
        """Return the counts of the k highest scores; first layers win ties."""
        last = float(ranked[k - 1])
        found = {n: int((v > last).sum()) for n, v in values.items()}
        left = k - sum(found.values())
        for name, value in values.items():
            tied = min(left, int((value == last).sum()))
            found[name] += tied
            left -= tied
        return {
            name: structures[name].fit(scores[name].shape, max(1, count))
            for name, count in found.items()
        }

    def miss(k: int) -> float:
        return sum(n * costs[name] for name, n in take(k).items()) - budget

    low, high = 1, len(ranked)
    while low < high:
        middle = (low + high) // 2
        if miss(middle) < 0:
            low = middle + 1
        else:
            high = middle
    return take(min(low, max(1, low - 1), key=lambda k: abs(miss(k))))
