"""Costs of the network of a config."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
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
from sift_mm.sparsity import ALGORITHMS, RunOptions
from sift_mm.sparsity.counts import CountSchedule

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
        algorithm=hook.options.name_algorithms(plan.parameters),
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


def count_steps(
    cfg: Config, samples: int | None, batch: int | None
) -> int | None:
    """Count the optimizer steps of a training, None if unknown.

    Args:
        cfg (Config): Config of a run.
        samples (int, optional): Samples of the training.
        batch (int, optional): Batch size over all processes; None is the
            config's.
    """
    accumulated = cfg.get('optim_wrapper', {}).get('accumulative_counts', 1)
    iterations = cfg.get('train_cfg', {}).get('max_iters')
    if not iterations and samples is not None:
        scale = cfg.get('auto_scale_lr') or {}
        alone = cfg.train_dataloader.get('batch_size', 1)
        iterations = samples // (batch or scale.get('base_batch_size', alone))
    return math.ceil(iterations / accumulated) if iterations else None


def count_schedule(
    options: RunOptions, plan: MaskPlan, steps: int
) -> CountSchedule:
    """Return the active weights of a training."""
    layers = options.of_layers(plan.shapes).values()
    one_update = max(math.ceil(o.interval / o.end) + 1 for o in layers)
    return options.count_schedule(
        plan.shapes, plan.counts, max(steps, one_update)
    )


def report_course(
    hook: SparseTrainingHook, plan: MaskPlan, steps: int
) -> dict[str, dict[str, float]]:
    """Return the density at the start and its mean, where it changes."""
    counts = count_schedule(hook.options, plan, steps)
    if not counts.changes:
        return {}
    start, mean = counts.course(steps)
    return dict(course=dict(start=start, mean=mean))


def report_methods(
    forward: Callable[[Mapping[str, float]], tuple[float, float]],
    hook: SparseTrainingHook,
    plan: MaskPlan,
    steps: int,
) -> dict[str, float | None]:
    """Return the FLOPs of training on one sample, by algorithm.

    The config's algorithm has the config's arguments, another one its
    defaults; None stands for one that cannot train the network, or that has
    arguments without default. Groups keep theirs.

    Args:
        forward (Callable): Function that returns the FLOPs of the network's
            forward pass, under masks of given densities and dense.
        hook (SparseTrainingHook): Hook of the config.
        plan (MaskPlan): Plan of the masks.
        steps (int): Optimizer steps.
    """
    methods: dict[str, float | None] = {}
    known: dict[frozenset[tuple[str, float]], float] = {}

    def cost(densities: Mapping[str, float]) -> float:
        """Return the FLOPs of a forward pass, counted once."""
        key = frozenset(densities.items())
        if key not in known:
            known[key] = forward(densities)[0]
        return known[key]

    for name in ALGORITHMS.names:
        options = hook.options
        try:
            if type(options.algorithm).__name__ != name:
                options = replace(options, algorithm=ALGORITHMS.build(name))
            for layer, own in options.of_layers(plan.shapes).items():
                own.algorithm.check_layer(layer, plan.shapes[layer])
        except UserError:
            methods[name] = None
            continue
        densities = plan.densities
        if any(a.changes_density for a in options.algorithms):
            counts = count_schedule(options, plan, steps)
            densities = counts.mean_densities(steps)
        methods[name] = options.training_flops(cost, densities)
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

    samples, samples_source = schedule_samples(cfg, epoch_samples, batch)
    methods: dict[str, float | None] = {}
    if dense is not None:
        methods['dense'] = 3 * forward(dense)[1]
    if hook is not None and plan is not None and masks is not None:
        steps = count_steps(cfg, samples, batch) or math.ceil(
            1000 * masks['interval'] / masks['end']
        )
        masks |= report_course(hook, plan, steps)
        methods |= report_methods(partial(forward, model), hook, plan, steps)
    elif dense is not model:
        methods['unmasked'] = 3 * forward(model)[1]
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
            and {n: one and samples * one for n, one in methods.items()},
        ),
    )
