"""Print the costs of a network, by layer and for its whole training.

Only the config is needed: no data set, no checkpoint, no accelerator.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from sift_mm.cli.arguments import (
    add_config_options,
    add_json_option,
    add_shape_option,
    positive,
)
from sift_mm.cli.entry import Parser, entry_point
from sift_mm.cli.reports.costs import make_report
from sift_mm.cli.reports.text import print_report, to_text
from sift_mm.config.checks import check_config
from sift_mm.config.explain import explained
from sift_mm.config.loading import load_config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        description='Count FLOPs, parameters and memory of a config'
    )
    add_config_options(parser)
    add_shape_option(parser)
    add = parser.add_argument
    add(
        '--epoch-samples',
        type=positive,
        metavar='N',
        help='images of one epoch; by default those of the published data set',
    )
    add(
        '--batch-size',
        type=positive,
        metavar='N',
        help='samples of an iteration, over all processes, for trainings by '
        "iterations; by default auto_scale_lr's, else that of one process",
    )
    add_json_option(parser)
    return parser.parse_args(argv)


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Count and print."""
    args = parse_args(argv)
    # Configs and libraries may print: stdout is for JSON.
    with redirect_stdout(sys.stderr):
        cfg = load_config(args)
        with explained(args.config, cfg):
            check_config(cfg)
            report = dict(config=args.config) | make_report(
                cfg, args.shape, args.epoch_samples, args.batch_size
            )
    print_report(report, to_text, args.json)


if __name__ == '__main__':
    main()
