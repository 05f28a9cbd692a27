"""Test time augmentation for the three libraries."""

from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict

from sift_mm.config.data import leaf_datasets
from sift_mm.config.nodes import type_name
from sift_mm.errors import UserError

DEFAULT_MODELS = {
    'mmdet': dict(
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    ),
    'mmseg': dict(type='SegTTAModel'),
    'mmpretrain': dict(type='AverageClsScoreTTA'),
}


def flip_pipeline(pipeline: list[dict]) -> list[dict]:
    """Return a test pipeline of two views, one mirrored."""
    *steps, pack = deepcopy(pipeline)
    if 'meta_keys' in pack:
        # They are needed to mirror the views back.
        keys = [*pack['meta_keys'], 'flip', 'flip_direction']
        pack['meta_keys'] = list(dict.fromkeys(keys))
    # Annotations come after the flip: the merged prediction is not mirrored.
    views = [[dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)]]
    before = []
    for step in steps:
        if type_name(step) == 'LoadAnnotations':
            views.append([step])
        else:
            before.append(step)
    return [*before, dict(type='TestTimeAug', transforms=[*views, [pack]])]


def enable_tta(cfg: Config) -> None:
    """Wrap the model and replace the pipelines of the test data, in place.

    The config's ``tta_model`` and ``tta_pipeline`` replace the defaults.

    Raises:
        UserError: If the config has no ``tta_model`` and its scope no
            default.
    """
    scope = cfg.get('default_scope')
    model: Any = cfg.get('tta_model') or DEFAULT_MODELS.get(scope)
    if model is None:
        raise UserError(f'--tta needs a tta_model in a config of {scope}.')
    cfg.model = ConfigDict(**deepcopy(model), module=cfg.model)
    for leaf in leaf_datasets(cfg.test_dataloader.dataset):
        leaf['pipeline'] = cfg.get('tta_pipeline') or flip_pipeline(
            leaf['pipeline']
        )
