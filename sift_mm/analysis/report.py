"""What the network of a config costs, as numbers."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, init_default_scope
from torch import nn

from sift_mm.analysis import Profile, count_call, on_meta, profile
from sift_mm.backbones import SparseIFTMixin
from sift_mm.config.images import Shape, find_sizes, schedule_samples
from sift_mm.config.nodes import type_name
from sift_mm.config.reading import import_library
from sift_mm.engine import SparseTrainingHook
from sift_mm.engine.checks import check_channels, consumer_channels
from sift_mm.engine.launch import replace_sync_norms
from sift_mm.engine.plan import MaskPlan, sparse_backbone
from sift_mm.engine.transfer import pretrained_source
from sift_mm.sparsity import training_flops

COUNTS = (
    'FLOPs are 2 x MACs of convolutions and matrix products, for one image; '
    'norms, activations, pooling, interpolation, losses and NMS are not '
    'counted. Sparse: a masked layer costs its share of active weights. '
    'Memory is that of the parameters, and of the output of each layer for '
    'one image, without gradients and optimizer. M is 10^6, G 10^9, P 10^15.'
)


@dataclass
class Network:
    """A model with the share of active weights of its masked parameters."""

    model: nn.Module
    densities: Mapping[str, float]
    channels: int

    def profile(self, shape: Shape) -> Profile:
        """Its costs at a shape.

        Raises:
            ValueError: If it does not run at that shape.
        """
        try:
            return profile(
                self.model,
                shape,
                self.densities,
                self.channels,
                mode='tensor',
            )
        except Exception as error:  # Whatever a layer makes of the shape.
            reason = str(error).partition('\n')[0]
            raise ValueError(
                'the model does not run in tensor mode on an image of '
                f'{shape[0]} x {shape[1]} pixels alone '
                f'({type(error).__name__}: {reason})'
            ) from error

    def training_forward(self, shape: Shape) -> tuple[float, float]:
        """FLOPs of a forward pass in training, under masks and dense.

        The auxiliary heads of a segmentor run then, and only then.
        """
        total = self.profile(shape).total()
        sparse, dense = total.flops_sparse, total.flops_dense
        trial: Any = on_meta(self.model, norms=False)
        heads = getattr(trial, 'auxiliary_head', None)
        if heads is None:
            return sparse, dense
        with torch.no_grad():
            features = trial.extract_feat(
                torch.empty(1, self.channels, *shape, device='meta')
            )
        several = isinstance(heads, nn.ModuleList)
        for i, head in enumerate(heads if several else [heads]):
            prefix = f'auxiliary_head.{i}.' if several else 'auxiliary_head.'
            count = count_call(head, features)
            sparse += count.sparse(
                {
                    name.removeprefix(prefix): density
                    for name, density in self.densities.items()
                    if name.startswith(prefix)
                }
            )
            dense += count.total
        return sparse, dense


def build(cfg: Config) -> nn.Module:
    """Builds the model, without weights of ``init_cfg``."""
    model = copy.deepcopy(cfg.model)
    replace_sync_norms(model)  # Some want a process group to be built.
    return MODELS.build(model)


def build_hook(cfg: Config) -> SparseTrainingHook | None:
    """Builds the hook that trains masks, if the config has one."""
    for hook in cfg.get('custom_hooks') or []:
        if type_name(hook) == 'SparseTrainingHook':
            return HOOKS.build(hook)
    return None


def build_dense(cfg: Config, model: nn.Module) -> nn.Module:
    """Builds the dense network that a model is compared with.

    Its neck and heads read what the dense backbone gives, where it is known
    how their config says so.

    Args:
        cfg (Config): Config of the model.
        model (nn.Module): The model.

    Returns:
        nn.Module: The model itself, if no backbone of it has a family.

    Raises:
        ValueError: If that backbone is not ``model.backbone``.
    """
    found = sparse_backbone(model)
    if found is None:
        return model
    if found[0] != 'backbone.':
        raise ValueError(f'the Sparse-IFT backbone is model.{found[0][:-1]}')
    cfg = copy.deepcopy(cfg)
    for name, argument in inspect.signature(SparseIFTMixin).parameters.items():
        if argument.kind is argument.KEYWORD_ONLY:
            cfg.model.backbone.pop(name, None)
    out = MODELS.build(cfg.model.backbone).out_channels
    cfg.merge_from_dict(
        {
            f'model.{key}': expected
            for key, _, expected in consumer_channels(model, out)
        }
    )
    return build(cfg)


def report_masks(
    hook: SparseTrainingHook | None, plan: MaskPlan | None, model: nn.Module
) -> dict[str, Any] | None:
    """What the report says about masks, None without any."""
    if hook is None or plan is None or not plan.parameters:
        return None
    return dict(
        algorithm=type(hook.algorithm).__name__,
        parameters=len(plan.parameters),
        nominal_sparsity=plan.nominal,
        sparsity=plan.sparsity,
        flops_ratio=plan.ratio,
        interval=hook.interval,
        end=hook.end,
        transferred=hook.transfer
        if not hook.init_is_given and pretrained_source(model, plan.parameters)
        else None,
    )


def compare(here: Profile, dense: Profile) -> dict[str, Any]:
    """FLOPs of backbone, neck and heads, and those of the dense network."""
    own, other = here.parts(), dense.parts()
    parts = [
        dict(
            name=name or 'the model itself',
            flops=own[name].flops_sparse if name in own else 0,
            flops_of_dense=other[name].flops_dense if name in other else 0,
        )
        for name in dict.fromkeys([*own, *other])
    ]
    total, dense_total = here.total().flops_sparse, dense.total().flops_dense
    backbone = here.total('backbone').flops_sparse
    dense_backbone = dense.total('backbone').flops_dense
    added = (total - backbone) - (dense_total - dense_backbone)
    return dict(
        parts=parts,
        total=dict(flops=total, flops_of_dense=dense_total),
        backbone_ratio=dense_backbone and backbone / dense_backbone,
        added_share=added / max(dense_total, 1),
    )


def report_training(
    network: Network,
    dense: Network | None,
    masks: dict[str, Any] | None,
    shape: Shape,
) -> dict[str, float]:
    """FLOPs of training on one sample, by method.

    Args:
        network (Network): The network of the config.
        dense (Network, optional): The dense one that it is compared with.
        masks (dict, optional): Of :func:`report_masks`, None without masks.
        shape (tuple[int, int]): Height and width of the training images.

    Returns:
        dict[str, float]: 'dense' is the dense network's; 'unmasked' is that
        of a network which is another, but has no masks.
    """
    methods = {}
    if dense is not None:
        methods['dense'] = training_flops(
            'dense', *dense.training_forward(shape)
        )
    sparse, full = network.training_forward(shape)
    if masks is not None:
        schedule = masks['interval'], masks['end']
        methods |= {
            name: training_flops(name, sparse, full, *schedule)
            for name in ('static', 'SET', 'RigL')
        }
    elif dense is None or dense.model is not network.model:
        methods['unmasked'] = training_flops('dense', sparse, full)
    return methods


def make_report(
    cfg: Config,
    shape: Sequence[int] | None = None,
    epoch_samples: int | None = None,
    batch: int | None = None,
) -> dict[str, Any]:
    """Counts what the network of a config costs.

    Args:
        cfg (Config): Config of a run; it is left as it is.
        shape (Sequence[int], optional): Height and width of the image, in
            pixels; by default as the pipelines make them.
        epoch_samples (int, optional): As for :func:`schedule_samples`.
        batch (int, optional): Likewise.

    Returns:
        dict[str, Any]: What ``--json`` writes; numbers are not rounded.

    Raises:
        ValueError: If the config contradicts itself, says too little, or its
            model does not run at the shape.
    """
    if 'model' not in cfg:
        raise ValueError('the config has no model')
    (test, source), (train, train_source) = find_sizes(cfg, shape)
    import_library(cfg)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = build(cfg)
    check_channels(model)
    hook = build_hook(cfg)
    plan = hook and hook.plan(model)
    masks = report_masks(hook, plan, model)
    if masks and masks['transferred'] == 'dense':
        plan = masks = None  # The run drops them.
    channels = (cfg.model.get('backbone') or {}).get('in_channels', 3)
    network = Network(model, plan.densities if plan else {}, channels)
    costs = network.profile(test)
    dense, comparison, why_not = None, None, None
    try:
        dense = Network(build_dense(cfg, model), {}, channels)
        comparison = compare(costs, dense.profile(test))
    except ValueError as error:
        dense, why_not = None, str(error)
    methods = report_training(network, dense, masks, train)
    samples, samples_source = schedule_samples(cfg, epoch_samples, batch)
    return dict(
        counts=COUNTS,
        shape=test,
        shape_source=source,
        sparse_backbone=sparse_backbone(model) is not None,
        masks=masks,
        layers=[asdict(row) for row in costs.rows],
        total=asdict(costs.total()),
        comparison=comparison,
        not_compared=why_not,
        training=dict(
            shape=train,
            shape_source=train_source,
            samples=samples,
            samples_source=samples_source,
            flops_per_sample=methods,
            flops=samples
            and {name: samples * flops for name, flops in methods.items()},
        ),
    )
