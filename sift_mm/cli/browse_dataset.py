"""Shows the samples of a dataset with their annotations.

What is drawn has been through the pipeline: it is what the model would see.
"""

import os.path as osp
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from mmengine.utils import track_iter_progress

from sift_mm.cli.entry import Parser, entry_point
from sift_mm.cli.options import add_config_options
from sift_mm.config.data import check_data
from sift_mm.config.reading import import_library, load_config
from sift_mm.errors import Mistake


def to_image(inputs: Any, channel_order: str) -> np.ndarray:
    """An image (C, H, W), values of 0 to 255, as uint8 RGB (H, W, 3)."""
    image = inputs.permute(1, 2, 0).numpy().clip(0, 255).astype(np.uint8)
    if image.shape[2] == 1:
        image = image.repeat(3, axis=2)
    if channel_order == 'BGR':
        image = image[..., ::-1]
    return np.ascontiguousarray(image)


def to_drawable(data_sample: Any) -> Any:
    """Turns MMDetection's boxes and masks into plain arrays."""
    data_sample = data_sample.numpy()
    instances = data_sample.get('gt_instances')
    if instances is not None:
        if hasattr(instances.get('bboxes'), 'tensor'):
            instances.bboxes = instances.bboxes.tensor
        if hasattr(instances.get('masks'), 'to_ndarray'):
            instances.masks = instances.masks.to_ndarray().astype(bool)
    return data_sample


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Shows or saves the samples that the command line asks for."""
    parser = Parser(description='Browse a dataset')
    add_config_options(parser)
    add = parser.add_argument
    add('--output-dir', '-o', help='folder to write the pictures to')
    add('--not-show', action='store_true', help='open no window')
    add('--phase', '-p', default='train', choices=['train', 'val', 'test'])
    text = 'how many samples; all by default'
    add('--show-number', '-n', type=int, default=sys.maxsize, help=text)
    text = 'seconds that each window stays'
    add('--show-interval', '-i', type=float, default=2, help=text)
    add(
        '--channel-order',
        '-c',
        default='BGR',
        choices=['BGR', 'RGB'],
        help='channel order of the images: what OpenMMLab loads from files '
        'is BGR, CIFAR is RGB',
    )
    args = parser.parse_args(argv)
    cfg = load_config(args)
    check_data(cfg, [args.phase])
    if not cfg.get('visualizer'):
        raise Mistake('The config has no visualizer, which draws.')
    import_library(cfg)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    dataset = DATASETS.build(cfg[f'{args.phase}_dataloader'].dataset)
    cfg.visualizer.setdefault('name', 'browse_dataset')
    visualizer = VISUALIZERS.build(cfg.visualizer)
    visualizer.dataset_meta = dataset.metainfo
    draw: Callable[..., None] = visualizer.add_datasample
    if hasattr(visualizer, 'visualize_cls'):
        draw = visualizer.visualize_cls  # MMPreTrain's name for it.
    drawn = set()
    indices = range(min(args.show_number, len(dataset)))
    for index in track_iter_progress(indices):
        item = dataset[index]
        data_sample = to_drawable(item['data_samples'])
        name = osp.basename(data_sample.get('img_path') or f'{index}.png')
        if name in drawn:
            # Folders of classes may hold files of equal names.
            name = f'{index}_{name}'
        drawn.add(name)
        out_file = args.output_dir and osp.join(args.output_dir, name)
        draw(
            image=to_image(item['inputs'], args.channel_order),
            data_sample=data_sample,
            name=name,
            draw_pred=False,
            show=not args.not_show,
            wait_time=args.show_interval,
            out_file=out_file,
        )
