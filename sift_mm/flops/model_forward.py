"""Forward pass of any of the libraries' models, without arithmetic."""

import inspect
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from sift_mm.flops.counting import (
    FlopCount,
    count_while,
    describe_shape,
    meta_image,
    on_meta,
)
from sift_mm.flops.detectors import (
    NotCountable,
    full_instances,
    full_regions,
)
from sift_mm.flops.meta_operators import plain_operators

# Kinds of heads of detectors.
DETECT = ('bbox', 'roi', 'panoptic')
# Operations of mmcv's modules that the counter does not see.
UNCOUNTED = {
    'MultiScaleDeformableAttention': 'sampling and weighting of multi-scale '
    'deformable attention',
    'CARAFEPack': 'the reassembly of features by CARAFE',
}


def run_once(
    model: nn.Module, image: Tensor, auxiliary: bool = False
) -> tuple[str, ...]:
    """Run a model of :func:`~sift_mm.flops.on_meta` once, on one image.

    Args:
        model (nn.Module): The model, changed during the call only.
        image (Tensor): The image, on the meta device.
        auxiliary (bool): Whether a segmentor's auxiliary heads run too, as in
            training.

    Returns:
        tuple[str, ...]: Assumptions from the config on numbers that depend on
        the image, as '1000 proposals, as test_cfg.rpn.max_per_img'.
    """
    assumed: list[str] = []
    heads: Any = getattr(model, 'auxiliary_head', None) if auxiliary else None
    with (
        torch.no_grad(),
        full_regions(model, assumed),
        full_instances(model, assumed),
        plain_operators(),
    ):
        if heads is None:
            call_model(model, image)
        else:
            # All heads read the same features.
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
    return tuple(assumed + _other_assumptions(model))


def _other_assumptions(model: Any) -> list[str]:
    """Return the assumptions on points, queries and uncounted operations."""
    assumed = []
    if isinstance(getattr(model, 'decode_head', None), nn.ModuleList):
        steps = model.test_cfg.get('subdivision_steps')
        if steps is not None:
            assumed.append(
                f'{model.test_cfg.subdivision_num_points} points in each of '
                f'{steps} subdivisions, as test_cfg.subdivision_num_points'
            )
    queries = getattr(model, 'num_queries', None)
    for name in ('panoptic_head', 'decode_head'):
        queries = getattr(getattr(model, name, None), 'num_queries', queries)
    if isinstance(queries, int):
        assumed.append(f'{queries} queries, as num_queries')
    kinds = {type(module).__name__ for module in model.modules()}
    assumed += [
        f'{name}, which is neither a convolution nor a matrix product, not '
        'counted'
        for kind, name in UNCOUNTED.items()
        if kind in kinds
    ]
    return assumed


def call_model(model: Any, image: Tensor) -> None:
    """Run a model on images, without the post-processing of its heads."""
    parameters = inspect.signature(model.forward).parameters
    if 'mode' not in parameters:
        model(image)
        return
    # A plain network does not need OpenMMLab.
    from mmengine.structures import BaseDataElement, InstanceData

    shape = tuple(image.shape[-2:])
    metainfo: dict[str, Any] = dict(scale_factor=(1.0, 1.0), flip=False)
    for kind in ('img', 'ori', 'pad', 'batch_input'):
        metainfo[f'{kind}_shape'] = shape
    sample = BaseDataElement(
        metainfo=metainfo,
        gt_instances=InstanceData(),
        # For a detector without an RPN.
        proposals=InstanceData(),
    )
    samples = [sample] * len(image)
    head = getattr(model, 'decode_head', None)
    if isinstance(head, nn.ModuleList):  # A cascade of heads in mmseg.
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


def count_trial(
    trial: nn.Module, image: Tensor, auxiliary: bool = False
) -> tuple[FlopCount, tuple[str, ...]]:
    """Count the FLOPs (2 x MACs) of :func:`run_once`, and return its texts.

    Raises:
        NotCountable: A ValueError, if the model does not run.
    """
    assumed: list[str] = []
    try:
        count = count_while(
            trial, lambda: assumed.extend(run_once(trial, image, auxiliary))
        )
    except NotCountable:
        raise
    except Exception as error:  # Any error of a layer.
        text = image.dim() == 2
        shape = describe_shape(image.shape[1 if text else -2 :])
        reason = str(error).partition('\n')[0]
        raise NotCountable(
            f'the model does not run in tensor mode on '
            f'{"a text" if text else "an image"} of {shape} alone '
            f'({type(error).__name__}: {reason})'
        ) from error
    return count, tuple(assumed)


def count_model(
    model: nn.Module, shape: tuple[int, ...], channels: int = 3
) -> tuple[FlopCount, tuple[str, ...]]:
    """Count the FLOPs of any of the libraries' models on one image or text.

    Args:
        model (nn.Module): Detector, segmentor, classifier or backbone; it
            does not change.
        shape (tuple[int, ...]): As for :func:`~sift_mm.flops.meta_image`.
        channels (int): Channels of the image.

    Returns:
        tuple[FlopCount, tuple[str, ...]]: FLOPs in 2 x MACs; and assumptions
        from the config, see :func:`run_once`.

    Raises:
        NotCountable: A ValueError, if the model does not run so.
    """
    trial = on_meta(model, norms=False)
    return count_trial(trial, meta_image(shape, channels))
