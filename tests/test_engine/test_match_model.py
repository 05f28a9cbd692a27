"""Equal FLOPs of the whole model, where heads read wider features."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from sift_mm.config.libraries import import_library
from sift_mm.config.loading import read_config
from sift_mm.engine import SparseTrainingHook


def plan_of(config, **options):
    """Return the plan of a config with a Sparse Wide backbone at 0.75."""
    cfg = read_config(config, dict(options), family='wide', sparsity=0.75)
    import_library(cfg)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):  # Of all this, numbers are the least.
        model = MODELS.build(cfg.model)
    return SparseTrainingHook().plan(model, cfg)


CONFIGS = {
    'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py': 1.39,
    'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py': 1.0065,
}


@pytest.mark.parametrize('config', CONFIGS)
def test_backbone_neck_and_heads_meet_the_dense_model_together(config):
    options = {'model.backbone.norm_cfg.type': 'BN'}
    if 'mmseg' in config:
        options['model.data_preprocessor.size'] = (512, 1024)
    alone = plan_of(config, **options)
    assert alone.ratio == pytest.approx(1, abs=1e-5)
    # What heads that read four times the channels add, as get_flops says.
    assert alone.whole.ratio(alone.densities) == pytest.approx(
        CONFIGS[config], abs=0.01
    )
    options['model.backbone.flops'] = 'match_model'
    found = plan_of(config, **options)
    assert found.whole.ratio(found.densities) == pytest.approx(1, abs=1e-5)
    assert found.solved_sparsity > alone.solved_sparsity
    assert found.ratio < 1
