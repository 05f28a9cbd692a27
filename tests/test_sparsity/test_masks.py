import pytest
import torch
from torch import nn

from sift_mm.sparsity import MaskSet, Random, TopK

NAN, INF = float('nan'), float('inf')


def parameters():
    return {
        'a': nn.Parameter(torch.randn(4, 5)),
        'b': nn.Parameter(torch.randn(3, 2, 3, 3)),
    }


def masks_for(params):
    return {n: torch.rand(p.shape) < 0.5 for n, p in params.items()}


def test_it_is_a_mapping_of_copies():
    params = parameters()
    source = masks_for(params)
    masks = MaskSet(params, source)
    assert list(masks) == ['a', 'b'] and len(masks) == 2
    assert 'a' in masks and 'c' not in masks
    before = {n: m.clone() for n, m in source.items()}
    for mask in source.values():
        mask.logical_not_()
    for name in masks:
        assert torch.equal(masks[name], before[name])


def test_masks_take_the_memory_order_of_the_parameter():
    plain = torch.rand(4, 3, 3, 3) < 0.5
    weight = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    masks = MaskSet({'a': nn.Parameter(weight)}, {'a': plain})
    assert masks['a'].stride() == weight.stride()
    assert torch.equal(masks['a'], plain)
    assert masks['a'].element_size() == 1
    assert not masks['a'].requires_grad


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda m: m.pop('a'), r"no mask for \['a'\].*parameter for none"),
        (lambda m: m.update(c=m['a']), r"no mask for none.*for \['c'\]"),
        (lambda m: m.update(a=m['a'].float()), "'a' is torch.float32.*bool"),
        (
            lambda m: m.update(b=m['a']),
            r"'b' is .*\(4, 5\).*shape \(3, 2, 3, 3\)",
        ),
        (lambda m: m.update(a=m['a'].T), r"'a' is .*\(5, 4\).*shape \(4, 5\)"),
    ],
)
def test_masks_of_another_network_are_refused(change, words):
    params = parameters()
    source = masks_for(params)
    change(source)
    with pytest.raises(ValueError, match=words):
        MaskSet(params, source)


def test_drawn_masks_depend_on_seed_and_name_alone():
    def draw(seed, names, weight_seed=0):
        torch.manual_seed(weight_seed)
        params = {n: nn.Parameter(torch.randn(20, 10)) for n in names}
        return MaskSet.draw(params, dict.fromkeys(names, 40), Random(), seed)

    first = draw(7, ['x', 'y'])
    assert first.counts() == {'x': 40, 'y': 40}
    # Same shape, other name.
    assert not torch.equal(first['x'], first['y'])
    # Order, the other layers and the global random state play no part.
    other = draw(7, ['z', 'y', 'x'], weight_seed=1)
    assert torch.equal(first['x'], other['x'])
    assert torch.equal(first['y'], other['y'])
    assert not torch.equal(first['x'], draw(8, ['x'])['x'])


def test_drawing_touches_no_weight_and_reads_it():
    params = {'a': nn.Parameter(torch.tensor([[1.0, -4.0], [3.0, 0.0]]))}
    masks = MaskSet.draw(params, {'a': 2}, TopK(), 0)
    assert masks['a'].tolist() == [[False, True], [True, False]]
    assert params['a'].tolist() == [[1.0, -4.0], [3.0, 0.0]]


def test_apply_selects_in_place():
    params = {'a': nn.Parameter(torch.tensor([1.0, NAN, -INF, -2.0, NAN]))}
    pointer = params['a'].data_ptr()
    masks = MaskSet(params, {'a': torch.tensor([1, 0, 0, 1, 0]).bool()})
    masks.apply_()
    assert params['a'].tolist() == [1.0, 0.0, 0.0, -2.0, 0.0]
    assert params['a'].data_ptr() == pointer and params['a'].requires_grad


def test_mask_gradients_leaves_missing_ones_missing():
    params = parameters()
    masks = MaskSet(params, masks_for(params))
    params['a'].grad = torch.full((4, 5), NAN)
    params['a'].grad[masks['a']] = 3.0
    masks.mask_gradients_()
    assert torch.equal(params['a'].grad, 3.0 * masks['a'])
    assert params['b'].grad is None
