"""The table of data sets: one entry each, and a new file is a new entry."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from mmengine.config import Config

from sift_mm import data
from sift_mm.config.data import check_data
from sift_mm.config.images import image_size, schedule_samples
from sift_mm.data import DATA_SETS, DataSet, find_data_set, register
from sift_mm.discovery import import_modules
from sift_mm.errors import UserError

# As a user would write it.
LETTERS = """
from sift_mm.data import DataSet, register

register(
    DataSet(
        name='letters',
        title='Letters',
        task='Image Classification',
        types=('LettersDataset',),
        folder='data/letters',
        images=26,
        size=(12, 8),
        remedy='write 26 letters',
    )
)
"""


@pytest.fixture
def letters(tmp_path, monkeypatch):
    """Add a data set by nothing but a file in the package."""
    (tmp_path / 'letters.py').write_text(LETTERS)
    path = [*data.__path__, str(tmp_path)]
    monkeypatch.setattr(data, '__path__', path)
    before = dict(DATA_SETS)
    import_modules('sift_mm.data')
    yield
    sys.modules.pop('sift_mm.data.letters')
    DATA_SETS.clear()
    DATA_SETS.update(before)


def test_a_new_file_is_known_to_every_tool(letters):
    leaf = dict(type='LettersDataset', split='train', pipeline=[])
    cfg = Config(
        dict(
            model={},
            train_cfg=dict(max_epochs=3),
            train_dataloader=dict(dataset=leaf),
        )
    )
    assert image_size(cfg, 'train') == ((12, 8), 'LettersDataset images')
    assert schedule_samples(cfg)[0] == 3 * 26
    leaf['data_root'] = 'nowhere'
    with pytest.raises(UserError, match='for Letters, write 26 letters'):
        check_data(
            Config(dict(train_dataloader=dict(dataset=leaf))), ['train']
        )


@pytest.mark.parametrize(
    'name, library, config',
    [
        ('ade20k', 'mmseg', 'ade20k'),
        ('cifar10', 'mmpretrain', 'cifar10_bs16'),
        ('cifar100', 'mmpretrain', 'cifar100_bs16'),
        ('cityscapes', 'mmseg', 'cityscapes'),
        ('coco', 'mmdet', 'coco_instance'),
        ('imagenet', 'mmpretrain', 'imagenet_bs32'),
    ],
)
def test_entries_fit_the_configs_of_the_libraries(name, library, config):
    folder = Path(find_spec(library).submodule_search_locations[0])
    path = folder / f'.mim/configs/_base_/datasets/{config}.py'
    data_set = DATA_SETS[name]
    assert f"'{data_set.folder}" in path.read_text()
    leaf = Config.fromfile(path).train_dataloader.dataset
    assert find_data_set(leaf.type) is data_set
    paths = [leaf.get(key) for key in ('ann_file', 'data_prefix', 'split')]
    assert data_set.path in str(paths)


def test_a_name_is_taken_once():
    other = DataSet('coco', 'Other', 'Object Detection', ('X',), 'data/x', 1)
    with pytest.raises(ValueError, match='cannot have coco, which is that'):
        register(other)
    assert DATA_SETS['coco'].title == 'COCO'
