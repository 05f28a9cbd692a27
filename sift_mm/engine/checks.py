"""Mistakes of a config, found before the first iteration."""

from collections.abc import Iterable
from typing import Any

from mmengine.config import Config
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from sift_mm.engine.plan import sparse_backbone
from sift_mm.errors import Mistake
from sift_mm.flops import meta_image, on_meta, skip_norms, watched
from sift_mm.sparsity.parameters import only_pieces, refuse_pieces

# Of the images of trial runs, where a config does not say.
TRIALS = ((256, 256), (256, 128))
# How the libraries name the width of what a module reads.
KEY = 'in_channels'


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a data-parallel wrapper.

    Raises:
        TypeError: If the wrapper, or a module in the model, shards
            parameters: a rank then sees pieces of weights.
    """
    if is_model_wrapper(model):
        if not isinstance(model, (DistributedDataParallel, DataParallel)):
            raise only_pieces(type(model).__name__)
        model = model.module
    refuse_pieces(model.modules())
    refuse_pieces(model.parameters())
    return model


def check_channels(model: nn.Module, cfg: Config) -> None:
    """Sends an image without numbers through a model with a wide backbone.

    Of the size in testing, and in training. What fits at any size is no
    fault: a layer may read channels and places together.

    Raises:
        ValueError: If a layer gets another number of channels than it reads,
            with the values of the config that fit, where they are known.
    """
    found = sparse_backbone(model)
    if found is None or found[0] != 'backbone.':
        return
    backbone: Any = found[1]
    if (misfit := find_misfit(model, cfg)) is None:
        return
    name, reads, gets = misfit
    raise Mistake(
        f'model.{name} reads {reads} channels and gets {gets}: the backbone '
        f'(family={backbone.family!r}, sparsity={backbone.sparsity}) gives '
        f'{getattr(backbone, "out_channels", "other")} channels; '
        f'{_advice(cfg, backbone, misfit)}.'
    )


def find_misfit(model: nn.Module, cfg: Config) -> tuple[str, int, int] | None:
    """The layer that gets another number of channels than it reads.

    Of a model with a ``backbone`` that fits itself, at the sizes of images
    that a config says: its name, what it reads, and what it gets.
    """
    trial: Any = on_meta(model)
    skip_norms(trial.backbone)  # They fit, and take most of the time.
    misfit = None
    for shape in _shapes(cfg):
        channels = getattr(trial.backbone, 'image_channels', 3)
        now = _misfit_at(trial, shape, channels)
        if now is None or misfit not in (None, now):
            return None
        misfit = now
    return misfit


def _shapes(cfg: Config) -> Iterable[tuple[int, int]]:
    """Sizes of images that the model is made for, or two of any."""
    from sift_mm.config.images import find_sizes

    try:
        return dict.fromkeys(shape for shape, _ in find_sizes(cfg, None))
    except ValueError:
        return TRIALS


def _misfit_at(
    trial: nn.Module, shape: tuple[int, int], channels: int
) -> tuple[str, int, int] | None:
    """What does not fit in a model that has no numbers, see :func:`_misfit`.

    None too where it fails in another way, which is no fault of the config.
    """
    # Reports are read by those who check nothing.
    from sift_mm.analysis.model_forward import run_once

    running: list[tuple[str, Any, Any]] = []

    def enter(name: str, module: Any, args: Any) -> None:
        running.append((name, module, args))

    def leave(*_: Any) -> None:
        running.pop()

    try:
        with watched(trial, enter, leave):
            run_once(trial, meta_image(shape, channels), auxiliary=True)
    except Exception:
        return _misfit(*running[-1]) if running else None
    return None


def _misfit(name: str, module: Any, args: Any) -> tuple[str, int, int] | None:
    """A layer, the channels that it reads, and those that it gets."""
    if not args or not isinstance(args[0], Tensor) or args[0].dim() < 2:
        return None
    gets = args[0].shape[-1 if hasattr(module, 'in_features') else 1]
    for key in ('in_channels', 'in_features', 'num_features', 'num_channels'):
        reads = getattr(module, key, None)
        if isinstance(reads, int):
            return (name, reads, gets) if reads != gets else None
    return None


def _advice(cfg: Config, backbone: Any, misfit: Any) -> str:
    """What to write in the config, where that is known."""
    # It builds what it checks.
    from sift_mm.config.channels import what_fits

    if text := what_fits(cfg, backbone, misfit):
        return f'write {text}'
    return (
        'no in_channels of the config is known to be its width, so that it '
        "cannot follow; family='parallel' leaves features as wide as they are"
    )
