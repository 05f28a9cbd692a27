"""The state of mask training in a checkpoint."""

import pytest
import torch

from sift_mm.checkpoint.state import check_finite, mask_training, with_digest


def leaves(value, path=()):
    """Yield the places of all values in nested dicts and lists."""
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], (*path, key))
    elif isinstance(value, list):
        for place in range(len(value)):
            yield from leaves(value[place], (*path, place))
    else:
        yield path


def state_of_a_run():
    return {
        'version': 1,
        'seed': None,
        'drop_fraction': {'type': 'Cosine', 'initial': 0.1 + 0.2},
        'masks': {'a': torch.eye(2, 3).bool(), 'b': torch.ones(()).bool()},
        'history': {'ever': {'a': torch.tensor([255], dtype=torch.uint8)}},
        'gradients': [{'a': torch.randn(2, 3).bfloat16(), 'c': torch.ones(0)}],
        'choices': {'a': {4: [(True, False)]}},
    }


def test_a_state_that_was_saved_is_known_again(tmp_path):
    state = with_digest(state_of_a_run())
    torch.save({'sparse_training': state}, tmp_path / 'a.pth')
    read = torch.load(tmp_path / 'a.pth', weights_only=True)
    assert mask_training(read)['drop_fraction'] == state['drop_fraction']
    turned = dict(reversed(read['sparse_training'].items()))
    assert mask_training({'sparse_training': turned})


def other(value):
    """Return another value, of the same type if possible."""
    if isinstance(value, torch.Tensor):
        if not value.numel():
            return value[None]  # Of the same bytes.
        return ~value if value.dtype == torch.bool else value + 1
    return 0 if value == 1 else (value, value)


@pytest.mark.parametrize('place', [*leaves(state_of_a_run()), ('new',)])
def test_a_state_with_any_other_value_is_not(place):
    state = node = with_digest(state_of_a_run())
    *keys, last = place
    for key in keys:
        node = node[key]
    node[last] = None if place == ('new',) else other(node[last])
    with pytest.raises(ValueError, match='not what was saved'):
        mask_training({'sparse_training': state})


def test_weights_are_finite_or_mask_attention():
    infinity = torch.tensor([0.0, -torch.inf])
    check_finite({'a': infinity, 'b': torch.ones(2).to(torch.float8_e5m2)})
    check_finite({'a': torch.arange(3), 'b': 'extra state'})
    for wrong in (infinity.neg(), infinity + 1, infinity * 0):
        with pytest.raises(ValueError, match="'a' of the checkpoint is NaN"):
            check_finite({'a': wrong})
