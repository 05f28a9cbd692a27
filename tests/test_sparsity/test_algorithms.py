import pytest
import torch

from sift_mm.sparsity import SET, LayerState, RigL, generator_for

SHAPES = [(40,), (8, 9), (6, 4, 1, 1), (6, 4, 3, 3)]
DYNAMIC = [SET(), RigL()]


def layer(shape, seed, density=0.3, channels_last=False):
    """Mask, weight and gradient; exact zeros outside the mask."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel()
    mask = torch.zeros(size, dtype=torch.bool)
    active = max(1, int(density * size))
    mask[torch.randperm(size, generator=generator)[:active]] = True
    weight = torch.randn(size, generator=generator) * mask
    gradient = torch.randn(size, generator=generator)
    tensors = [t.view(shape) for t in (mask, weight, gradient)]
    if channels_last and len(shape) == 4:
        tensors = [t.to(memory_format=torch.channels_last) for t in tensors]
    return tensors


def update(algorithm, mask, weight, gradient, fraction, step=1):
    generator = generator_for(0, step, 'a')
    state = LayerState(mask, weight, gradient, {}, step, generator)
    return algorithm.update(state, fraction)


def reference(mask, weight, score, k):
    """Drop k, grow k, one element at a time."""
    mask, weight, score = (t.flatten().tolist() for t in (mask, weight, score))
    active = [i for i, m in enumerate(mask) if m]
    dropped = sorted(active, key=lambda i: abs(weight[i]))[:k]
    kept = set(active) - set(dropped)
    free = [i for i in range(len(mask)) if i not in kept]
    grown = sorted(free, key=lambda i: score[i], reverse=True)[:k]
    return [i in kept or i in grown for i in range(len(mask))]


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('fraction', [0.05, 0.3, 0.77, 1.0])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('seed', range(3))
def test_rigl_against_the_reference(seed, shape, fraction, channels_last):
    mask, weight, gradient = layer(shape, seed, channels_last=channels_last)
    k = int(fraction * int(mask.sum()) + 1e-9)
    new = update(RigL(), mask, weight, gradient, fraction)
    expected = reference(mask, weight, gradient.abs(), k)
    assert new.shape == mask.shape
    assert new.flatten().tolist() == expected


# floor(fraction * active), and the product taken for what it is meant to be:
# 0.29 * 100 is 28.999999999999996 in binary.
@pytest.mark.parametrize(
    'active, fraction, k',
    [
        (100, 0.29, 29),
        (100, 0.57, 57),
        (9, 0.3, 2),
        (10, 0.3, 3),
        (3, 0.3, 0),
        (3, 1.0, 3),
        (100, 0.0, 0),
        (100, 0.0099, 0),
    ],
)
def test_how_many_are_dropped(active, fraction, k):
    mask = torch.arange(200) < active
    weight = mask * (1.0 + torch.arange(200))
    # Every active gradient is 0, so that what is dropped does not come back.
    gradient = (~mask).float()
    new = update(RigL(), mask, weight, gradient, fraction)
    assert int((mask & ~new).sum()) == k
    # The smallest weights are the first.
    assert not new[:k].any() and new[k:active].all()


@pytest.mark.parametrize('algorithm', DYNAMIC)
@pytest.mark.parametrize('fraction', [0.0, 0.3])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('channels_last', [False, True])
def test_an_update_changes_none_of_its_arguments(
    algorithm, fraction, shape, channels_last
):
    arguments = layer(shape, 0, channels_last=channels_last)
    before = [t.clone() for t in arguments]
    new = update(algorithm, *arguments, fraction)
    new.logical_not_()
    for argument, held in zip(arguments, before, strict=True):
        assert torch.equal(argument, held)
