"""Masks and FLOPs of a run, as a line of the log and as a record."""

from collections.abc import Mapping
from typing import Any

from sift_mm.engine.plan import MaskPlan
from sift_mm.engine.transfer import Origin
from sift_mm.sparsity import MaskTrainer


def without_masks(plan: MaskPlan, origin: Origin) -> str:
    """Describe a run without masks in a line."""
    whole, _ = _whole_model(plan, {})
    if origin is Origin.NEEDLESS:
        return (
            'The backbone needs no masks: its FLOPs (with a classifier, if it '
            f'has one) are {plan.ratio:.6f} of the dense one without '
            f'them{whole}.'
        )
    text = "transfer='dense': masks are dropped, and all weights train"
    if plan.budget is not None:
        text += (
            f', at {plan.budget.ratio({}):.4f} times the FLOPs of the dense '
            f"twin's backbone{whole}"
        )
    return f'{text}.'


def with_masks(
    plan: MaskPlan,
    trainer: MaskTrainer,
    algorithms: str,
    transfer: str,
    steps: int,
) -> tuple[str, dict[str, Any]]:
    """Describe the masks of a run and their FLOPs.

    Args:
        plan (MaskPlan): Plan of the masks.
        trainer (MaskTrainer): Trainer with its first masks.
        algorithms (str): Names of the algorithms.
        transfer (str): Option of the hook, '' for masks of the run's own.
        steps (int): Optimizer steps of the run.

    Returns:
        tuple[str, dict]: Line for the log, and entries 'budget', 'member' and
        'transfer' of the checkpoint.
    """
    counts = trainer.counts
    final = plan.densities_of(counts.final)
    size = sum(p.numel() for p in plan.parameters.values())
    density = sum(counts.final.values()) / size
    text = (
        f'{algorithms} on {len(final)} parameters: '
        f'sparsity {plan.nominal_sparsity} as written, masks at density '
        f'{density:.6f}'
    )
    if transfer:
        text += f', taken from the loaded checkpoint ({transfer=})'
    elif plan.rounds:
        text += f' ({plan.rounds})'
    found: dict[str, Any] = dict(
        nominal=plan.nominal_sparsity, sparsity=1 - density
    )
    record = dict(budget=found, member={}, transfer=transfer)
    budget = plan.budget
    if budget is not None and plan.backbone is not None:
        record['member'] = plan.backbone.describe_member()
        found['flops_ratio'] = budget.ratio(final)
        whole, ratio = _whole_model(plan, final)
        found |= ratio
        text += (
            ', FLOPs of the backbone (with a classifier, if it has one) '
            f'{found["flops_ratio"]:.6f} of the dense one{whole}'
        )
    if not counts.changes:
        return text, record
    start, mean = counts.course(steps)
    text += (
        '; these are those after the last update: the density is '
        f'{start:.4f} at the start and {mean:.4f} on average over the training'
    )
    if record['member']:
        assert budget is not None
        first = budget.ratio(plan.densities_of(counts.at(0)))
        over_all = budget.ratio(counts.mean_densities(steps))
        found['mean_flops_ratio'] = over_all
        text += (
            f', with {first:.4f} and {over_all:.4f} of the dense '
            "backbone's FLOPs"
        )
    return text, record


def _whole_model(
    plan: MaskPlan, densities: Mapping[str, float]
) -> tuple[str, dict[str, float]]:
    """Describe the FLOPs of the whole model, heads included."""
    try:
        ratio = plan.whole.ratio(densities)
    except ValueError as error:
        return f' (the whole model was not counted: {error})', {}
    return f', of the whole model {ratio:.4f}', {'model_flops_ratio': ratio}
