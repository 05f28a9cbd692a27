"""The demo around its trainings: what is run, counted and shown."""

import json
from pathlib import Path

import pytest

from demo import demo
from helpers.fake_tools import METRICS, new_calls

pytestmark = pytest.mark.usefixtures('standins')


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    monkeypatch.setattr(demo, 'prepare', lambda root: None)


def test_both_are_trained_once_and_shown(capsys, tmp_path):
    demo.main([])
    calls = new_calls()
    assert [tool for tool, *_ in calls] == ['train', 'test'] * 2
    for name, (_, _, *words) in zip(demo.RUNS, calls[1::2], strict=True):
        assert f'work_dirs/demo/{name}/epoch_10.pth' in words
        pictures = tmp_path / 'work_dirs/demo/pictures' / name
        assert words[words.index('--show-dir') + 1] == str(pictures)
    capsys.readouterr()
    demo.main([])
    said = capsys.readouterr().out
    assert new_calls() == []
    results = json.loads(Path('work_dirs/demo/results.json').read_text())
    dense, sparse = results['dense'], results['sparse_wide']
    assert dense['gflops'] == 2 and sparse['active'] == 3e6
    assert dense['AP50'] == 0.35 and sparse['seconds'] == 35
    # Four times the weights of a stage at a quarter, and a larger stem.
    ratio = sparse['backbone_gflops'] / dense['backbone_gflops']
    assert 1 < ratio < 1.3
    # ResNet-18 has 3.6 GFLOPs at 224 x 224 with 64 channels.
    expected = 3.6 * (256 / 224) ** 2 * (24 / 64) ** 2
    assert dense['backbone_gflops'] == pytest.approx(expected, rel=0.2)
    assert Path('work_dirs/demo/table.md').read_text().strip() in said
    assert said.count('| 12.00 M    | 3.00 M | 0.250   | 0.100 | 0.350 |') == 2
    for word in ('GFLOPs', '2 x MACs', 'pictures', 'report.html', 'tools/'):
        assert word in said
    assert 'Something is wrong' not in said
    page = Path('work_dirs/demo/report/report.html').read_text()
    assert all(name in page for name in (*demo.RUNS, 'Training loss'))


def test_a_detector_that_did_not_learn_is_said(capsys):
    poor = METRICS | {'coco/bbox_mAP_50': 0.02}
    Path('metrics.json').write_text(json.dumps(poor))
    demo.main([])
    assert 'expected here: dense, sparse_wide.' in capsys.readouterr().out
