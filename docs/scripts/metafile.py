"""Write metafile.yml of folders of configs, and model-index.yml above them.

FLOPs and parameters are counted from the configs, as get_flops.py does it.
Results are measured elsewhere and handed over in a JSON file that maps the
name of a config to its metrics, in the metafile's words::

    {"resnet18-w4_1xb128-12e_fashion-mnist": {"Top 1 Accuracy": 90.61}}

Task and data set are the config's; "Task" and "Dataset" among the metrics
replace them. Results that a metafile has already are kept where the JSON has
no others.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

from sift_mm.cli.entry import Parser, entry_point
from sift_mm.cli.reports.costs import make_report
from sift_mm.config.checks import backbone_node
from sift_mm.config.data import leaf_datasets
from sift_mm.config.loading import read_config
from sift_mm.config.nodes import type_name
from sift_mm.data import DATA_SETS, find_data_set
from sift_mm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
METAFILES = 'configs/*/metafile.yml'
PAPER = {
    'Title': 'Sparse-IFT: Sparse Iso-FLOP Transformations for Maximizing '
    'Training Efficiency',
    'URL': 'https://arxiv.org/abs/2303.11525',
}
HEADER = """\
# Written by docs/scripts/metafile.py.
# As in the metafiles of the OpenMMLab libraries, FLOPs are multiply-
# accumulates of one image (height, width) or text (tokens): half of what
# tools/analysis/get_flops.py prints. A masked layer costs its share of active
# weights. Parameters are all that a checkpoint holds; Active Parameters
# leaves out those that are masked. FLOPs and Active Parameters are not given
# where masks are those of a pretrained checkpoint: tools/test.py counts them.
"""
Results = Mapping[str, Mapping[str, Any]]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description='Write metafile.yml of folders of configs')
    found = [path.parent for path in sorted(ROOT.glob(METAFILES))]
    parser.add_argument(
        'folders',
        nargs='*',
        type=Path,
        default=found,
        help='folders below configs (default: those with a metafile.yml)',
    )
    parser.add_argument(
        '--results',
        type=Path,
        metavar='FILE.json',
        help='measured results, by config: {"NAME": {"METRIC": VALUE}}',
    )
    return parser.parse_args(argv)


def batch_size(cfg: Config, name: str) -> int | None:
    """Return the batch size over all processes, None if unknown."""
    found = re.search(r'_(\d+)xb(\d+)|-(\d+)xb(\d+)', name)
    if found is not None:
        processes, samples = filter(None, found.groups())
        return int(processes) * int(samples)
    return (cfg.get('auto_scale_lr') or {}).get('base_batch_size')


def describe(path: Path) -> tuple[dict[str, Any], str]:
    """Return the metafile entry of a config without results, and its task.

    Raises:
        UserError: If the data set is none that is known.
    """
    cfg = read_config(str(path))
    report = make_report(cfg)
    leaf = next(leaf_datasets(cfg.train_dataloader.dataset))
    data_set = find_data_set(type_name(leaf))
    if data_set is None or leaf.get('metainfo'):
        titles = ', '.join(known.title for known in DATA_SETS.values())
        raise UserError(
            f'{path} trains on none of the data sets known here: {titles} '
            'with their own classes.'
        )
    data = data_set.title
    backbone, masks = backbone_node(cfg), report['masks'] or {}
    total, loop = report['total'], cfg.train_cfg
    transferred, training = masks.get('transferred'), []
    if transferred is not None:
        training.append('masks of the pretrained checkpoint')
    if masks and transferred != 'fixed':
        training.append(masks['algorithm'])
    # What is counted is a network whose masks are drawn for it.
    counted = transferred is None
    metadata = {
        'Training Data': data,
        'Epochs': loop.get('max_epochs'),
        'Iterations': loop.get('max_iters'),
        'Batch Size': batch_size(cfg, path.stem),
        'Input Size': list(report['shape']),
        'FLOPs': round(total['flops_sparse'] / 2) if counted else None,
        'Parameters': total['parameters'],
        'Active Parameters': total['active'] if masks and counted else None,
        'Family': backbone.get('family'),
        'Sparsity': backbone.get('sparsity'),
        'Mask Training': ', '.join(training) or None,
    }
    return {
        'Name': path.stem,
        'In Collection': f'Sparse-IFT on {data}',
        'Config': path.relative_to(path.parents[2]).as_posix(),
        'Metadata': {k: v for k, v in metadata.items() if v is not None},
    }, data_set.task


def write_metafile(folder: Path, results: Results) -> None:
    """Write the metafile of a folder, with results by config name."""
    metafile = folder / 'metafile.yml'
    old = yaml.safe_load(metafile.read_text()) if metafile.exists() else None
    kept = {
        model['Name']: model['Results']
        for model in (old or {}).get('Models', [])
        if 'Results' in model
    }
    models = []
    for path in sorted(folder.glob('*.py')):
        print(path.name, flush=True)
        model, task = describe(path)
        if path.stem in results:
            own = {'Task': task, 'Dataset': model['Metadata']['Training Data']}
            metrics = dict(results[path.stem])
            said = {key: metrics.pop(key, own[key]) for key in own}
            model['Results'] = [said | {'Metrics': metrics}]
        elif path.stem in kept:
            model['Results'] = kept[path.stem]
        models.append(model)
    readme, collections = folder / 'README.md', {}
    for model in models:
        name, data = model['In Collection'], model['Metadata']['Training Data']
        collections[name] = {
            'Name': name,
            'Metadata': {'Training Data': data},
            'Paper': PAPER,
        }
        if readme.exists():
            path = readme.relative_to(folder.parents[1])
            collections[name]['README'] = path.as_posix()
    text = dump({'Collections': [*collections.values()], 'Models': models})
    metafile.write_text(HEADER + text)


def write_index(root: Path) -> None:
    """Write model-index.yml, with every metafile below configs."""
    found = sorted(
        path.relative_to(root).as_posix() for path in root.glob(METAFILES)
    )
    (root / 'model-index.yml').write_text(dump({'Import': found}))


def dump(content: dict[str, Any]) -> str:
    """Return YAML in the given order."""
    return yaml.safe_dump(content, sort_keys=False, width=1000)


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Write metafiles and index.

    Raises:
        UserError: If a folder has no configs, or results are of a config
            that is in none of the folders.
    """
    args = parse_args(argv)
    folders = [folder.resolve() for folder in args.folders]
    results: Results = {}
    if args.results is not None:
        try:
            results = json.loads(args.results.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f'{args.results} is no JSON: {error}.') from error
    names = set()
    for folder in folders:
        here = {path.stem for path in folder.glob('*.py')}
        if not here:
            raise UserError(f'There are no configs in {folder}.')
        names |= here
    unknown = sorted(set(results) - names)
    if unknown:
        raise UserError(
            f'{args.results} has results of {unknown[0]}, which is no config '
            'of the folders.'
        )
    for folder in folders:
        write_metafile(folder, results)
    for root in dict.fromkeys(folder.parents[1] for folder in folders):
        write_index(root)


if __name__ == '__main__':
    main()
