"""The paper's chain in small: pretrain, transfer, detect, segment.

A dense ResNet-18 and its Sparse Wide transform learn Fashion-MNIST; weights
and masks go into a RetinaNet on tree crowns and a DeepLabV3+ on composed
scenes. Beside each, the same network from scratch is trained for as long.
What is done already is not done again; a run that was interrupted is resumed.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from demo import fashion_scenes
from sift_mm.cli.prepare_data import main as prepare_data
from sift_mm.experiments.processes import ROOT, is_finished, run_tool

CONFIGS = ROOT / 'configs' / 'chain'
OUT = ROOT / 'work_dirs' / 'chain'
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
# Last checkpoint and metric of each kind.
LAST = {
    'classifier': ('epoch_1.pth', 'accuracy/top1'),
    'detector': ('epoch_5.pth', 'coco/bbox_mAP_50'),
    'segmentor': ('iter_200.pth', 'mIoU'),
}


def prepare() -> None:
    """Makes the three data sets, those that are not there."""
    data = ROOT / 'data'
    items, photographs = data / 'fashion_mnist', data / 'tree_crowns'
    for name, root in (('fashion_mnist', items), ('trees', photographs)):
        if prepare_data([name, '--root', str(root)]):
            raise SystemExit(f'The chain needs {root}; see above.')
    fashion_scenes.prepare(data / 'fashion_scenes', items, photographs)


def run(network: str, kind: str, seed: int, scratch: bool) -> dict[str, float]:
    """Trains and tests a network, unless that is done.

    Args:
        network (str): 'dense' or 'wide'.
        kind (str): 'classifier', 'detector' or 'segmentor'.
        seed (int): Of weights, order of the data, and masks.
        scratch (bool): Whether to start from random weights; else from the
            classifier of the same network and seed.

    Returns:
        dict[str, float]: Metrics and costs.
    """
    name = kind
    if kind != 'classifier':
        name += '-scratch' if scratch else '-pretrained'
    out = OUT / network / f'seed{seed}'
    work_dir = out / name
    out.mkdir(parents=True, exist_ok=True)
    config = str(CONFIGS / NETWORKS[network][kind])
    options = ['--cfg-options', f'randomness.seed={seed}']
    if kind != 'classifier':
        # An option is split at commas: those of the checkout stay out of it.
        start = out.relative_to(ROOT) / 'classifier' / LAST['classifier'][0]
        key = 'model.backbone.init_cfg'
        options.append(
            f'{key}=None' if scratch else f'{key}.checkpoint={start}'
        )
    checkpoint = work_dir / LAST[kind][0]
    if not is_finished(checkpoint):
        run_tool(
            out,
            f'train_{name}',
            'tools/train.py',
            config,
            '--work-dir',
            str(work_dir),
            '--resume',
            *options,
        )
    metrics = work_dir / 'metrics.json'
    if not metrics.exists():
        run_tool(
            out,
            f'test_{name}',
            'tools/test.py',
            config,
            str(checkpoint),
            '--work-dir',
            str(work_dir / 'test'),
            '--out',
            str(metrics),
            *options,
        )
    return json.loads(metrics.read_text()) | {'seconds': seconds(work_dir)}


def seconds(work_dir: Path) -> float:
    """Time that the steps of a training took, up to the last one logged."""
    spent, seen = 0.0, 0
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            logged = json.loads(line)
            if 'loss' in logged:
                spent += logged['time'] * (logged['step'] - seen)
                seen = logged['step']
    return spent


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and standard deviation where there are several."""
    mean = f'{statistics.mean(values):.{digits}f}'
    if len(values) == 1:
        return mean
    return f'{mean} ± {statistics.stdev(values):.{digits}f}'


def row(
    network: str, kind: str, start: str, found: Sequence[dict[str, float]]
) -> str:
    """A line of the table, of the runs that differ in their seed alone."""
    metric = LAST[kind][1]
    digits = 3 if kind == 'detector' else 2
    mean = {
        key: statistics.mean(f[key] for f in found)
        for key in ('flops', 'active_parameters', 'density', 'seconds')
    }
    cells: list[str] = [
        kind,
        network,
        start,
        metric.rpartition('/')[2].removeprefix('bbox_'),
        spread([f[metric] for f in found], digits),
        f'{mean["flops"] / 1e9:.3f}',
        f'{mean["active_parameters"] / 1e6:.2f} M',
        f'{mean["density"]:.3f}',
        f'{mean["seconds"]:.0f}',
    ]
    return f'| {" | ".join(cells)} |'


COLUMNS = (
    *('task', 'network', 'start', 'metric', 'value', 'GFLOPs'),
    *('active', 'density', 'seconds'),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the chain, and prints what came out."""
    parser = argparse.ArgumentParser(
        description='Pretrain, transfer, detect and segment, in small'
    )
    parser.add_argument('--seeds', type=int, default=1, help='runs of each')
    args = parser.parse_args(argv)
    prepare()
    found: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for seed in range(args.seeds):
        for kind in LAST:
            starts = {'scratch': True, 'pretrained': False}
            if kind == 'classifier':
                del starts['pretrained']
            for (start, scratch), network in product(starts.items(), NETWORKS):
                result = run(network, kind, seed, scratch)
                found.setdefault((network, kind, start), []).append(result)
    lines = [f'| {" | ".join(COLUMNS)} |', '|' + ' --- |' * len(COLUMNS)]
    lines += [row(*key, runs) for key, runs in found.items()]
    text = '\n'.join(lines)
    (OUT / 'table.md').write_text(f'{text}\n')
    print(
        f'\n{text}\n\nFLOPs are 2 x MACs of one image, masked weights not '
        f'counted; seconds are of training,\nwithout start and validation. '
        f'Runs, logs and checkpoints are in {OUT.relative_to(ROOT)}.'
    )


if __name__ == '__main__':
    main()
