"""Masks and FLOPs of a run, as a line of the log and as a record."""

from collections.abc import Mapping
from typing import Any

from sift_mm.engine.plan import MaskPlan
from sift_mm.engine.transfer import Origin
from sift_mm.sparsity import MaskTrainer


class MaskDescription:
    """Description of the masks of a run and their FLOPs.

    Args:
        plan (MaskPlan): Plan of the masks.
        origin (Origin): Origin of the first masks.
        transfer (str): Option of the hook.
        trainer (MaskTrainer, optional): Trainer, if the run has masks.
        steps (int): Optimizer steps of the run.

    Attributes:
        text (str): Line for the log.
        record (dict): Entries 'budget', 'member' and 'transfer' of the
            checkpoint.
    """

    def __init__(
        self,
        plan: MaskPlan,
        origin: Origin,
        transfer: str,
        trainer: MaskTrainer | None,
        steps: int,
    ) -> None:
        self.plan = plan
        self.record: dict[str, Any] = dict(budget={}, member={}, transfer='')
        if trainer is None:
            self.text = self._without_masks(origin)
            return
        if origin is Origin.TRANSFERRED:
            self.record['transfer'] = transfer
        self.text = self._with_masks(trainer, steps)

    def _without_masks(self, origin: Origin) -> str:
        plan = self.plan
        if origin is Origin.NEEDLESS:
            return (
                'The backbone needs no masks: its FLOPs (with a classifier, '
                f'if it has one) are {plan.ratio:.6f} of the dense one '
                f'without them{self._whole_ratio({})}.'
            )
        text = "transfer='dense': masks are dropped, and all weights train"
        if plan.budget is not None:
            text += (
                f', at {plan.budget.ratio({}):.4f} times the FLOPs of the '
                f"dense twin's backbone{self._whole_ratio({})}"
            )
        return f'{text}.'

    def _with_masks(self, trainer: MaskTrainer, steps: int) -> str:
        plan, counts = self.plan, trainer.counts
        sizes = {name: mask.numel() for name, mask in trainer.masks.items()}
        final = dict(counts.final)
        density = sum(final.values()) / sum(sizes.values())
        text = (
            f'{type(trainer.algorithm).__name__} on {len(sizes)} '
            f'parameters: sparsity {plan.nominal_sparsity} as written, masks '
            f'at density {density:.6f}'
        )
        if transfer := self.record['transfer']:
            text += f', taken from the loaded checkpoint ({transfer=})'
        elif plan.rounds:
            text += f' ({plan.rounds})'
        self.record['budget'] = {
            'nominal': plan.nominal_sparsity,
            'sparsity': 1 - density,
        }
        text += self._flops({n: final[n] / sizes[n] for n in sizes})
        if not counts.changes:
            return text
        first = {n: count / sizes[n] for n, count in counts.at(0).items()}
        return text + self._course(first, counts.mean_densities(steps))

    def _flops(self, densities: Mapping[str, float]) -> str:
        """Describe the FLOPs of a Sparse-IFT backbone, else ''."""
        plan = self.plan
        if plan.budget is None or plan.backbone is None:
            return ''
        ratio = plan.budget.ratio(densities)
        self.record['budget']['flops_ratio'] = ratio
        self.record['member'] = plan.backbone.describe_member()
        return (
            ', FLOPs of the backbone (with a classifier, if it has one) '
            f'{ratio:.6f} of the dense one'
            f'{self._whole_ratio(densities)}'
        )

    def _whole_ratio(self, densities: Mapping[str, float]) -> str:
        """Describe the FLOPs of the whole model, heads included."""
        try:
            ratio = self.plan.whole.ratio(densities)
        except ValueError as error:
            return f' (the whole model was not counted: {error})'
        self.record['budget']['model_flops_ratio'] = ratio
        return f', of the whole model {ratio:.4f}'

    def _course(
        self, first: Mapping[str, float], mean: Mapping[str, float]
    ) -> str:
        """Describe density and FLOPs at the start and over the training."""
        sizes = {n: p.numel() for n, p in self.plan.parameters.items()}

        def density(densities: Mapping[str, float]) -> float:
            active = sum(densities[n] * size for n, size in sizes.items())
            return active / sum(sizes.values())

        text = (
            '; these are those after the last update: the density is '
            f'{density(first):.4f} at the start and {density(mean):.4f} on '
            'average over the training'
        )
        budget = self.plan.budget
        if budget is None or self.plan.backbone is None:
            return text
        ratio = self.record['budget']['mean_flops_ratio'] = budget.ratio(mean)
        return (
            f'{text}, with {budget.ratio(first):.4f} and {ratio:.4f} of the '
            "dense backbone's FLOPs"
        )
