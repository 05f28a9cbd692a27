"""The configs of the page on data read data of the layout that it shows."""

import re

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from helpers.runs import ROOT
from sift_mm.config.libraries import import_library
from sift_mm.config.loading import read_config

PAGE = (ROOT / 'docs/data.md').read_text()
CONFIGS = [
    code
    for code in re.findall('```python\n(.*?)```', PAGE, re.S)
    if code.startswith('_base_')
]


def write_images(*paths):
    """Write an image of 64 x 64 pixels; a label image has zeros and ones."""
    rng = np.random.default_rng(0)
    for path in paths:
        label = path.suffix == '.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (64, 64) if label else (64, 64, 3)
        pixels = rng.integers(0, 2 if label else 256, shape)
        Image.fromarray(pixels.astype(np.uint8)).save(path)


FILES = {
    'mmseg': ['images/{}/a.jpg', 'labels/{}/a.png'],
    'mmpretrain': ['{}/cat/a.jpg', '{}/dog/a.jpg', '{}/owl/a.jpg'],
}


@pytest.mark.parametrize('code', CONFIGS, ids=list(FILES))
def test_own_data_is_read(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.py').write_text(code)
    cfg = read_config('mine.py')
    scope = cfg.default_scope
    for split in ('train', 'val'):
        names = [name.format(split) for name in FILES[scope]]
        write_images(*[tmp_path / 'data/mine' / name for name in names])
    import_library(cfg)
    init_default_scope(scope)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        dataset = DATASETS.build(loader.dataset)
        classes = dataset.metainfo['classes']
        assert len(dataset) == (1 if scope == 'mmseg' else 3)
        assert dataset[0]['inputs'].shape[0] == 3
    heads = [cfg.model[name] for name in cfg.model if 'head' in name]
    assert {head.num_classes for head in heads} == {len(classes)}
