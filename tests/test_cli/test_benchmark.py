"""Tests of tools/analysis/benchmark.py."""

import json
from pathlib import Path

import pytest
from torch.nn.modules.module import register_module_forward_hook

from helpers.runs import write_config
from helpers.sparse_runs import sparse_config
from sift_mm.cli import benchmark
from sift_mm.flops.model_forward import call_model

NOWHERE = Path('nowhere')
FEW = ['--rounds', '2', '--shape', '32', '64']


def test_it_times_three_ways(tmp_path, capsys):
    config = sparse_config(tmp_path, 'mmdet', NOWHERE)
    out = tmp_path / 'new' / 'speed.json'
    benchmark.main([config, *FEW, '--batch', '1', '3', '--json', str(out)])
    report = json.loads(out.read_text())
    found = [(row['batch'], row['what']) for row in report['rows']]
    ways = ['dense twin', 'executed densely', 'executed sparsely']
    assert found == [(batch, way) for batch in (1, 3) for way in ways]
    assert all(row['seconds'] > 0 for row in report['rows'])
    assert [row['ratio'] for row in report['rows'][::3]] == [1, 1]
    said = capsys.readouterr().out
    assert 'backbone.layer1.0.conv1: ' in said
    assert 'backbone at 32 x 64' in said


@pytest.mark.parametrize('library', ['mmpretrain', 'mmdet', 'mmseg'])
def test_neck_and_heads_may_be_timed_too(
    tmp_path, capsys, monkeypatch, library
):
    config = sparse_config(tmp_path, library, NOWHERE)
    ran = []

    def note(module, inputs, output):
        ran.append(type(module).__name__)

    def timed(model, image):
        with register_module_forward_hook(note):
            call_model(model, image)

    monkeypatch.setattr(benchmark, 'call_model', timed)
    benchmark.main([config, *FEW, '--batch', '2', '--whole'])
    assert 'the whole model at 32 x 64' in capsys.readouterr().out
    part = dict(
        mmpretrain='GlobalAveragePooling',
        mmdet='FPN',
        mmseg='DepthwiseSeparableASPPModule',
    )[library]
    # Three ways, two turns after a first run.
    assert ran.count(part) == 9


def test_a_dense_config_is_refused(tmp_path):
    config = write_config(tmp_path, 'mmdet', NOWHERE)
    with pytest.raises(SystemExit, match='no SparseTrainingHook'):
        benchmark.main([config, *FEW])
