"""Time the network of a config and its dense twin, dense and sparse.

Without a checkpoint, masks are drawn as for training.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from timeit import timeit
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from sift_mm.backbones.base import sparse_backbone
from sift_mm.checkpoint.state import mask_training
from sift_mm.cli.arguments import (
    add_config_options,
    add_json_option,
    add_shape_option,
    positive,
)
from sift_mm.cli.entry import Parser, entry_point
from sift_mm.cli.reports.costs import build_hook
from sift_mm.cli.reports.text import print_report, table
from sift_mm.config.building import build, build_trained
from sift_mm.config.dense import dense_network
from sift_mm.config.explain import explained
from sift_mm.config.images import channels_of, find_sizes
from sift_mm.config.libraries import import_library
from sift_mm.config.loading import load_config
from sift_mm.deploy import to_sparse
from sift_mm.errors import UserError
from sift_mm.flops import describe_shape
from sift_mm.flops.model_forward import call_model


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Fill a network that was built without weights."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.ndim > 1:
            tensor.normal_(0, tensor[0].numel() ** -0.5)
        elif tensor.is_floating_point():
            tensor.fill_(float(name.endswith(('weight', 'running_var'))))


def _draw(cfg: Config, model: nn.Module) -> dict[str, Tensor]:
    """Draw masks as for the config's training, and fill the weights."""
    hook = build_hook(cfg)
    if hook is None:
        raise UserError(
            'The config has no SparseTrainingHook, so no layer is sparse; '
            'add --family and --sparsity.'
        )
    fill(model)
    masks = hook.plan(model, cfg).draw(0)
    masks.apply_()
    return dict(masks)


def measure(
    networks: Mapping[str, nn.Module], image: Tensor, rounds: int
) -> list[dict[str, Any]]:
    """Time networks on images in turns, without post-processing.

    Returns:
        list[dict]: For each network 'batch', 'what', the median 'seconds' a
        batch, and the median 'ratio' to the first one within a turn with its
        'quartiles'.
    """
    with torch.inference_mode():
        for network in networks.values():
            call_model(network, image)
        turns = [
            [
                timeit(partial(call_model, network, image), number=1)
                for network in networks.values()
            ]
            for _ in range(rounds)
        ]
    rows = []
    for i, what in enumerate(networks):
        low, middle, high = statistics.quantiles(
            [turn[i] / turn[0] for turn in turns], n=4, method='inclusive'
        )
        rows.append(
            dict(
                batch=len(image),
                what=what,
                seconds=statistics.median(turn[i] for turn in turns),
                ratio=middle,
                quartiles=[low, high],
            )
        )
    return rows


def measure_speed(
    cfg: Config,
    model: nn.Module,
    masks: Mapping[str, Tensor],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Time a network and its dense twin, dense and sparse.

    Args:
        cfg (Config): Config of the model, for its dense twin.
        model (nn.Module): The network, with zeros outside the masks.
        masks (Mapping[str, Tensor]): Bool masks by parameter name; if empty,
            nonzero weights are active.
        args (Namespace): The command line.

    Raises:
        ValueError: Nothing of the model can run sparse.
        RuntimeError: There are no kernels for this machine.
    """
    (shape, _), _ = find_sizes(cfg, args.shape)
    found = sparse_backbone(model)
    name = '' if args.whole else found[0][:-1] if found else 'backbone'
    twin = dense_network(cfg, model).eval()
    fill(twin)
    sparse = to_sparse(model.eval(), masks)
    networks = {
        'dense twin': twin.get_submodule(name),
        'executed densely': model.get_submodule(name),
        'executed sparsely': sparse.get_submodule(name),
    }
    rows = []
    for batch in args.batch:
        image = torch.randn(batch, channels_of(cfg, model), *shape)
        if len(shape) == 1:
            image = torch.zeros(batch, *shape, dtype=torch.long)
        rows += measure(networks, image, args.rounds)
    return dict(
        network=name or 'the whole model',
        shape=list(shape),
        threads=torch.get_num_threads(),
        rows=rows,
        layers=str(sparse.sparse_report),
    )


def to_text(report: dict[str, Any]) -> str:
    """Return the report as a table."""
    rows = [
        (
            str(row['batch']),
            row['what'],
            f'{row["seconds"]:.4f}',
            f'{row["ratio"]:.2f}',
            f'{row["quartiles"][0]:.2f} to {row["quartiles"][1]:.2f}',
        )
        for row in report['rows']
    ]
    head = (
        f'{report["network"]} at {describe_shape(report["shape"])}, '
        f'{report["threads"]} threads, float32, inference'
    )
    names = ('batch', '', 'seconds', 'over the twin', 'quartiles')
    return f'{report["layers"]}\n\n{head}\n{table(names, rows)}'


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Time the network and print the report."""
    parser = Parser(
        description='Time a network on the CPU: its dense twin, executed '
        'densely, executed on sparse kernels'
    )
    add_config_options(parser)
    add = parser.add_argument
    add('checkpoint', nargs='?', help='path of the checkpoint, if any')
    add_shape_option(parser)
    text = 'time neck and heads too, not the backbone alone'
    add('--whole', action='store_true', help=text)
    text = 'images at a time'
    add('--batch', nargs='+', type=positive, default=[1], help=text)
    add('--threads', type=positive, help="by default torch's")
    add('--rounds', type=positive, default=7, help='turns that each one has')
    add_json_option(parser)
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error('--rounds has to be at least 2')
    if args.threads:
        torch.set_num_threads(args.threads)
    cfg = load_config(args)
    with explained(args.config, cfg):
        import_library(cfg)
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        if args.checkpoint:
            model, loaded = build_trained(cfg, args.checkpoint)
            masks = (mask_training(loaded) or {}).get('masks', {})
        else:
            model = build(cfg)
            masks = _draw(cfg, model)
        report = measure_speed(cfg, model, masks, args)
    print_report(report, to_text, args.json)


if __name__ == '__main__':
    main()
