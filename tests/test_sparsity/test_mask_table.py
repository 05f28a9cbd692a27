"""Masks of saved files, and their table."""

import pytest
import torch

import sift_mm
from helpers.toy_runs import assert_same, hook_of, toy_run
from sift_mm.cli.publish_model import main as publish
from sift_mm.errors import UserError
from sift_mm.sparsity import MaskHistory
from sift_mm.sparsity.mask_table import mask_table


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    ema = dict(type='EMAHook', momentum=0.5)
    return folder, toy_run(folder, dict(), custom_hooks=[ema])


@pytest.mark.parametrize('options', [None, [], ['--compact']])
def test_masks_of_any_file_are_those_of_the_run(run, tmp_path, options):
    folder, runner = run
    path = folder / 'epoch_4.pth'  # With averaged weights.
    if options is not None:
        publish([str(path), str(tmp_path / 'out.pth'), *options])
        (path,) = tmp_path.iterdir()
    masks = dict(hook_of(runner).trainer.masks)
    assert_same(sift_mm.masks_of(path), masks)
    table = mask_table(str(path))
    (row,) = table['layers']
    assert (row['name'], row['shape']) == ('hidden.weight', [16, 8])
    assert row['density'] == 0.5 and row['ramanujan_gap'] is not None
    history = hook_of(runner).trainer.history
    shares = history.itop_rate(), history.degree_of_constraint()
    published = options is not None
    assert (row['itop'], row['doc']) == ((None,) * 2 if published else shares)


def test_what_has_no_masks_is_said(tmp_path):
    torch.save({'a.weight': torch.ones(2, 2)}, tmp_path / 'dense.pth')
    torch.save([1, 2], tmp_path / 'list.pth')
    for name, words in (
        ('dense.pth', 'dense.pth has no masks: SparseTrainingHook saves them'),
        ('list.pth', 'list.pth is no checkpoint'),
        ('nothing.pth', 'There is no checkpoint .*nothing.pth'),
    ):
        for call in (sift_mm.masks_of, mask_table):
            with pytest.raises(UserError, match=words):
                call(tmp_path / name)


def test_rows_and_totals(tmp_path):
    first = {
        'a': torch.zeros(3, 4, 2, 2, dtype=torch.bool),
        'b': torch.ones(2, 2, dtype=torch.bool),
    }
    # Filter 0 reads channels 0 and 3; filter 2 reads channel 0.
    first['a'][0, 0, 0, 1] = first['a'][0, 3, 1, 1] = True
    first['a'][2, 0, 1, 0] = True
    last = {n: mask.clone() for n, mask in first.items()}
    last['a'][2, 0, 1, 0], last['a'][2, 0, 0, 0] = False, True
    history = MaskHistory(first).after(last)
    training = {
        'masks': last,
        'history': history.state_dict(),
        'algorithm': 'SET',
        'steps': 7,
    }
    weights = {n: mask.float() for n, mask in last.items()}
    path = tmp_path / 'a.pth'
    torch.save({'state_dict': weights, 'sparse_training': training}, path)
    table = mask_table(path, spectral=False)
    one, other = table['layers']
    assert one == {
        'name': 'a',
        'shape': [3, 4, 2, 2],
        'size': 48,
        'active': 3,
        'density': 3 / 48,
        'itop': 4 / 48,
        'doc': 2 / 48,
        'inputs': 4,
        'outputs': 3,
        'dead_inputs': 2,
        'dead_outputs': 1,
    }
    assert (other['itop'], other['doc'], other['dead_inputs']) == (1, 1, 0)
    assert table['total'] == {
        'size': 52,
        'active': 7,
        'density': 7 / 52,
        'itop': 8 / 52,
        'doc': 6 / 52,
        'inputs': 6,
        'outputs': 5,
        'dead_inputs': 2,
        'dead_outputs': 1,
    }
    assert (table['algorithm'], table['structure']) == ('SET', None)
    # Two stars: bound sqrt(3 / 2 - 1) + 0, values sqrt(2) and 1. K(2, 2):
    # bound 2, values 2 and 0.
    total = mask_table(path)['total']
    gaps = 0.5**0.5 - 1, 2
    assert total['ramanujan_gap'] == pytest.approx(sum(gaps) / 2)
    assert total['weighted_gap'] == pytest.approx((2**0.5 - 1 + 2) / 2)
    assert total['imdb'] is None
    torch.save({'state_dict': {}, 'sparse_training': training}, path)
    with pytest.raises(UserError, match='no checkpoint'):
        mask_table(path)
