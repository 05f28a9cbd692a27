"""Parameters and FLOPs of a tested network under its masks."""

import logging
from collections.abc import Mapping

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel
from mmengine.runner import Runner
from torch import Tensor, nn

from sift_mm.checkpoint.state import mask_training
from sift_mm.config.dense import dense_network
from sift_mm.config.images import channels_of, find_sizes
from sift_mm.engine.plan import sparse_backbone
from sift_mm.engine.wrappers import unwrap
from sift_mm.errors import UserError
from sift_mm.flops.layer_costs import compare, mask_densities, profile
from sift_mm.names import shortened


class MasksHook(Hook):
    """Hook that keeps the masks of the tested checkpoint."""

    masks: Mapping[str, Tensor] = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the masks.

        Raises:
            ValueError: If the mask training cannot be read.
        """
        self.masks = (mask_training(checkpoint) or {}).get('masks', {})


class CostHook(MasksHook):
    """Hook that counts parameters and FLOPs of the tested network.

    Args:
        cfg (Config): Config of the run, without test-time augmentation.

    Attributes:
        cost (dict): Result of :func:`measure_cost` in the first process, set
            before the first test image.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.cost: dict[str, float] = {}

    def before_test(self, runner: Runner) -> None:
        """Count parameters and FLOPs."""
        if runner.rank:
            return
        model = unwrap(runner.model)
        if isinstance(model, BaseTTAModel):
            model = model.module
        if not self.masks:
            warn_without_masks(model)
        self.cost = measure_cost(self.cfg, model, self.masks)


def measure_cost(
    cfg: Config, model: nn.Module, masks: Mapping[str, Tensor]
) -> dict[str, float]:
    """Count parameters and FLOPs of a network under bool masks.

    Returns:
        dict[str, float]: 'parameters', 'active_parameters', 'density' (share
        of active weights among masked weights) and, if the config has the size
        of test images, 'flops' (2 x MACs per image) and 'flops_of_dense' (of
        the dense network).
    """
    check_masks(model, masks)
    channels = channels_of(cfg, model)
    densities = mask_densities(masks)
    active = sum(int(mask.count_nonzero()) for mask in masks.values())
    size = sum(mask.numel() for mask in masks.values())
    total = sum(p.numel() for p in model.parameters())
    cost: dict[str, float] = {
        'parameters': total,
        'active_parameters': total - size + active,
        'density': active / size if size else 1.0,
    }
    try:
        (shape, _), _ = find_sizes(cfg, None)
        here = profile(model, shape, densities, channels)
        dense = profile(dense_network(cfg, model), shape, None, channels)
    except ValueError as error:
        print_log(f'No FLOPs: {error}.', logger='current')
        return cost
    if here.assumed:
        assumed = '; '.join(here.assumed)
        print_log(f'FLOPs are counted with {assumed}.', logger='current')
    return cost | compare(here, dense)['total']


def warn_without_masks(model: nn.Module) -> None:
    """Warn if a network is built for masks and has none."""
    found = sparse_backbone(model)
    if found is None or not found[1].sparse_parameter_names():
        return
    backbone = found[1]
    print_log(
        'The config asks for a sparse network (family='
        f'{backbone.family!r}, sparsity={backbone.sparsity}), but the '
        'checkpoint has no masks: it is tested and counted with all its '
        'weights, at more than the FLOPs of the dense network.',
        logger='current',
        level=logging.WARNING,
    )


def check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Warn if weights outside the masks are not zero.

    Raises:
        UserError: If the masks belong to another network.
    """
    parameters = dict(model.named_parameters())
    unknown = [
        name
        for name, mask in masks.items()
        if name not in parameters or parameters[name].shape != mask.shape
    ]
    if unknown:
        raise UserError(
            'The masks of the checkpoint are of another network than this: '
            f'{shortened(unknown)}; give --family and --sparsity of its '
            'training, or the config in its work dir.'
        )
    wrong = [
        name
        for name, mask in masks.items()
        if parameters[name].detach().cpu().masked_fill(mask.cpu(), 0).any()
    ]
    if wrong:
        print_log(
            'Weights outside the masks of the checkpoint are not zero, so '
            f'that the density is higher: {shortened(wrong)}.',
            logger='current',
            level=logging.WARNING,
        )
