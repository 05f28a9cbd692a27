"""The tutorial's code runs as it is written, on a narrower detector."""

import re
import shlex
from pathlib import Path

from helpers.datasets import mini_coco
from helpers.forked_scripts import run_forked
from helpers.runs import ROOT, write_config

PAGE = (ROOT / 'docs/tutorial.md').read_text()
TOOLS = {
    'sift-train': 'tools/train.py',
    'sift-test': 'tools/test.py',
    'sift-report': 'tools/report.py',
    'sift-publish': 'tools/model_converters/publish_model.py',
}
NARROW = """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=12)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=12))
"""
CHECKS = """
from pathlib import Path

import torch
import sift_mm

files = 'work_dirs/mine/mine.py', 'work_dirs/mine/epoch_12.pth'
model = init_detector(*files, device='cpu')
images = dict(inputs=torch.rand(1, 3, 64, 96))
for dense, sparse in zip(model(**images), fast(**images), strict=True):
    for a, b in zip(dense, sparse, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
saved = torch.load('work_dirs/mine/epoch_12.pth', weights_only=False)
assert saved['sparse_training']['steps'] == 48
masks = saved['sparse_training']['masks'].values()
(published,) = Path('work_dirs/mine').glob('wide-*.pth')
compact = sift_mm.load_compact(published)
assert all(compact[n].equal(w) for n, w in saved['state_dict'].items())
assert 0 < sum(map(torch.sum, masks)) < sum(m.numel() for m in masks) / 3
"""


def blocks(language):
    return re.findall(f'```{language}\n(.*?)```', PAGE, re.S)


def test_the_tutorial_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = mini_coco(tmp_path / 'data/mine')
    for split in ('train', 'val'):
        (data / f'{split}2017').rename(data / split)
        file = data / f'annotations/instances_{split}2017.json'
        file.rename(data / f'{split}.json')
    narrow = write_config(tmp_path, 'mmdet', data)
    with open(narrow, 'a') as file:
        file.write(NARROW)
    config, deploy = blocks('python')
    commands = ''.join(blocks('bash'))
    code = config + commands + deploy
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    config = re.sub("'mmdet::.*?'", repr(narrow), config)
    (tmp_path / 'mine.py').write_text(config)
    said = {}
    for line in commands.splitlines():
        tool, *options = shlex.split(line)
        done = run_forked(ROOT / TOOLS[tool], *options)
        assert done.returncode == 0, done.stdout
        said[tool] = done.stdout
    assert 'bbox_mAP' in said['sift-test'] and 'seconds' in said['sift-test']
    (page,) = Path('work_dirs/mine').rglob('*.html')
    assert 'bbox_mAP' in page.read_text()
    (tmp_path / 'deploy.py').write_text(deploy + CHECKS)
    done = run_forked(tmp_path / 'deploy.py')
    assert done.returncode == 0, done.stdout
    assert 'scores' in done.stdout and 'sparse' in done.stdout
