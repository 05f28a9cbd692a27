import pytest
import torch
from torch import nn

import sift_mm
from helpers.toy_runs import assert_same
from sift_mm.checkpoint.compact import COMPACT_KEY, compact, expand
from sift_mm.checkpoint.state import with_digest
from sift_mm.cli.publish_model import main as publish
from sift_mm.engine import use_safe_files
from sift_mm.errors import UserError

CASES = [
    ((), 1.0),
    ((), 0.0),
    ((1,), 1.0),
    ((13,), 0.3),
    ((3, 5), 0.0),
    ((3, 5), 1.0),
    ((4, 3, 3, 3), 0.1),
    ((0, 4), 0.5),
]


def checkpoint_of(cases, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    state = {'dense.weight': torch.randn(3, generator=generator)}
    masks = {}
    for i, (shape, density) in enumerate(cases):
        mask = torch.rand(shape, generator=generator) < density
        masks[f'layer{i}'] = mask
        weight = torch.randn(shape, generator=generator).to(dtype)
        state[f'layer{i}'] = weight * mask
    return {
        'meta': {'epoch': 3, 'classes': ('a', 'b'), 'odd': {1, 2}},
        'state_dict': state,
        'sparse_training': {'version': 1, 'steps': 7, 'masks': masks},
    }


def save(checkpoint, path):
    torch.save(checkpoint, path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_round_trip(seed, dtype, tmp_path):
    print(f'seed {seed}')
    given = checkpoint_of(CASES, seed, dtype)
    read = save(compact(given), tmp_path / 'small.pth')
    found = expand(read, 'small.pth')
    assert_same(found['state_dict'], given['state_dict'])
    training = found['sparse_training']
    assert_same(training['masks'], given['sparse_training']['masks'])
    assert training['steps'] == 7 and training['version'] == 1
    assert found['meta']['epoch'] == 3 and COMPACT_KEY not in found
    assert_same(
        sift_mm.load_compact(tmp_path / 'small.pth'), given['state_dict']
    )


def test_by_hand():
    given = checkpoint_of([((2, 5), 0.5)], 0)
    mask = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 0, 1, 1]]).bool()
    given['sparse_training']['masks']['layer0'] = mask
    weight = torch.zeros(2, 5)
    weight[0, 0], weight[1, 4] = 3, -2  # One active weight is zero.
    given['state_dict']['layer0'] = weight
    layer = compact(given)[COMPACT_KEY]['layers']['layer0']
    assert layer['bits'].tolist() == [0b10000000, 0b11000000]
    assert layer['values'].tolist() == [3, 0, -2]


@pytest.mark.parametrize('filters, rest', [(4, 0), (4, 3), (2, 1)])
def test_a_block_of_filters_keeps_one_place_for_each(filters, rest, tmp_path):
    given = checkpoint_of([((8 + rest, 3, 5), 0.5)], 0)
    mask = given['sparse_training']['masks']['layer0']
    mask = mask[::filters].repeat_interleave(filters, 0)[: 8 + rest]
    given['sparse_training']['masks']['layer0'] = mask
    given['state_dict']['layer0'] = torch.ones(mask.shape) * mask
    read = save(compact(given), tmp_path / 'a.pth')
    layer = read[COMPACT_KEY]['layers']['layer0']
    blocks = 8 // filters + (rest > 0)
    assert layer['filters'] == filters and len(layer['bits']) == -(
        -15 * blocks // 8
    )
    found = expand(read, 'a.pth')
    assert_same(found['state_dict'], given['state_dict'])
    assert torch.equal(found['sparse_training']['masks']['layer0'], mask)
    layer['filters'] = 3
    with pytest.raises(UserError, match='blocks of 3'):
        expand(read, 'a.pth')


def test_a_file_from_before_blocks_is_read():
    given = checkpoint_of([((4, 2), 0.5)], 0)
    mask = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]]).bool()
    given['sparse_training']['masks']['layer0'] = mask
    given['state_dict']['layer0'] = weight = torch.ones(4, 2) * mask
    file = compact(given)
    old = {
        'shape': [4, 2],
        'bits': torch.tensor([0b10100101], dtype=torch.uint8),
        'values': torch.ones(4),
    }
    file[COMPACT_KEY] = with_digest({'version': 1, 'layers': {'layer0': old}})
    assert torch.equal(expand(file, 'x')['state_dict']['layer0'], weight)


def test_a_weight_that_is_not_zero_outside_its_mask_is_kept():
    given = checkpoint_of([((3, 5), 0.5)], 0)
    given['state_dict']['layer0'] += 1
    found = expand(compact(given), 'x')
    assert_same(found['state_dict'], given['state_dict'])


def test_what_is_not_compact_is_left_alone():
    given = checkpoint_of(CASES, 0)
    assert expand(given, 'x') is given


def test_without_masks_there_is_nothing_to_pack(tmp_path):
    torch.save({'state_dict': {'a': torch.ones(1)}}, tmp_path / 'a.pth')
    with pytest.raises((SystemExit, UserError), match='a.pth: .* no masks'):
        publish(
            [str(tmp_path / 'a.pth'), str(tmp_path / 'b.pth'), '--compact']
        )
    assert [p.name for p in tmp_path.iterdir()] == ['a.pth']


def test_at_0_9_a_file_is_below_a_sixth(tmp_path):
    # A tenth of the weights and a bit for each: 0.13 of what they were.
    given = checkpoint_of([((1000, 1000), 0.1)], 0)
    sizes = []
    for content in (given, compact(given)):
        torch.save(content, tmp_path / 'a.pth')
        sizes.append((tmp_path / 'a.pth').stat().st_size)
    assert sizes[1] < (sizes[0] - 10**6) / 6  # Without the mask.


def test_published_twice_and_loaded_by_mmengine(tmp_path):
    from mmengine.runner import load_checkpoint

    use_safe_files()
    given = checkpoint_of([((3, 5), 0.5)], 0)
    module = nn.Module()
    module.layer0 = nn.Parameter(torch.ones(3, 5))
    torch.save(given, tmp_path / 'run.pth')
    publish([str(tmp_path / 'run.pth'), str(tmp_path / 'a.pth'), '--compact'])
    (first,) = tmp_path.glob('a-*.pth')
    read = load_checkpoint(module, str(first))
    assert torch.equal(module.layer0, given['state_dict']['layer0'])
    assert torch.equal(
        read['sparse_training']['masks']['layer0'],
        given['sparse_training']['masks']['layer0'],
    )
    publish([str(first), str(tmp_path / 'b.pth')])
    (second,) = tmp_path.glob('b-*.pth')
    assert_same(
        torch.load(second, weights_only=True)['state_dict'],
        given['state_dict'],
    )
    assert not list(tmp_path.glob('*.part'))
