"""Parts of a mask update: report, change and uninterrupted writing."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from sift_mm.sparsity.metrics import MaskHistory


@dataclass(frozen=True)
class UpdateReport:
    """Report of one mask update.

    Args:
        step (int): Optimizer step, counted from 1.
        drop_fraction (float): Share of the active weights that was dropped.
        moved (float): Share of the active weights with a new position.
        skipped (str): Why the update was skipped, or ''.
    """

    step: int
    drop_fraction: float
    moved: float
    skipped: str = ''


@dataclass
class Change:
    """Result of a step that is not yet written.

    Args:
        step (int): Number of completed optimizer steps.
        history (MaskHistory): History with the new masks.
        masks (dict): New masks of the updated layers.
        report (UpdateReport, optional): Report, if an update was due.
    """

    step: int
    history: MaskHistory
    masks: dict[str, Tensor] = field(default_factory=dict)
    report: UpdateReport | None = None


def finish(write: Callable[[], None]) -> None:
    """Run a function to its end, and again if an exception interrupts it.

    Args:
        write (Callable): Function that may run several times.
    """
    try:
        write()
    except KeyboardInterrupt:
        finish(write)  # Impatient users press Ctrl-C twice.
        raise
    except BaseException:
        write()
        raise


def why_to_skip(optimizer: Optimizer) -> str:
    """Return why masks cannot be updated from the gradients, or ''."""
    gradients = [
        p.grad._values() if p.grad.is_sparse else p.grad
        for group in optimizer.param_groups
        for p in group['params']
        if p.grad is not None and p.grad.numel()
    ]
    gradients = [gradient for gradient in gradients if gradient.numel()]
    if not gradients:
        return 'no parameter had a gradient'
    # Several times faster on the CPU than norms, which are not vectorized.
    extremes = [e for gradient in gradients for e in gradient.aminmax()]
    device = extremes[0].device
    finite = torch.stack([e.float().to(device) for e in extremes]).isfinite()
    return '' if bool(finite.all()) else 'a gradient was not finite'
