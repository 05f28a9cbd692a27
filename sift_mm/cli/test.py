"""Test a checkpoint with an MMDetection, MMSegmentation or MMPreTrain config.

The config's ``default_scope`` names the library.
"""

import argparse
import copy
from collections.abc import Sequence
from functools import partial

import mmengine
from mmengine.config import Config
from mmengine.registry import METRICS
from mmengine.runner import Runner

from sift_mm.cli.arguments import add_run_options
from sift_mm.cli.entry import Parser, entry_point
from sift_mm.cli.reports.text import metrics_to_text
from sift_mm.config.checks import check_config
from sift_mm.config.data import check_data
from sift_mm.config.explain import explained
from sift_mm.config.loading import load_run_config
from sift_mm.config.resume import check_checkpoint
from sift_mm.engine.cost_hook import CostHook
from sift_mm.engine.launch import run, set_loader_defaults, switch_off
from sift_mm.engine.sparse_test import SparseTestHook
from sift_mm.errors import UserError

# Formats that mmengine.dump writes.
FORMATS = ('.json', '.yaml', '.yml', '.pkl', '.pickle')
# Switch and folder of each library's visualization hook; MMSegmentation's
# draws into the folder of the visualizer.
HOOK = 'default_hooks.visualization'
DRAWING = {
    'mmdet': (
        dict(type='DetVisualizationHook', draw=True),
        f'{HOOK}.test_out_dir',
    ),
    'mmseg': (
        dict(type='SegVisualizationHook', draw=True),
        'visualizer.save_dir',
    ),
    'mmpretrain': (
        dict(type='VisualizationHook', enable=True),
        f'{HOOK}.out_dir',
    ),
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description='Test a model')
    add_run_options(parser)
    add = parser.add_argument
    switch = partial(add, action='store_true')
    add('checkpoint', help='path of the checkpoint')
    add(
        '--out',
        help='write metrics and costs to this .json file; else keep the '
        'predictions, in this .pkl file or, for a segmentation config, as '
        'label maps in this folder',
    )
    add(
        '--out-item',
        choices=['metrics', 'pred'],
        help='what goes to --out; by default the metrics if it is a .json '
        'file, which may also be .yaml or .pkl, and else the predictions',
    )
    add(
        '--show-dir',
        help='draw predictions into this folder; for a detection config it '
        'lies in the work dir, under the time of the run',
    )
    switch('--amp', help='test in mixed precision')
    switch(
        '--sparse',
        help='run masked layers on the sparse kernels of the CPU, and say '
        'how many seconds an image takes',
    )
    args = parser.parse_args(argv)
    if args.sparse and args.amp:
        parser.error('--sparse runs in float32, --amp does not')
    if args.out_item is not None and args.out is None:
        parser.error('--out-item needs --out')
    if args.out and args.out.endswith('.json'):
        args.out_item = args.out_item or 'metrics'
    if args.out_item == 'metrics' and not args.out.endswith(FORMATS):
        parser.error(f'metrics go to a file that ends in one of {FORMATS}')
    return args


def keeps_label_maps(cfg: Config, args: argparse.Namespace) -> bool:
    """Return whether ``--out`` is a folder for MMSegmentation's label maps.

    Raises:
        UserError: If ``--out`` is neither such a folder nor a pickle file.
    """
    if not args.out or args.out_item == 'metrics':
        return False
    if args.out.endswith(('.pkl', '.pickle')):
        return False
    if cfg.get('default_scope') != 'mmseg':
        raise UserError(f'--out has to be a .pkl file, not {args.out}.')
    return True


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Apply the options of testing to the config."""
    cfg.load_from = args.checkpoint
    cfg.resume = False  # Else the runner restores the training.
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show_dir:
        if cfg.get('default_scope') not in DRAWING:
            raise UserError(f'--show-dir works for {", ".join(DRAWING)}.')
        hook, folder = DRAWING[cfg.default_scope]
        cfg.merge_from_dict({HOOK: hook, folder: args.show_dir})
    if keeps_label_maps(cfg, args):
        metric = cfg.test_evaluator
        metric = metric if isinstance(metric, dict) else metric[0]
        metric.update(output_dir=args.out, keep_results=True)
    set_loader_defaults(cfg, 'test')
    if args.no_pin_memory:
        switch_off(cfg, 'test', 'pin_memory')
    return cfg


@entry_point
def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Test as the command line says.

    Returns:
        dict[str, float]: Metrics by name, and in the first process the costs
        of :func:`~sift_mm.engine.cost_hook.measure_cost`.
    """
    args = parse_args(argv)
    cfg = load_run_config(args)
    with explained(args.config, cfg):
        check_config(cfg)
        costs = CostHook(copy.deepcopy(cfg))
        sparse = SparseTestHook()
        check_checkpoint(args.checkpoint)
        check_data(cfg, ['test'])
        cfg = merge_args(cfg, args)
        keeps_metrics = args.out_item == 'metrics'
        dumps = args.out and not (keeps_metrics or keeps_label_maps(cfg, args))

    def task(runner: Runner) -> tuple[dict[str, float], bool]:
        if dumps:
            # MMDetection's class drops the ground truth and packs masks.
            is_det = cfg.get('default_scope') == 'mmdet'
            kind = 'DumpDetResults' if is_det else 'DumpResults'
            runner.test_evaluator.metrics.append(
                METRICS.build(dict(type=kind, out_file_path=args.out))
            )
        runner.register_hook(costs)
        if args.sparse:
            runner.register_hook(sparse)
        return runner.test(), runner.rank == 0

    metrics, is_first = run(cfg, task)
    if is_first:
        if args.sparse:
            costs.cost['seconds_per_image'] = sparse.seconds
        print(f'\n{metrics_to_text(metrics, costs.cost)}')
        metrics = metrics | costs.cost
        if keeps_metrics:
            mmengine.dump(metrics, args.out)
    return metrics


def command() -> None:
    """Run ``main`` as a console script, without its result as exit status."""
    main()


if __name__ == '__main__':
    command()
