"""Time the network of a config and its dense twin, dense and sparse.

Without a checkpoint, masks are drawn as for training.
"""

from collections.abc import Sequence

import mmengine
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from sift_mm.checkpoint.state import mask_training
from sift_mm.cli.arguments import (
    add_config_options,
    add_shape_option,
    positive,
)
from sift_mm.cli.entry import Parser, entry_point
from sift_mm.cli.reports.costs import build_hook
from sift_mm.cli.reports.speed import fill, measure_speed, to_text
from sift_mm.config.building import build
from sift_mm.config.explain import explained
from sift_mm.config.images import find_sizes
from sift_mm.config.libraries import import_library
from sift_mm.config.loading import load_config
from sift_mm.config.resume import check_checkpoint
from sift_mm.errors import UserError


def _draw(cfg: Config, model: nn.Module) -> dict[str, Tensor]:
    """Draw masks as for the config's training, and fill the weights."""
    hook = build_hook(cfg)
    if hook is None:
        raise UserError(
            'The config has no SparseTrainingHook, so that nothing of its '
            'network is sparse; --family and --sparsity make it so.'
        )
    fill(model)
    masks = hook.plan(model, cfg).draw(hook.options.initializer, 0)
    masks.apply_()
    return dict(masks)


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
    add('--json', metavar='FILE', help='write the numbers')
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error('--rounds has to be at least 2')
    if args.threads:
        torch.set_num_threads(args.threads)
    cfg = load_config(args)
    with explained(args.config, cfg):
        (shape, _), _ = find_sizes(cfg, args.shape)
        import_library(cfg)
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        model = build(cfg)
        if args.checkpoint:
            check_checkpoint(args.checkpoint)
            loaded = load_checkpoint(model, args.checkpoint, 'cpu')
            masks = (mask_training(loaded) or {}).get('masks', {})
        else:
            masks = _draw(cfg, model)
        report = measure_speed(
            cfg, model, masks, shape, args.batch, args.rounds, args.whole
        )
    print(to_text(report))
    if args.json:
        mmengine.dump(report, args.json, 'json', indent=2)
