"""Second stages and masks of detectors, without numbers.

The number of regions and objects follows from the numbers that a detector
computes. The meta device has none, so the config's maximum is taken, as on a
busy image.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from sift_mm.errors import UserError


class NotCountable(UserError):
    """Error of a model that does not run without numbers."""


@contextmanager
def full_regions(model: Any, assumed: list[str]) -> Iterator[None]:
    """Give the second stage of a detector as many regions as allowed.

    ``assumed`` gets a text for each number that the config gives.
    """
    roi_head = getattr(model, 'roi_head', None)
    if roi_head is None:
        yield
        return
    rpn = getattr(model, 'rpn_head', None)
    key = 'test_cfg.rpn.max_per_img'
    settings = model.test_cfg or {}
    number = (settings.get('rpn') or {}).get('max_per_img')
    if number is None and rpn is not None:
        number = getattr(rpn, 'num_proposals', None)
        key = 'rpn_head.num_proposals'
    if number is None:
        raise NotCountable(
            'the config does not say how many proposals its second stage '
            'sees (test_cfg.rpn.max_per_img)'
        )
    assumed.append(f'{number} proposals, as {key}')
    found = number
    if not hasattr(rpn, 'num_proposals'):  # Else all proposals get masks.
        key = 'test_cfg.rcnn.max_per_img'
        found = (settings.get('rcnn') or {}).get('max_per_img', number)
        found = min(found, number)
    if getattr(roi_head, 'with_mask', False):
        assumed.append(f'masks of {found} objects, as {key}')

    def propose(*args: Any, **kwargs: Any) -> list[Any]:
        found = _objects(number, bboxes=(4,), scores=(), labels=())
        found[0].labels = found[0].labels.long()
        return found

    def forward(x: Any, proposals: Any, samples: Any = ()) -> tuple:
        _second_stage(roi_head, x, proposals, samples, number, found)
        return ()

    def pool(layer: Any) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda feats, rois: feats.new_empty(
            len(rois), feats.shape[1], *layer.output_size
        )

    with ExitStack() as stack:
        for head in (rpn, *getattr(rpn, 'stages', ())):
            if hasattr(head, 'predict_by_feat'):
                stack.enter_context(
                    mock.patch.object(head, 'predict_by_feat', propose)
                )
        if hasattr(roi_head, '_bbox_forward'):
            stack.enter_context(
                mock.patch.object(roi_head, 'forward', forward)
            )
        for module in roi_head.modules():
            for layer in getattr(module, 'roi_layers', ()):
                stack.enter_context(
                    mock.patch.object(layer, 'forward', pool(layer))
                )
        yield


def _second_stage(
    roi_head: Any,
    x: Any,
    proposals: Any,
    samples: Any,
    number: int,
    found: int,
) -> None:
    """Run the second stage on all proposals and objects, as in a test.

    Each head gets the arguments that it names.
    """
    rois = torch.empty(number, 5, device='meta')
    known: dict[str, Any] = dict(x=x, rois=rois, training=False)
    known['batch_img_metas'] = [sample.metainfo for sample in samples]
    if 'features' in proposals[0]:
        known['object_feats'] = proposals[0].features[None]
    for name in ('semantic', 'glbctx'):
        if getattr(roi_head, f'with_{name}', False):
            _, feat = getattr(roi_head, f'{name}_head')(x)
            known[f'{name}_feat'] = feat

    def ask(method: Any, **more: Any) -> Any:
        asked = inspect.signature(method).parameters
        given = known | more
        return method(**{k: v for k, v in given.items() if k in asked})

    stages = range(getattr(roi_head, 'num_stages', 1))
    for stage in stages if roi_head.with_bbox else ():
        boxes = ask(roi_head._bbox_forward, stage=stage)
        for name in ('object_feats', 'attn_feats'):
            if name in boxes:
                known[name] = boxes[name]
    known['rois'] = rois[:found]
    if hasattr(roi_head, 'grid_head'):
        extractor = roi_head.grid_roi_extractor
        roi_head.grid_head.test_mode = True
        roi_head.grid_head(extractor(x[: extractor.num_inputs], known['rois']))
    if not roi_head.with_mask:
        return
    if getattr(roi_head, 'with_feat_relay', False):
        boxes = ask(roi_head._bbox_forward, stage=-1)
        known['relayed_feat'] = roi_head.feat_relay_head(boxes['relayed_feat'])
    # Cascade R-CNN averages the masks of its stages; other detectors have one
    # head, take the last stage, or run all stages themselves.
    asked = set(inspect.signature(roi_head._mask_forward).parameters)
    each = 'stage' in asked and not asked & {'attn_feats', 'training'}
    labels = torch.empty(found, dtype=torch.long, device='meta')
    for stage in stages if each else (-1,):
        masks = ask(roi_head._mask_forward, stage=stage)
        if hasattr(roi_head, 'mask_iou_head'):
            roi_head.mask_iou_head(
                masks['mask_feats'], masks['mask_preds'][:, 0]
            )
        if hasattr(roi_head, '_mask_point_forward_test'):
            roi_head._mask_point_forward_test(
                x, known['rois'], labels, masks['mask_preds']
            )


@contextmanager
def full_instances(model: Any, assumed: list[str]) -> Iterator[None]:
    """Give a one-stage detector as many objects as the config allows.

    In tensor mode, it would make masks of the annotated objects.
    """
    head = getattr(model, 'bbox_head', None)
    if getattr(model, 'mask_head', None) is None or head is None:
        yield
        return
    found = model.test_cfg.max_per_img
    assumed.append(f'masks of {found} objects, as test_cfg.max_per_img')

    def objects() -> list[Any]:
        return _objects(
            found,
            coeffs=(getattr(head, 'num_protos', 0),),
            param_preds=(getattr(head, 'num_params', 0),),
            points=(2,),
            strides=(),
        )

    with (
        mock.patch.object(head, 'loss', lambda *args, **kwargs: {}),
        mock.patch.object(head, 'get_positive_infos', objects),
    ):
        yield


def _objects(number: int, **shapes: tuple[int, ...]) -> list[Any]:
    """Return the objects of one image, with tensors of these shapes."""
    from mmengine.structures import InstanceData

    return [
        InstanceData(
            **{
                name: torch.empty(number, *shape, device='meta')
                for name, shape in shapes.items()
            }
        )
    ]
