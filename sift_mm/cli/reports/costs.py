"""Costs of the network of a config."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from mmengine.config import Config
from mmengine.registry import HOOKS, init_default_scope
from torch import nn

from sift_mm.backbones.base import sparse_backbone
from sift_mm.config.building import build
from sift_mm.config.channels import check_channels
from sift_mm.config.dense import dense_network
from sift_mm.config.images import channels_of, find_sizes, schedule_samples
from sift_mm.config.libraries import import_library
from sift_mm.config.nodes import hook_place
from sift_mm.engine import SparseTrainingHook
from sift_mm.engine.plan import MaskPlan
from sift_mm.engine.transfer import pretrained_source
from sift_mm.errors import UserError
from sift_mm.flops.layer_costs import compare, profile
from sift_mm.sparsity import ALGORITHMS, training_flops

COUNTS = (
    'FLOPs are 2 x MACs of convolutions and matrix products, for one input; '
    'norms, activations, pooling, interpolation, losses and NMS are not '
    'counted. Sparse: a masked layer costs its share of active weights. '
    'Memory is that of the parameters, and of the output of each layer for '
    'one input, without gradients and optimizer. k is 10^3, M 10^6, '
    'G 10^9, T 10^12, P 10^15, E 10^18.'
)


def build_hook(cfg: Config) -> SparseTrainingHook | None:
    """Build the hook that trains masks, if the config has one."""
    place = hook_place(cfg)
    return None if place is None else HOOKS.build(cfg.custom_hooks[place])


def report_masks(
    hook: SparseTrainingHook | None, plan: MaskPlan | None, model: nn.Module
) -> dict[str, Any] | None:
    """Return the report's entry on masks, None without any."""
    if hook is None or plan is None or not plan.parameters:
        return None
    loaded = pretrained_source(model, plan.parameters)
    return dict(
        algorithm=type(hook.options.algorithm).__name__,
        parameters=len(plan.parameters),
        nominal_sparsity=plan.nominal_sparsity,
        sparsity=plan.solved_sparsity,
        flops_ratio=plan.ratio,
        interval=hook.options.interval,
        end=hook.options.end,
        transferred=hook.options.transfer
        if loaded and hook.options.init is None
        else None,
    )


def report_training(
    forward: Callable[..., tuple[float, float]],
    model: nn.Module,
    densities: Mapping[str, float],
    dense: nn.Module | None,
    masks: dict[str, Any] | None,
) -> dict[str, float]:
    """Return the FLOPs of training on one sample, by method.

    Args:
        forward (Callable): Function that returns the FLOPs of a network's
            forward pass, under masks and dense.
        model (nn.Module): The network.
        densities (Mapping[str, float]): Share of active weights, by name.
        dense (nn.Module, optional): Dense network of the method 'dense'.
        masks (dict, optional): Entry on masks; without it, the model has the
            method 'unmasked' if it is not the dense network.
    """
    methods = {}
    if dense is not None:
        methods['dense'] = training_flops('dense', *forward(dense))
    flops = forward(model, densities)
    if masks is not None:
        schedule = masks['interval'], masks['end']
        methods |= {
            name: training_flops(name, *flops, *schedule)
            for name in ALGORITHMS.names
        }
    elif dense is not model:
        methods['unmasked'] = training_flops('dense', *flops)
    return methods


def make_report(
    cfg: Config,
    shape: Sequence[int] | None = None,
    epoch_samples: int | None = None,
    batch: int | None = None,
) -> dict[str, Any]:
    """Count the costs of the network of a config.

    Args:
        cfg (Config): Config of a run; it does not change.
        shape (Sequence[int], optional): Height and width of the image, in
            pixels; None is the pipelines' size.
        epoch_samples (int, optional): As for :func:`schedule_samples`.
        batch (int, optional): As for :func:`schedule_samples`.

    Returns:
        dict[str, Any]: Content of ``--json``, with unrounded numbers.

    Raises:
        ValueError: If the config is inconsistent or incomplete, or its model
            does not run at the shape.
    """
    if 'model' not in cfg:
        raise UserError('the config has no model')
    (test, source), (train, train_source) = find_sizes(cfg, shape)
    import_library(cfg)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = build(cfg)
    check_channels(model, cfg)
    hook = build_hook(cfg)
    plan = hook and hook.plan(model, cfg)
    masks = report_masks(hook, plan, model)
    if masks and masks['transferred'] == 'dense':
        plan = masks = None  # The run drops them.
    measure = partial(profile, in_channels=channels_of(cfg, model))
    densities = plan.densities if plan else {}
    costs = measure(model, test, densities)
    dense, comparison, why_not = None, None, None
    try:
        dense = dense_network(cfg, model)
        comparison = compare(costs, measure(dense, test))
    except ValueError as error:
        dense, why_not = None, str(error)

    def forward(network: nn.Module, *masked: Any) -> tuple[float, float]:
        total = measure(network, train, *masked, auxiliary=True).total()
        return total.flops_sparse, total.flops_dense

    methods = report_training(forward, model, densities, dense, masks)
    samples, samples_source = schedule_samples(cfg, epoch_samples, batch)
    return dict(
        counts=COUNTS,
        shape=test,
        shape_source=source,
        sparse_backbone=sparse_backbone(model) is not None,
        masks=masks,
        layers=[asdict(row) for row in costs.rows],
        total=asdict(costs.total()),
        assumed=costs.assumed,
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
