"""FLOPs of layers whose cost depends on the image's content."""

from typing import Any

import pytest
import torch
from mmcv.ops import CARAFEPack, MaskedConv2d, batched_nms, deform_conv2d
from mmengine.config import Config
from torch import nn

from sift_mm.config.building import build
from sift_mm.config.libraries import import_library
from sift_mm.config.loading import read_config
from sift_mm.flops import profile
from sift_mm.flops.model_forward import count_model

R18 = {
    'model.backbone.depth': 18,
    'model.neck.in_channels': [64, 128, 256, 512],
}


class Operators(nn.Module):
    """mmcv's operators by the names that a library imports them by."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Conv2d(3, 6, 1)
        self.up = CARAFEPack(3, 2, up_kernel=5, compressed_channels=4)
        self.masked = MaskedConv2d(3, 7, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = x.new_ones(3, 1, 1, 1)
        x = deform_conv2d(x, self.offset(x), weight, 1, 0, 1, 3, 3)
        x = self.up(x)
        return self.masked(x, x[:, 0] > 0)


def test_operators_of_mmcv() -> None:
    count, said = count_model(Operators(), (4, 6))
    assert count.by_module['offset'] == 2 * 3 * 6 * 24
    # To 4 channels, and 3 x 3 of these to 5 x 5 weights for each of 4 pixels.
    assert count.by_module['up'] == 2 * (3 * 4 + 9 * 4 * 100) * 24
    # At all of the four times as many pixels.
    assert count.by_module['masked'] == 2 * 9 * 3 * 7 * 96
    # One weight for each channel where the offset leads to.
    assert count.own[''] == 2 * 3 * 24
    assert said == (
        'the reassembly of features by CARAFE, which is neither a '
        'convolution nor a matrix product, not counted',
    )


class Suppression(nn.Module):
    """Boxes of several classes, of which a layer reads what is left."""

    def __init__(self, boxes: int, most: int) -> None:
        super().__init__()
        self.boxes = boxes
        self.most = most
        self.layer = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        boxes = x.new_ones(self.boxes, 4)
        classes = torch.ones(self.boxes, device=x.device)
        how = dict(type='nms', iou_threshold=0.5, max_num=self.most)
        kept, _ = batched_nms(boxes, x.new_ones(self.boxes), classes, how)
        return self.layer(kept)


@pytest.mark.parametrize(
    'boxes, most, kept',
    [
        (10, -1, 10),
        (10, 7, 7),
        (10_001, -1, 10_001),  # mmcv goes by classes.
    ],
)
def test_all_boxes_are_kept(boxes: int, most: int, kept: int) -> None:
    count, _ = count_model(Suppression(boxes, most), (4, 4))
    assert count.total == 2 * 5 * 2 * kept


def rows_of(name: str, **more: Any) -> tuple[dict[str, int], tuple[str, ...]]:
    """Count the FLOPs by layer of a library's detector at 64 x 64 pixels."""
    cfg: Config = read_config(f'mmdet::{name}', R18 | more)
    import_library(cfg)
    with torch.device('meta'):  # Values are drawn for seconds.
        model = build(cfg)
    found = profile(model, (64, 64))
    return {r.name: r.flops_dense for r in found.rows}, found.assumed


def conv(rois: int) -> int:
    """Count a 3 x 3 convolution, 256 to 256 channels, on 14 x 14 pixels."""
    return 2 * rois * 14**2 * 9 * 256**2


def test_masks_of_stages_that_share_a_run() -> None:
    rows, said = rows_of('htc/htc_r50_fpn_1x_coco.py')
    assert 'masks of 100 objects, as test_cfg.rcnn.max_per_img' in said
    # Each stage's boxes of 1000 proposals; all masks in one run.
    for stage in range(3):
        head = f'roi_head.bbox_head.{stage}.fc_cls'
        assert rows[head] == 2 * 1000 * 1024 * 81
        head = f'roi_head.mask_head.{stage}.convs.0.conv'
        assert rows[head] == conv(100)


def test_heads_behind_boxes_and_masks() -> None:
    rows, _ = rows_of('ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py')
    # Masks of all classes, and a score of the one of each object.
    assert rows['roi_head.mask_head.convs.0.conv'] == conv(100)
    head = 'roi_head.mask_iou_head.fc_mask_iou'
    assert rows[head] == 2 * 100 * 1024 * 80
    rows, _ = rows_of('grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco.py')
    # From 14 x 14 to 7 x 7 pixels of the 100 boxes that are found.
    head = 'roi_head.grid_head.convs.0.conv'
    assert rows[head] == 2 * 100 * 7**2 * 9 * 256 * 576


def test_masks_that_read_what_boxes_give() -> None:
    rows, _ = rows_of('scnet/scnet_r50_fpn_1x_coco.py')
    assert rows['roi_head.bbox_head.1.fc_cls'] == 2 * 1000 * 1024 * 81
    # Once more, for the objects that masks are of.
    assert rows['roi_head.bbox_head.2.fc_cls'] == 2 * 1100 * 1024 * 81
    assert rows['roi_head.feat_relay_head.fc'] == 2 * 100 * 1024 * 256 * 7**2
    assert rows['roi_head.mask_head.convs.0.conv1'] == conv(100)
    assert rows['roi_head.glbctx_head.fc'] == 2 * 256 * 80


def test_proposals_that_are_learnt() -> None:
    rows, said = rows_of('queryinst/queryinst_r50_fpn_1x_coco.py')
    assert said == (
        '100 proposals, as rpn_head.num_proposals',
        'masks of 100 objects, as rpn_head.num_proposals',
    )
    for stage in range(6):
        head = f'roi_head.bbox_head.{stage}.fc_cls'
        assert rows[head] == 2 * 100 * 256 * 80
    # A test has masks of the last stage alone, of all proposals.
    assert rows['roi_head.mask_head.5.convs.0.conv'] == conv(100)
    assert rows['roi_head.mask_head.4.convs.0.conv'] == 0


def test_masks_of_one_stage() -> None:
    rows, said = rows_of('yolact/yolact_r50_8xb8-55e_coco.py')
    assert said == ('masks of 100 objects, as test_cfg.max_per_img',)
    # Of 32 prototypes at 16 x 16 pixels.
    assert rows[''] == 2 * 16**2 * 32 * 100
    rows, _ = rows_of('condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py')
    # Of each object, layers of its own at 8 x 8 pixels: from 8 channels and
    # two coordinates to 8, 8 and 1.
    assert rows[''] == 2 * 8**2 * 100 * (10 * 8 + 8 * 8 + 8)


def test_proposals_from_a_file() -> None:
    name = 'fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py'
    with pytest.raises(ValueError, match=r'test_cfg\.rpn\.max_per_img'):
        rows_of(name)
    rows, _ = rows_of(name, **{'model.test_cfg.rpn.max_per_img': 7})
    assert rows['roi_head.bbox_head.fc_cls'] == 2 * 7 * 1024 * 81
