"""First and last lines of the log of a training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.runner import Runner

from sift_mm.config.checks import backbone_node
from sift_mm.config.nodes import type_name
from sift_mm.engine.start_log import FILE
from sift_mm.engine.wrappers import unwrap
from sift_mm.flops.units import flops


def first_lines(runner: Runner, record: dict[str, Any]) -> Iterator[str]:
    """Yield lines on config, model, data, schedule, folder and machine.

    Args:
        runner (Runner): Runner with its training loop.
        record (dict[str, Any]): Start of ``run.json``.
    """
    model = unwrap(runner.model)
    parameters = sum(p.numel() for p in model.parameters())
    yield f'Config: {record["config"] or "without a file"}'
    yield (
        f'Model: {type(model).__name__}{_backbone(runner)}, '
        f'{parameters / 1e6:,.3f} M parameters'
    )
    yield f'Member: {_member(runner)}'
    validation = 'no validation'
    if runner.val_loop is not None:
        validation = f'{_data(runner.val_dataloader)} for validation'
    yield f'Data: {_data(runner.train_dataloader)}, {validation}'
    yield f'Schedule: {_schedule(runner)}'
    yield (
        f'Work dir: {_short(runner.work_dir)}; environment, config and hooks '
        f'are in {Path(runner.timestamp, FILE)} there'
    )
    used = ', '.join(f'{k} {v}' for k, v in record['versions'].items())
    yield f'Seed: {record["seed"]}; versions: {used}'
    yield f'Machine: {record["machine"]}'


def _short(folder: str) -> str:
    """Return a folder's path, relative if it is below the current one."""
    path, here = Path(folder), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _backbone(runner: Runner) -> str:
    """Return the backbone of the config in words, or ''."""
    backbone = (runner.cfg.get('model') or {}).get('backbone') or {}
    inner = backbone.get('backbone', backbone)
    if not inner:
        return ''
    sizes = [
        f'{key}={inner[key]}'
        for key in ('depth', 'arch', 'base_channels')
        if isinstance(inner.get(key), (int, str))
    ]
    return f' on {type_name(inner)}({", ".join(sizes)})'


def _member(runner: Runner) -> str:
    """Return the member of the family and its sparsity in words."""
    backbone = backbone_node(runner.cfg)
    if backbone.get('family') is None:
        return 'none, the network as the library builds it'
    text = f'{backbone["family"]} at sparsity {backbone.get("sparsity")}'
    if backbone.get('inner') is not None:
        text += f', inner={backbone["inner"]!r}'
    return text


def _data(loader: Any) -> str:
    """Return kind and number of the samples of a loader."""
    dataset = loader.dataset
    return f'{len(dataset):,} samples of {type(dataset).__name__}'


def _schedule(runner: Runner) -> str:
    """Return length, batch and optimizer of a training."""
    text = f'{runner.max_iters:,} iterations'
    if runner.max_epochs and runner.max_epochs > 1:
        text = f'{runner.max_epochs} epochs, {text}'
    sampler = getattr(runner.train_dataloader, 'batch_sampler', None)
    if batch := getattr(sampler, 'batch_size', None):
        ranks = runner.world_size
        text += f', batch {batch}' + (f' x {ranks}' if ranks > 1 else '')
    optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
    if optimizer is not None:
        group = optimizer.param_groups[0]
        rate = group.get('initial_lr', group['lr'])
        text += f', {type(optimizer).__name__} lr {rate:g}'
    return text


def flops_line(record: dict[str, Any]) -> str:
    """Return the line on the FLOPs of a record."""
    found = record['flops']
    if 'inference' not in found:
        return f'FLOPs: {found["of"]}'
    return (
        f'FLOPs: {flops(found["inference"])} an input, {found["ratio"]:.4f} '
        f'of dense ({flops(found["dense"])}); a training step '
        f'{found["training_ratio"]:.4f} of dense'
    )


def last_lines(record: dict[str, Any], work_dir: str) -> Iterator[str]:
    """Yield metric, FLOPs, density and seconds of a finished training."""
    best = record['best']
    metrics = [
        f'{name} {value:.4f}'
        + (f' (best {best[name]:.4f})' if name in best else '')
        for name, value in record['metrics'].items()
        if value is not None
    ]
    yield f'Result: {", ".join(metrics[:3]) or "no metrics"}'
    yield flops_line(record)
    masks = record['masks']
    density = masks['active'] / masks['size'] if masks else 1
    yield (
        f'Density: {density:.6f} of the masked weights; '
        f'{record["active_parameters"] / 1e6:,.3f} M of '
        f'{record["parameters"] / 1e6:,.3f} M parameters are active'
    )
    yield f'Seconds: {record["seconds"]:,.1f} of training'
    yield f'Report: sift-report {_short(work_dir)}'
