"""The data set in memory against augmentation pixel by pixel."""

from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS
from mmpretrain.structures import DataSample

from sift_mm.engine import InMemoryDataset
from sift_mm.engine.in_memory import flip_some, shift_each
from sift_mm.engine.randomness import NumberedBatch, SeededFetch
from sift_mm.errors import UserError

IMAGES = torch.arange(1, 5 * 24 + 1, dtype=torch.uint8).view(5, 2, 3, 4)


@DATASETS.register_module()
class FiveImages:
    """Five images of two channels; one may have another size."""

    metainfo = {'classes': ['a', 'b']}

    def __init__(self, odd=False):
        self.odd = odd

    def __len__(self):
        return 5

    def __getitem__(self, index):
        image = IMAGES[index, :, 1:] if self.odd and index else IMAGES[index]
        sample = DataSample().set_gt_label(index % 2)
        return {'inputs': image, 'data_samples': sample}


def moved(image, y, x, flip):
    """Return an image that is flipped and shifted, pixel by pixel."""
    channels, height, width = image.shape
    found = torch.zeros_like(image)
    for c, i, j in np.ndindex(channels, height, width):
        a, b = i + y, j + x
        if 0 <= a < height and 0 <= b < width:
            found[c, i, j] = image[c, a, width - 1 - b if flip else b]
    return found


def test_each_flip_and_shift_is_as_frequent_as_the_others():
    torch.manual_seed(0)
    number, shifts = 4000, range(-1, 2)
    images = IMAGES[:1].expand(number, -1, -1, -1)
    found = shift_each(flip_some(images, 0.25), 1)
    counts = Counter(tuple(f.flatten().tolist()) for f in found)
    for flip, share in ((False, 0.75), (True, 0.25)):
        for y in shifts:
            for x in shifts:
                oracle = moved(IMAGES[0], y, x, flip)
                count = counts.pop(tuple(oracle.flatten().tolist()))
                mean = number * share / 9
                assert abs(count - mean) < 4 * mean**0.5
    assert not counts


def test_without_options_samples_are_those_of_the_data_set():
    data = InMemoryDataset(dict(type='FiveImages'))
    assert len(data) == 5 and data.metainfo == FiveImages.metainfo
    for index in range(5):
        assert torch.equal(data[index]['inputs'], IMAGES[index])
        assert data[index]['data_samples'].gt_label == index % 2


def test_predictions_stay_with_one_reading():
    data = InMemoryDataset(dict(type='FiveImages'))
    data[3]['data_samples'].set_pred_label(1)
    assert data[3]['data_samples'].keys() == ['gt_label']
    assert 'pred_label' not in data[3]['data_samples']


def test_a_batch_depends_on_the_seed_of_its_iteration_alone():
    data = InMemoryDataset(dict(type='FiveImages'), flip=0.5, shift=2)
    fetch = SeededFetch(data, (3, 0))

    def read(number):
        batch = NumberedBatch([4, 0, 1, 2, 3] * 4)
        batch.number = number
        return torch.stack([s['inputs'] for s in fetch(batch)])

    first, second = read(7), read(8)
    assert not torch.equal(first, second)
    assert torch.equal(first, read(7))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(flip=2), 'flip is a share'),
        (dict(shift=-1), 'shift is a number of pixels'),
        (dict(shift=1.5), 'shift is a number of pixels'),
        (
            dict(dataset=dict(type='FiveImages', odd=True)),
            'images of one size',
        ),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        InMemoryDataset(**{'dataset': dict(type='FiveImages'), **options})
