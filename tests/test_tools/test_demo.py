"""The demo around its trainings: what is kept, counted and shown."""

import json

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from demo import demo


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A demo folder with both networks trained, so to speak."""
    monkeypatch.setattr(demo, 'OUT', tmp_path)
    init_default_scope('mmdet')
    for name, path in demo.RUNS.items():
        config = Config.fromfile(path)
        model = MODELS.build(config.model)
        state = dict(state_dict=model.state_dict(), meta=dict(iter=290))
        if name == 'sparse_wide':
            state['sparse_training'] = dict(
                masks={
                    f'backbone.{n}': torch.arange(p.numel()).view(p.shape) % 4
                    == 0
                    for n, p in model.backbone.named_parameters()
                    if n in model.backbone.sparse_parameter_names()
                }
            )
        folder = tmp_path / name
        logs = folder / '20260101_000000' / 'vis_data'
        logs.mkdir(parents=True)
        torch.save(state, folder / f'epoch_{config.max_epochs}.pth')
        (folder / 'last_checkpoint').write_text(
            f'epoch_{config.max_epochs}.pth'
        )
        metrics = {'coco/bbox_mAP': 0.1, 'coco/bbox_mAP_50': 0.35}
        (folder / 'metrics.json').write_text(json.dumps(metrics))
        records = [
            dict(step=10, loss=2.0, time=0.5),
            dict(step=20, loss=1.0, time=1.5),
            dict(step=1, **metrics),
        ]
        if name == 'sparse_wide':
            records.append(
                {
                    'step': 10,
                    'sparse/density': 0.25,
                    'sparse/moved': 0.1,
                    'sparse/itop_rate': 0.3,
                    'sparse/drop_fraction': 0.3,
                }
            )
        (logs / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))
    return tmp_path


def forbid(*args, **kwargs):
    raise AssertionError('Work that is done was done again.')


def test_a_second_call_only_shows_what_is_there(out, monkeypatch, capsys):
    monkeypatch.setattr(demo, 'run_tool', forbid)
    monkeypatch.setattr(demo, 'prepare', lambda root: root)
    monkeypatch.setattr(demo, 'ROOT', out.parent)
    demo.main([])
    said = capsys.readouterr().out
    results = json.loads((out / 'results.json').read_text())
    dense, sparse = results['dense'], results['sparse_wide']
    assert dense['density'] == 1 and dense['active'] == dense['parameters']
    assert sparse['density'] == pytest.approx(0.25, abs=1e-4)
    assert dense['AP50'] == 0.35
    assert dense['seconds'] == 290  # 290 steps of 1 s on average.
    # Four times the weights of a stage at a quarter, and a larger stem.
    ratio = sparse['backbone_gflops'] / dense['backbone_gflops']
    assert 1 < ratio < 1.3
    assert (out / 'table.md').read_text().strip() in said
    for word in (
        'GFLOPs',
        'AP50',
        'sparse_wide',
        '2 x MACs',
        'pictures',
        'curves.png',
        'tools/train.py',
    ):
        assert word in said
    assert 'Something is wrong' not in said
    assert (out / 'curves.png').stat().st_size > 10_000


def test_a_detector_that_did_not_learn_is_said(out, monkeypatch, capsys):
    monkeypatch.setattr(demo, 'prepare', lambda root: root)
    monkeypatch.setattr(demo, 'ROOT', out.parent)
    (out / 'dense' / 'metrics.json').write_text(
        json.dumps({'coco/bbox_mAP': 0.0, 'coco/bbox_mAP_50': 0.02})
    )
    demo.main([])
    assert 'expected here: dense.' in capsys.readouterr().out


def test_what_is_not_done_is_run(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, 'OUT', tmp_path)
    calls = []
    monkeypatch.setattr(demo, 'run_tool', lambda *a: calls.append(a))
    (tmp_path / 'dense').mkdir()
    (tmp_path / 'dense' / 'epoch_10.pth').write_text('half of it')
    checkpoint = demo.train('dense')
    assert checkpoint == tmp_path / 'dense' / 'epoch_10.pth'
    assert calls[0][2] == 'tools/train.py' and '--resume' in calls[0]
