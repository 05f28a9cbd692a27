"""Tests of tools/analysis/browse_dataset.py."""

import numpy as np
import pytest
import torch
from PIL import Image

from sift_mm.cli import browse_dataset


@pytest.mark.parametrize(
    'scope, phase, expected',
    [
        ('mmdet', 'train', [f'{i:012d}.jpg' for i in (1, 2, 3)]),
        ('mmseg', 'val', [f'frankfurt_{i:06d}_000019_leftImg8bit.png'
                          for i in (0, 1)]),
        ('mmpretrain', 'test', [f'n01440764_{i}.JPEG' for i in (0, 1)]
         + ['n01443537_0.JPEG']),
    ],
)  # fmt: skip
def test_saves_samples(scope, phase, expected, configs, tmp_path):
    out = tmp_path / 'drawn'
    browse_dataset.main(
        [configs[scope], '--output-dir', str(out), '--not-show']
        + ['--phase', phase, '--show-number', '3']
    )
    assert sorted(path.name for path in out.iterdir()) == expected
    assert min(Image.open(out / expected[0]).size) > 0


def test_draws_boxes(configs, data, tmp_path):
    browse_dataset.main(
        [configs['mmdet'], '-o', str(tmp_path / 'out'), '--not-show']
        + ['-n', '1', '-p', 'val']
    )
    drawn = np.asarray(Image.open(tmp_path / 'out' / '000000000001.jpg'))
    plain = Image.open(data['mmdet'] / 'val2017' / '000000000001.jpg')
    plain = np.asarray(plain.resize(drawn.shape[1::-1]))
    # Colours are those of the file, and something is drawn upon it.
    gap = np.abs(drawn.astype(int) - plain)
    assert np.median(gap) < 20
    assert gap.max() > 100


def test_equal_names_are_all_kept(configs, data, tmp_path):
    for name in ('cat', 'dog', 'horse'):
        folder = tmp_path / 'set' / 'val' / name
        folder.mkdir(parents=True)
        Image.new('RGB', (40, 40)).save(folder / '0.png')
    browse_dataset.main(
        [configs['mmpretrain'], '-o', 'out', '--not-show', '-p', 'val']
        + ['--cfg-options', f'val_dataloader.dataset.data_root={tmp_path}/set']
    )
    names = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert names == ['0.png', '1_0.png', '2_0.png']


def test_to_image():
    inputs = torch.tensor([-5.0, 10.0, 300.0]).reshape(3, 1, 1)
    image = browse_dataset.to_image(inputs, 'BGR')
    assert image.tolist() == [[[255, 10, 0]]]
    assert browse_dataset.to_image(inputs, 'RGB').tolist() == [[[0, 10, 255]]]
    grey = browse_dataset.to_image(inputs[1:2], 'BGR')
    assert grey.tolist() == [[[10, 10, 10]]]
