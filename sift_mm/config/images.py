"""Size and number of the images or texts of a run, from the config alone."""

from collections.abc import Sequence
from math import ceil
from typing import Any

from mmengine.config import Config
from torch import nn

from sift_mm.config.data import leaf_datasets
from sift_mm.config.nodes import type_name
from sift_mm.data import find_data_set
from sift_mm.errors import UserError
from sift_mm.flops import image_channels

Shape = tuple[int, ...]  # Height and width in pixels, or tokens.

# Size argument of transforms that fix the image size, and its order.
SIZES = {
    'Resize': ('scale', 'wh'),
    'RandomResizedCrop': ('scale', 'hw'),
    'EfficientNetRandomCrop': ('scale', 'hw'),
    'RandomCrop': ('crop_size', 'hw'),
    'CenterCrop': ('crop_size', 'wh'),
    'EfficientNetCenterCrop': ('crop_size', 'hw'),
    'Pad': ('size', 'wh'),
}
# Parts of the names of transforms that vary the image size.
VARY = ('Resize', 'Crop', 'Pad', 'Mosaic', 'MixUp', 'Affine')


def _step_size(step: dict) -> Shape | None:
    """Return height and width after a transform that fixes them."""
    key, order = SIZES[type_name(step)]
    size = step.get(key)
    if size is None or step.get('crop_type', 'absolute') != 'absolute':
        return None
    one, two = (size, size) if isinstance(size, int) else size
    if not isinstance(one, int) or not isinstance(two, int):
        return None
    if step.get('keep_ratio'):
        # Images fit the box in both orientations; most are wide.
        return min(one, two), max(one, two)
    return (one, two) if order == 'hw' else (two, one)


def image_size(cfg: Config, phase: str) -> tuple[Shape, str] | None:
    """Return the image size after the pipeline of a phase.

    Returns:
        tuple, optional: Height and width in pixels, padded for the model, or
        the tokens of a text; and their source in words. None if sizes differ,
        or the config has none.
    """
    loader = cfg.get(f'{phase}_dataloader') or {}
    leaf: dict = next(leaf_datasets(loader.get('dataset') or []), {})
    if leaf.get('context'):
        return (leaf['context'],), f'context of {phase} data'
    known = find_data_set(type_name(leaf))
    size: Shape | None = None if known is None else known.size
    source = f'{type_name(leaf)} images'
    for step in leaf.get('pipeline', []):
        name = type_name(step)
        if name == 'Pad' and step.get('size') is None:
            continue  # It adds few pixels, like the preprocessor.
        if name in SIZES:
            size = _step_size(step)
            source = f'{phase} pipeline, {name} {step.get(SIZES[name][0])}'
        elif any(word in name for word in VARY):
            size = None
    if size is None:
        return None
    preprocessor: dict = cfg.model.get('data_preprocessor') or cfg.get(
        'data_preprocessor', {}
    )
    divisor = preprocessor.get('pad_size_divisor') or 1
    height, width = (ceil(side / divisor) * divisor for side in size)
    if (height, width) != size:
        source += f', padded to multiples of {divisor}'
    return (height, width), source


def find_sizes(
    cfg: Config, given: Sequence[int] | None
) -> tuple[tuple[Shape, str], tuple[Shape, str]]:
    """Return the image sizes in testing and in training.

    Each is that of :func:`image_size`, or the ``given`` one. If only one size
    is fixed, the other is the same.

    Raises:
        ValueError: If the config fixes no size.
    """
    if given is not None:
        found = tuple(given), 'as given'
        return found, found
    test, train = (image_size(cfg, phase) for phase in ('test', 'train'))
    first, second = test or train, train or test
    if first is None or second is None:
        raise UserError(
            'neither test nor train pipeline fixes a size of the images '
            '(--tokens N is that of a text); give it by --shape H W'
        )
    return first, second


def channels_of(cfg: Config, model: nn.Module) -> int:
    """Return the image channels of the model of a config."""
    backbone = cfg.model.get('backbone') or {}
    # In a wrapper, the inner backbone has it.
    given = backbone.get('backbone', backbone).get('in_channels')
    return given or image_channels(model)


def epoch_images(dataset: Any) -> int | None:
    """Return the images of an epoch of a published set, in any wrappers.

    None if only the data could show it.
    """
    kind = type_name(dataset)
    if kind == 'ConcatDataset':
        sizes = [epoch_images(child) for child in dataset['datasets']]
        return None if None in sizes else sum(filter(None, sizes))
    if kind in ('RepeatDataset', 'MultiImageMixDataset', 'InMemoryDataset'):
        inner = epoch_images(dataset['dataset'])
        return inner and inner * dataset.get('times', 1)
    known = find_data_set(kind)
    parts = [dataset.get(key) for key in ('metainfo', 'indices')]
    paths = [dataset.get(key) for key in ('ann_file', 'data_prefix', 'split')]
    if known is None or known.images is None:
        return None
    if parts != [None, None] or known.path not in str(paths):
        return None  # A part of it.
    if not (dataset.get('filter_cfg') or {}).get('filter_empty_gt'):
        return known.images
    empty = known.without_annotations
    return None if empty is None else known.images - empty


def schedule_samples(
    cfg: Config, epoch_samples: int | None = None, batch: int | None = None
) -> tuple[int | None, str]:
    """Return the number of samples of a whole training.

    Args:
        cfg (Config): Config of a run.
        epoch_samples (int, optional): Images of an epoch; None is the
            published number.
        batch (int, optional): Batch size over all processes; None is the
            config's.

    Returns:
        tuple[int | None, str]: The number, None if unknown; and its source, or
        the option that sets it.
    """
    loop, loader = cfg.get('train_cfg') or {}, cfg.get('train_dataloader')
    if not loader:
        return None, 'unknown: the config has no training data'
    if loop.get('max_epochs'):
        name = type_name(next(leaf_datasets(loader['dataset']), {}))
        images = epoch_samples or epoch_images(loader['dataset'])
        if images is None:
            return None, (
                f'unknown: how many images an epoch of this {name} has; '
                '--epoch-samples N says it'
            )
        origin = 'as given' if epoch_samples else f'{name} as published'
        epochs = loop['max_epochs']
        return epochs * images, f'{epochs} epochs of {images:,}, {origin}'
    if not loop.get('max_iters'):
        return None, 'unknown: train_cfg has neither max_epochs nor max_iters'
    scale = cfg.get('auto_scale_lr') or {}
    if batch is not None:
        origin = 'as given'
    elif scale.get('base_batch_size'):
        batch, origin = scale['base_batch_size'], 'auto_scale_lr'
    else:
        batch = loader.get('batch_size', 1)
        origin = 'one process; --batch-size N for another total'
    iterations = loop['max_iters']
    return iterations * batch, f'{iterations:,} batches of {batch}, {origin}'
