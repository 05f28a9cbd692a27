from itertools import product

import torch

from sift_mm.sparsity import generator_for


def draw(*key):
    return torch.rand(8, generator=generator_for(*key))


def test_the_same_key_gives_the_same_numbers():
    assert torch.equal(draw(3, 100, 'a.weight'), draw(3, 100, 'a.weight'))


def test_different_keys_give_different_numbers():
    # With the pairs that a careless key would mix up: (1, 11) and (11, 1),
    # (1, 1, '1') and (1, 11, '').
    keys = list(
        product(
            [0, 1, 11, 111], [0, 1, 11, 111], ['', '1', 'a', 'a.b', 'a.b.c']
        )
    )
    assert len({tuple(draw(*key).tolist()) for key in keys}) == len(keys)


def test_a_key_means_the_same_in_every_process_and_release():
    # Recorded once: a change would give resumed runs other masks, and
    # anything like Python's salted hash() other masks to every rank.
    generator = generator_for(2024, 100, 'backbone.layer1.0.conv1.weight')
    assert generator.initial_seed() == 6334977248373194792


def test_the_global_random_state_is_neither_read_nor_written():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = draw(0, 1, 'a')
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(draw(0, 1, 'a'), first)


def test_large_and_negative_seeds():
    assert generator_for(2**63, 10**12, 'a').device.type == 'cpu'
    assert not torch.equal(draw(-1, 0, 'a'), draw(1, 0, 'a'))
