"""Tests of tools/analysis/masks.py."""

import json

import pytest
import torch

from sift_mm.cli.show_masks import main
from sift_mm.sparsity import MaskHistory


@pytest.fixture
def path(tmp_path):
    # A filter of both inputs, one of none, on K(2, 3) whose spectrum is known.
    masks = {
        'a': torch.tensor([[True, True], [False, False]]),
        'b': torch.ones(2, 3, dtype=torch.bool),
    }
    training = {
        'masks': masks,
        'history': MaskHistory(masks).state_dict(),
        'algorithm': 'RigL',
        'structure': {'type': 'NofM', 'n': 2, 'm': 4},
        'steps': 12345,
    }
    weights = {name: mask.float() for name, mask in masks.items()}
    path = tmp_path / 'a.pth'
    torch.save({'state_dict': weights, 'sparse_training': training}, path)
    return str(path)


def test_the_text(path, capsys):
    main([path])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"{path}: RigL, structure=dict(type='NofM', n=2, m=4), "
        'after 12,345 steps'
    )
    assert [line.split() for line in lines[3:]] == [
        'a 2 x 2 2 0.5000 0.5000 0.5000 0 of 2 1 of 2'.split(),
        'b 2 x 3 6 1.0000 1.0000 1.0000 0 of 3 0 of 2'.split(),
        'all 2 layers 8 0.8000 0.8000 0.8000 0 of 5 1 of 4'.split(),
    ]
    main([path, '--spectral'])
    lines = capsys.readouterr().out.splitlines()
    # 1 + sqrt(2), and sqrt(6); their mean is over the one layer with them.
    for row, gaps in (
        (lines[3], '- - - -'),
        (lines[4], '2.414 - 2.449 -'),
        (lines[5], '2.414 - 2.449 -'),
    ):
        assert row.split()[-4:] == gaps.split()


def test_json_has_all_numbers(path, tmp_path, capsys):
    main([path, '--json'])
    printed = json.loads(capsys.readouterr().out)
    main([path, '--json', str(tmp_path / 'out' / 'a.json')])
    assert printed == json.loads((tmp_path / 'out' / 'a.json').read_text())
    assert printed['checkpoint'] == path and printed['steps'] == 12345
    assert printed['layers'][0]['dead_outputs'] == 1
    assert printed['total']['density'] == 8 / 10


def test_layers_of_groups_are_counted(path, capsys):
    checkpoint = torch.load(path)
    rule = dict(algorithm='SET', structure=dict(type='Unstructured'))
    checkpoint['sparse_training']['groups'] = {'a': rule, 'b': rule}
    torch.save(checkpoint, path)
    main([path])
    line = capsys.readouterr().out.splitlines()[0]
    words = " (in groups: SET, structure='Unstructured' (2)), after 12,345"
    assert words in line
