"""The paper's chain in small: pretrain, transfer, detect, segment.

A dense ResNet-18 and its Sparse Wide transform learn Fashion-MNIST; weights
and masks go into a RetinaNet on tree crowns and a DeepLabV3+ on composed
scenes. Beside each, the same network from scratch is trained for as long.
What is done already is not done again; a run that was interrupted is resumed.
It runs in the checkout: `python -m demo.chain`.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from demo import fashion_scenes, tree_crowns
from sift_mm.cli.entry import Parser, entry_point
from sift_mm.datasets import fashion_mnist
from sift_mm.experiments.report import markdown_table, mean_and_spread
from sift_mm.experiments.runner import Experiment, run_experiments

CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'chain'
OUT = Path('work_dirs', 'chain')
# The configs of a network, by what is trained.
NETWORKS = {
    'dense': {
        'classifier': 'resnet18-w16_1xb128-1e_fashion-mnist.py',
        'detector': 'retinanet_r18-w16-pre_fpn_5e_tree-crowns.py',
        'segmentor': 'deeplabv3plus_r18-w16-pre-d16_1xb8-200i'
        '_fashion-scenes-128x256.py',
    },
    'wide': {
        'classifier': 'resnet18-w16-sift-wide-s75_rigl-1xb128-1e'
        '_fashion-mnist.py',
        'detector': 'retinanet_r18-w16-sift-wide-s75-pre_fpn_5e'
        '_tree-crowns.py',
        'segmentor': 'deeplabv3plus_r18-w16-sift-wide-s75-pre-d16_1xb8-200i'
        '_fashion-scenes-128x256.py',
    },
}
METRICS = {
    'classifier': 'accuracy/top1',
    'detector': 'coco/bbox_mAP_50',
    'segmentor': 'mIoU',
}
# Task, network, and what it starts from.
Key = tuple[str, str, str]


def prepare() -> None:
    """Makes the three data sets, those that are not there."""
    sources = Path('data/fashion_mnist'), Path('data/tree_crowns')
    fashion_mnist.prepare(sources[0])
    tree_crowns.prepare(sources[1])
    fashion_scenes.prepare(Path('data/fashion_scenes'), *sources)


def plan(network: str, seed: int) -> dict[Key, Experiment]:
    """The runs of a network, the classifier first.

    The seed is that of weights, order of the data, and masks.
    """
    configs = NETWORKS[network]
    classifier = Experiment(
        OUT,
        f'{network}/seed{seed}/classifier',
        str(CONFIGS / configs['classifier']),
        cfg_options=(f'randomness.seed={seed}',),
    )
    found = {('classifier', network, 'scratch'): classifier}
    init = 'model.backbone.init_cfg'
    for kind in ('detector', 'segmentor'):
        for start, after, setting in (
            ('scratch', None, f'{init}=None'),
            ('pretrained', classifier, f'{init}.checkpoint={classifier.last}'),
        ):
            found[kind, network, start] = replace(
                classifier,
                name=f'{network}/seed{seed}/{kind}-{start}',
                config=str(CONFIGS / configs[kind]),
                cfg_options=(*classifier.cfg_options, setting),
                after=after,
            )
    return found


def row(key: Key, runs: Sequence[Experiment]) -> dict[str, str]:
    """A line of the table, of the runs that differ in their seed alone."""
    kind, network, start = key
    metric = METRICS[kind]
    found = [run.metrics() for run in runs]
    mean = {
        cost: statistics.mean(f[cost] for f in found)
        for cost in ('flops', 'active_parameters', 'density')
    }
    seconds = statistics.mean(run.seconds() for run in runs)
    return {
        'task': kind,
        'network': network,
        'start': start,
        'metric': metric.rpartition('/')[2].removeprefix('bbox_'),
        'value': mean_and_spread(
            [f[metric] for f in found], 3 if kind == 'detector' else 2
        ),
        'GFLOPs': f'{mean["flops"] / 1e9:.3f}',
        'active': f'{mean["active_parameters"] / 1e6:.2f} M',
        'density': f'{mean["density"]:.3f}',
        'seconds': f'{seconds:.0f}',
    }


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the chain, and prints what came out."""
    parser = Parser(
        description='Pretrain, transfer, detect and segment, in small'
    )
    parser.add_argument('--seeds', type=int, default=1, help='runs of each')
    args = parser.parse_args(argv)
    prepare()
    runs: dict[Key, list[Experiment]] = {}
    for seed in range(args.seeds):
        for network in NETWORKS:
            for key, run in plan(network, seed).items():
                runs.setdefault(key, []).append(run)
    run_experiments([run for found in runs.values() for run in found])
    rows = [
        row(key, runs[key])
        for kind, start in product(METRICS, ('scratch', 'pretrained'))
        for network in NETWORKS
        if (key := (kind, network, start)) in runs
    ]
    text = markdown_table(rows)
    (OUT / 'table.md').write_text(f'{text}\n')
    print(
        f'\n{text}\n\nFLOPs are 2 x MACs of one image, masked weights not '
        f'counted; seconds are of training,\nwithout start and validation. '
        f'Runs, logs and checkpoints are in {OUT}.'
    )


if __name__ == '__main__':
    main()
