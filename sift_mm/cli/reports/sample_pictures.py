"""Detections and segmentations of sample images, drawn by the libraries."""

import copy
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from itertools import count
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import (
    DATASETS,
    TRANSFORMS,
    VISUALIZERS,
    init_default_scope,
)
from mmengine.utils import import_modules_from_strings
from PIL import Image

from sift_mm.cli.reports.layer_history import data_address, spread_out
from sift_mm.cli.reports.run_dirs import Run
from sift_mm.cli.reports.run_groups import Group
from sift_mm.config.building import build_trained
from sift_mm.config.libraries import import_library
from sift_mm.errors import UserError

#: Visualizer of each library whose predictions are drawn.
VISUALIZER = {'mmdet': 'DetLocalVisualizer', 'mmseg': 'SegLocalVisualizer'}
#: Largest number of networks side by side.
NETWORKS = 6
#: Least score of a drawn box.
SCORE = 0.3
#: Largest width of a picture, in pixels.
PIXELS = 360
_numbers = count()


@dataclass
class Samples:
    """Pictures of sample images.

    Attributes:
        columns (list[str]): Names above the pictures.
        rows (list): Name of each image, and its pictures.
        notes (list[str]): Why pictures are missing.
        score (float): Least score of a drawn box.
    """

    columns: list[str] = field(default_factory=list)
    rows: list[tuple[str, list[str]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    score: float = SCORE


class Drawer:
    """Network of a run, and the library's visualizer of its predictions.

    Args:
        run (Run): Run with a config and a checkpoint.

    Raises:
        Exception: Error of any type, if something of the run is missing.
    """

    def __init__(self, run: Run) -> None:
        self.cfg = Config(copy.deepcopy(run.config))
        if self.cfg.get('custom_imports'):
            import_modules_from_strings(**self.cfg.custom_imports)
        import_library(self.cfg)
        self.scope = self.cfg.default_scope
        init_default_scope(self.scope)
        self.model: Any
        self.model, checkpoint = build_trained(
            self.cfg, str(run.checkpoints[-1])
        )
        #: Classes and palette.
        self.meta = checkpoint['meta'].get('dataset_meta', {})
        loader = self.cfg.get('test_dataloader') or self.cfg.val_dataloader
        self.dataset = loader.dataset

    def samples(self, number: int) -> list[dict[str, Any]]:
        """Return entries of the test set."""
        init_default_scope(self.scope)
        built = DATASETS.build(self.dataset)
        kept = spread_out(range(len(built)), number)
        return [built.get_data_info(i) for i in kept]

    def _pipeline(self, truth: bool) -> Compose:
        """Build the test pipeline, with or without annotations."""
        dataset = self.dataset
        while 'pipeline' not in dataset:
            dataset = dataset.dataset  # A wrapper.
        init_default_scope(self.scope)
        return Compose(
            [
                TRANSFORMS.build(step)
                for step in dataset.pipeline
                if truth or 'LoadAnnotations' not in step.type
            ]
        )

    def draw(self, sample: dict[str, Any], truth: bool) -> tuple[str, str]:
        """Return pictures of the annotations, '' without, and predictions.

        Args:
            sample (dict): Entry of the data set, with 'img_path'.
            truth (bool): Whether the entry has annotations.
        """
        packed = self._pipeline(truth)(copy.deepcopy(sample))
        with torch.no_grad():
            found = self.model.test_step(pseudo_collate([packed]))[0]
        image = np.array(Image.open(sample['img_path']).convert('RGB'))
        annotated = self._picture(image, found, True) if truth else ''
        return annotated, self._picture(image, found, False)

    def _picture(self, image: np.ndarray, found: Any, truth: bool) -> str:
        visualizer = VISUALIZERS.build(
            dict(
                type=VISUALIZER[self.scope],
                name=f'report{next(_numbers)}',
                vis_backends=[],
                save_dir=None,
            )
        )
        visualizer.dataset_meta = self.meta
        scores = {'pred_score_thr': SCORE} if self.scope == 'mmdet' else {}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'drawn.png')
            visualizer.add_datasample(
                '',
                image,
                found,
                draw_gt=truth,
                draw_pred=not truth,
                out_file=str(path),
                **scores,
            )
            drawn = Image.open(path).convert('RGB')
        drawn.thumbnail((PIXELS, PIXELS))
        out = BytesIO()
        drawn.save(out, 'JPEG', quality=82)
        return data_address(out.getvalue(), 'jpeg')


def draw_samples(
    groups: Sequence[Group], number: int, images: Sequence[Path]
) -> Samples:
    """Draw predictions of several networks on the same images.

    Args:
        groups (Sequence[Group]): Networks; of each the first run that has a
            checkpoint.
        number (int): Number of images of the test set.
        images (Sequence[Path]): Images in place of the test set's.
    """
    found = Samples()
    runs = {
        group.name: group.shown
        for group in groups
        if group.shown.config.get('default_scope') in VISUALIZER
    }
    if images and not runs:
        found.notes.append(
            'The images are not drawn on: no run detects or segments.'
        )
    if not runs or not (number or images):
        return found
    if len(runs) > NETWORKS:
        shown = ', '.join([*runs][:NETWORKS])
        found.notes.append(f'Shown are the first {NETWORKS}: {shown}.')
    samples: list[dict[str, Any]] = [
        {'img_path': str(path), 'img_id': i} for i, path in enumerate(images)
    ]
    columns: list[list[str]] = []
    for name, run in [*runs.items()][:NETWORKS]:
        try:
            if not run.checkpoints:
                raise UserError('there is no checkpoint of it.')
            # Data sets print, and drawing warns of boxes on the border.
            with redirect_stdout(StringIO()), catch_warnings():
                simplefilter('ignore')
                drawer = Drawer(run)
                samples = samples or drawer.samples(number)
                drawn = [drawer.draw(sample, not images) for sample in samples]
        # Data sets and models of users raise errors of any type.
        except Exception as error:
            text = f'{type(error).__name__}: {error}'
            text = str(error) if isinstance(error, UserError) else text
            found.notes.append(f'{name} is not drawn: {text}')
            continue
        if not columns and not images:
            columns.append([truth for truth, _ in drawn])
            found.columns.append('annotations')
        columns.append([predicted for _, predicted in drawn])
        found.columns.append(name)
    rows = zip(*columns, strict=True)  # None without a network.
    found.rows = [
        (Path(sample['img_path']).name, list(row))
        for sample, row in zip(samples, rows, strict=False)
    ]
    return found
