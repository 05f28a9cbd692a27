"""Train the model of an MMDetection, MMSegmentation or MMPreTrain config.

The config's ``default_scope`` names the library.
"""

import argparse
from collections.abc import Sequence
from functools import partial

from mmengine.config import Config
from mmengine.runner import Runner

from sift_mm.cli.arguments import add_run_options
from sift_mm.cli.entry import Parser, entry_point
from sift_mm.config.checks import check_config
from sift_mm.config.data import check_data
from sift_mm.config.explain import explained
from sift_mm.config.loading import load_run_config
from sift_mm.config.resume import check_pretrained, find_start
from sift_mm.engine.launch import run, set_loader_defaults, switch_off
from sift_mm.engine.precision import check_amp, disable_amp, enable_amp
from sift_mm.engine.run_record import RunRecordHook
from sift_mm.engine.saving import lock_work_dir
from sift_mm.errors import UserError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description='Train a model')
    add_run_options(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint or, without a value, from the '
        'newest whole one in the work dir',
    )
    parser.add_argument(
        '--amp',
        action=argparse.BooleanOptionalAction,
        help='train in automatic mixed precision, or not, in place of what '
        'the config says; masks are kept',
    )
    switch = partial(parser.add_argument, action='store_true')
    switch(
        '--auto-scale-lr',
        help="scale the learning rate by the batch size, from the config's "
        'auto_scale_lr.base_batch_size',
    )
    switch('--no-validate', help='do not validate during training')
    switch(
        '--no-persistent-workers',
        help='switch persistent_workers off in every data loader',
    )
    return parser.parse_args(argv)


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Apply the options of training to the config."""
    if args.amp is not None:
        (enable_amp if args.amp else disable_amp)(cfg)
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise UserError(
                '--auto-scale-lr needs auto_scale_lr = '
                'dict(base_batch_size=...) in the config.'
            )
        cfg.auto_scale_lr.enable = True
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    for phase in ('train', 'val', 'test'):
        set_loader_defaults(cfg, phase)
        if args.no_pin_memory:
            switch_off(cfg, phase, 'pin_memory')
        if args.no_persistent_workers:
            switch_off(cfg, phase, 'persistent_workers')
    return cfg


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    args = parse_args(argv)
    cfg = load_run_config(args)
    with explained(args.config, cfg):
        merge_args(cfg, args)
        check_amp(cfg)
        check_config(cfg)
        start = find_start(cfg, args.resume)
        check_pretrained(cfg)
        validates = cfg.get('val_cfg') is not None
        check_data(cfg, ['train', 'val'] if validates else ['train'])

    def task(runner: Runner) -> None:
        for line in start:
            runner.logger.info(line)
        runner.register_hook(RunRecordHook())
        runner.train()

    with lock_work_dir(cfg):
        run(cfg, task)


if __name__ == '__main__':
    main()
