import io

import pytest
import torch

from sift_mm.sparsity import MaskHistory, density, training_flops


def mask(text):
    """Convert '101' to a bool tensor."""
    return torch.tensor([c == '1' for c in text])


def test_density_is_that_of_all_weights_together():
    # 3 of 4 and 1 of 12: 4 of 16, not the mean of 3/4 and 1/12.
    masks = {'a': mask('1110'), 'b': mask('100000000000').view(3, 4)}
    assert density(masks) == 0.25


@pytest.mark.parametrize('seed', range(5))
def test_history_against_plain_or_and_and(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {'a': (3, 5, 3, 3), 'b': (7, 1), 'c': (1,)}

    def draw():
        return {
            n: torch.rand(s, generator=generator) < 0.4
            for n, s in shapes.items()
        }

    masks = draw()
    ever = {n: m.clone() for n, m in masks.items()}
    always = {n: m.clone() for n, m in masks.items()}
    history = MaskHistory(masks)
    for _ in range(4):
        for name, new in draw().items():
            ever[name] |= new
            always[name] &= new
            history = history.after({name: new})
        assert history.itop_rate() == pytest.approx(density(ever))
        assert history.degree_of_constraint() == pytest.approx(density(always))


def test_memory_order_does_not_matter():
    first = torch.rand(4, 3, 3, 3) < 0.5
    second = torch.rand(4, 3, 3, 3) < 0.5
    history = MaskHistory({'a': first})
    history = history.after(
        {'a': second.to(memory_format=torch.channels_last)}
    )
    assert history.itop_rate() == pytest.approx(density({'a': first | second}))


def test_history_keeps_no_hold_of_the_masks():
    start = mask('110000')
    history = MaskHistory({'a': start})
    start.fill_(True)
    assert history.itop_rate() == pytest.approx(1 / 3)


def test_state_goes_through_a_checkpoint():
    history = MaskHistory({'a': mask('1100000000')})
    history = history.after({'a': mask('0110000000')})
    file = io.BytesIO()
    torch.save(history.state_dict(), file)
    # The state is a copy: what happens later is not in it.
    history = history.after({'a': mask('0000000011')})
    file.seek(0)
    other = MaskHistory({'a': mask('1111100000')})
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.itop_rate() == pytest.approx(0.3)
    assert other.degree_of_constraint() == pytest.approx(0.1)
    other = other.after({'a': mask('0000000011')})
    assert other.itop_rate() == history.itop_rate() == pytest.approx(0.5)
    assert other.degree_of_constraint() == 0


# f_S = 10, f_D = 40. RigL at dT = 100: (3000 + 20 + 40) / 101 = 30.297;
# at dT = 1: (30 + 20 + 40) / 2 = 45; half of the steps with updates: 37.5.
@pytest.mark.parametrize(
    'algorithm, kwargs, expected',
    [
        ('dense', {}, 120),
        ('static', {}, 30),
        ('SET', {}, 30),
        ('set', {}, 30),
        ('RigL', {}, 3060 / 101),
        ('rigl', dict(end=0.75), 0.75 * 3060 / 101 + 0.25 * 30),
        ('rigl', dict(interval=1), 45),
        ('rigl', dict(interval=1, end=0.5), 37.5),
        ('rigl', dict(end=0), 30),
    ],
)
def test_training_flops(algorithm, kwargs, expected):
    assert training_flops(algorithm, 10, 40, **kwargs) == pytest.approx(
        expected
    )


def test_training_flops_of_an_unknown_algorithm():
    with pytest.raises(
        ValueError, match="'snip'; choose one of .*RigL, .*Static"
    ):
        training_flops('snip', 1, 2)
