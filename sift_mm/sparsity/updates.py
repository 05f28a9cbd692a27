"""Parts of a mask update: its report, its change and how that is written."""

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
        drop_fraction (float): Share of active weights that was dropped.
        moved (float): Share of active weights that are elsewhere now.
        skipped (str): Why nothing was done, or ''.
    """

    step: int
    drop_fraction: float
    moved: float
    skipped: str = ''


@dataclass
class Change:
    """New masks and all that follows from them, not yet written.

    Args:
        step (int): Optimizer step that is complete then.
        history (MaskHistory): History with the new masks.
        masks (dict): New masks, of the layers that may move.
        report (UpdateReport, optional): Report, if an update was due.
    """

    step: int
    history: MaskHistory
    masks: dict[str, Tensor] = field(default_factory=dict)
    report: UpdateReport | None = None


def finish(write: Callable[[], None]) -> None:
    """Run a function to its end, again if an exception breaks into it.

    Args:
        write (Callable): May run several times, from the start.
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
    """Return why no mask can be updated from these gradients, or ''."""
    gradients = [
        p.grad._values() if p.grad.is_sparse else p.grad
        for group in optimizer.param_groups
        for p in group['params']
        if p.grad is not None and p.grad.numel()
    ]
    gradients = [gradient for gradient in gradients if gradient.numel()]
    if not gradients:
        return 'no parameter had a gradient'
    # Several times faster on the CPU than norms, which it can not vectorise.
    extremes = [e for gradient in gradients for e in gradient.aminmax()]
    device = extremes[0].device
    finite = torch.stack([e.float().to(device) for e in extremes]).isfinite()
    return '' if bool(finite.all()) else 'a gradient was not finite'
