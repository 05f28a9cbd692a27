"""What a checkpoint holds: the mask training in it."""

import pytest

from sift_mm.checkpoint import mask_training


def test_a_checkpoint_without_masks_has_none():
    assert mask_training({'state_dict': {}}) is None


@pytest.mark.parametrize(
    'state, words',
    [
        (dict(version=99, masks={}), 'version 99.*up to 1'),
        (dict(version=1), 'holds no masks'),
        ([1, 2], 'holds no masks'),
    ],
)
def test_what_cannot_be_read_is_refused(state, words):
    with pytest.raises(ValueError, match=words):
        mask_training({'sparse_training': state})
