"""Forward pass of any of the libraries' models, without arithmetic.

What a detector does depends on the numbers that it computes: how many regions
it proposes, how many objects it finds. The meta device has no numbers, so
these are taken as many as the config allows, which is what the model is built
to do on a busy image.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_map_only

from sift_mm.errors import UserError
from sift_mm.flops.counting import (
    FlopCount,
    count_while,
    meta_image,
    on_meta,
    plain_operators,
)

# Larger ones are features; smaller ones say what shape features have.
SMALL = 64
# Kinds of heads by which a detector is known.
DETECT = ('bbox', 'roi', 'panoptic')
# Of modules of mmcv, what the counter does not see.
UNCOUNTED = {
    'MultiScaleDeformableAttention': 'sampling and weighting of multi-scale '
    'deformable attention',
    'CARAFEPack': 'the reassembly of features by CARAFE',
}


class NotCountable(UserError):
    """Error of a model that does not run without numbers."""


class _SmallOnHost(TorchFunctionMode):
    """Mode that makes tensors of literals on the CPU, with values."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor):
            kwargs['device'] = 'cpu'
        return func(*args, **kwargs)


class _ShapesKnown(TorchDispatchMode):
    """Mode for models on the meta device whose shapes follow from tensors.

    Small whole numbers stay on the CPU, as transformers keep the sizes of
    their feature maps in them. Where they meet a tensor without numbers, the
    result has none. What is looked for in such a tensor is found everywhere,
    which costs the most.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        aten = torch.ops.aten
        if func is aten._to_copy.default and _is_small(args[0]):
            kwargs['device'] = torch.device('cpu')
        elif tree_any(_is_meta, (args, kwargs)):
            if func is aten.nonzero.default:
                found = (args[0].numel(), args[0].dim())
                return args[0].new_empty(found, dtype=torch.int64)
            if func is aten._unique2.default:
                # All are of one image, or one class, the first.
                first = torch.zeros(1, dtype=args[0].dtype, device='cpu')
                return first, torch.empty_like(args[0]).long(), first.long()
            if func is aten._to_copy.default:
                kwargs['device'] = torch.device('meta')
            if func is aten._local_scalar_dense.default and (
                args[0].dtype is torch.bool
            ):
                return True
            if func is aten.index.Tensor:
                args = (args[0], _all_places(args[1]))
            new = (aten.new_zeros.default, aten.new_ones.default)
            if func not in new:
                args, kwargs = tree_map_only(
                    Tensor, lambda t: t.to('meta'), (args, kwargs)
                )
        return func(*args, **kwargs)


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _is_small(tensor: Tensor) -> bool:
    return (
        not tensor.is_meta
        and not tensor.is_floating_point()
        and tensor.numel() <= SMALL
    )


def _all_places(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Return indices in place of masks, of all that a mask may select."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype is not torch.bool:
            places.append(index)
        else:
            one = index.new_empty(index.numel(), dtype=torch.int64)
            places += [one] * index.dim()
    return places


def run_once(
    model: nn.Module, image: Tensor, auxiliary: bool = False
) -> tuple[str, ...]:
    """Run a model of :func:`~sift_mm.flops.on_meta` once, on one image.

    With the auxiliary heads of a segmentor, which run in training alone, if
    so wanted. Returns what was taken from the config where it depends on the
    image, such as '1000 proposals, as test_cfg.rpn.max_per_img'.
    """
    said: list[str] = []
    heads: Any = getattr(model, 'auxiliary_head', None) if auxiliary else None
    with (
        torch.no_grad(),
        _SmallOnHost(),
        _ShapesKnown(),
        _regions(model, said),
        _instances(model, said),
        plain_operators(),
    ):
        if heads is None:
            call_model(model, image)
        else:
            # All heads read the same features, which are made once.
            features: list[Any] = []
            extract: Any = model.extract_feat

            def remember(*args: Any, **kwargs: Any) -> Any:
                features.append(extract(*args, **kwargs))
                return features[-1]

            with mock.patch.object(model, 'extract_feat', remember):
                call_model(model, image)
            several = isinstance(heads, nn.ModuleList)
            for head in heads if several else [heads]:
                head(features[-1])
    queries = getattr(model, 'num_queries', None)
    for name in ('panoptic_head', 'decode_head'):
        queries = getattr(getattr(model, name, None), 'num_queries', queries)
    if isinstance(queries, int):
        said.append(f'{queries} queries, as num_queries')
    kinds = {type(module).__name__ for module in model.modules()}
    said += [
        f'{what}, which is neither a convolution nor a matrix product, not '
        'counted'
        for kind, what in UNCOUNTED.items()
        if kind in kinds
    ]
    return tuple(said)


def call_model(model: Any, image: Tensor) -> None:
    """Run a model on images, up to what its heads make of the features."""
    parameters = inspect.signature(model.forward).parameters
    if 'mode' not in parameters:
        model(image)
        return
    # A plain network is counted without OpenMMLab.
    from mmengine.structures import BaseDataElement, InstanceData

    shape = tuple(image.shape[-2:])
    metainfo: dict[str, Any] = dict(scale_factor=(1.0, 1.0), flip=False)
    for kind in ('img', 'ori', 'pad', 'batch_input'):
        metainfo[f'{kind}_shape'] = shape
    sample = BaseDataElement(
        metainfo=metainfo,
        gt_instances=InstanceData(),
        # For a detector that has none of its own.
        proposals=InstanceData(),
    )
    samples = [sample] * len(image)
    head = getattr(model, 'decode_head', None)
    if isinstance(head, nn.ModuleList):  # Heads in a cascade, of mmseg.
        # The model itself runs no tensor mode.
        model.encode_decode(image, [sample.metainfo] * len(image))
    elif head is not None and (
        'batch_data_samples' in inspect.signature(head.forward).parameters
    ):
        head(model.extract_feat(image), samples)
    elif any(hasattr(model, f'{kind}_head') for kind in DETECT):
        model(image, samples, mode='tensor')
    else:
        model(image, mode='tensor')


@contextmanager
def _regions(model: Any, said: list[str]) -> Iterator[None]:
    """Let the second stage of a detector see as many regions as it may."""
    roi_head = getattr(model, 'roi_head', None)
    points = getattr(model, 'decode_head', None)
    if isinstance(points, nn.ModuleList):
        steps = model.test_cfg.get('subdivision_steps')
        if steps is not None:
            said.append(
                f'{model.test_cfg.subdivision_num_points} points in each of '
                f'{steps} subdivisions, as test_cfg.subdivision_num_points'
            )
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
    said.append(f'{number} proposals, as {key}')
    found = number
    if not hasattr(rpn, 'num_proposals'):  # Masks are of all that is learnt.
        key = 'test_cfg.rcnn.max_per_img'
        found = (settings.get('rcnn') or {}).get('max_per_img', number)
        found = min(found, number)
    if getattr(roi_head, 'with_mask', False):
        said.append(f'masks of {found} objects, as {key}')

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

    Each head is given what it asks for, by name.
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
    # Cascade R-CNN's masks are the mean of those of its stages; others have
    # one head, take the last, or run all of them themselves.
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
def _instances(model: Any, said: list[str]) -> Iterator[None]:
    """Let a detector of one stage make masks of as many objects as it may.

    In tensor mode they would be those of the annotations.
    """
    head = getattr(model, 'bbox_head', None)
    if getattr(model, 'mask_head', None) is None or head is None:
        yield
        return
    found = model.test_cfg.max_per_img
    said.append(f'masks of {found} objects, as test_cfg.max_per_img')

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


def count_trial(
    trial: nn.Module, image: Tensor, auxiliary: bool = False
) -> tuple[FlopCount, tuple[str, ...]]:
    """Count the FLOPs (2 x MACs) of :func:`run_once`; returns its words too.

    Raises:
        NotCountable: A ValueError, if the model does not run.
    """
    said: list[str] = []
    try:
        count = count_while(
            trial, lambda: said.extend(run_once(trial, image, auxiliary))
        )
    except NotCountable:
        raise
    except Exception as error:  # Whatever a layer makes of the shape.
        height, width = image.shape[-2:]
        reason = str(error).partition('\n')[0]
        raise NotCountable(
            'the model does not run in tensor mode on an image of '
            f'{height} x {width} pixels alone '
            f'({type(error).__name__}: {reason})'
        ) from error
    return count, tuple(said)


def count_model(
    model: nn.Module, shape: tuple[int, int], channels: int = 3
) -> tuple[FlopCount, tuple[str, ...]]:
    """Count the FLOPs of any of the libraries' models on one image.

    Args:
        model (nn.Module): Detector, segmentor, classifier or backbone; it is
            left as it is.
        shape (tuple[int, int]): Height and width of the image, in pixels.
        channels (int): Channels of the image.

    Returns:
        tuple[FlopCount, tuple[str, ...]]: In 2 x MACs; and what was taken
        from the config, see :func:`run_once`.

    Raises:
        NotCountable: A ValueError, if the model cannot be run so.
    """
    trial = on_meta(model, norms=False)
    return count_trial(trial, meta_image(shape, channels))
