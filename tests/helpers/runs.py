"""Small configs of the three libraries, and how to run the tools on them.

The models are the libraries' own, as narrow as they get; the data is that of
datasets. A training takes two or three iterations, each some milliseconds.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

RUNTIME = """
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.001, momentum=0.9))
param_scheduler = []
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=16)
"""

DET = """
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py',
          'mmdet::_base_/datasets/coco_detection.py',
          'mmdet::_base_/default_runtime.py']
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(depth=18, base_channels=8, frozen_stages=-1,
                  norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1),
    test_cfg=dict(score_thr=0.))  # Else an untrained head finds nothing.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=(
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
train_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(data_root=root, filter_cfg=dict(min_size=1),
                 pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(data_root=root, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=root + '/annotations/instances_val2017.json')
test_evaluator = val_evaluator
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
"""

SEG = """
_base_ = ['mmseg::_base_/models/fcn_r50-d8.py',
          'mmseg::_base_/datasets/cityscapes.py',
          'mmseg::_base_/default_runtime.py']
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(depth=18, base_channels=8, stem_channels=8),
    decode_head=dict(in_channels=64, channels=16, num_convs=1),
    auxiliary_head=dict(in_channels=32, channels=8))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=(64, 64)),
    dict(type='PackSegInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')]
train_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(data_root=root, pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(data_root=root, pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))
"""

CLS = """
_base_ = ['mmpretrain::_base_/models/resnet18_cifar.py',
          'mmpretrain::_base_/default_runtime.py']
model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    head=dict(in_channels=64, num_classes=3, topk=(1, )))
data_preprocessor = dict(
    num_classes=3, mean=[127., 127., 127.], std=[60., 60., 60.], to_rgb=True)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='CenterCrop', crop_size=32),
    dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=4, num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_root=root, data_prefix='train',
                 pipeline=pipeline))
val_dataloader = dict(
    batch_size=4, num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root=root, data_prefix='val',
                 pipeline=pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
default_hooks = dict(logger=dict(interval=1))
"""

TEXTS = {'mmdet': DET, 'mmseg': SEG, 'mmpretrain': CLS}


@dataclass(frozen=True)
class Run:
    """A config with what was trained from it."""

    config: str
    work_dir: Path
    checkpoint: str


def free_port() -> str:
    """Return a free port for the ranks of a run."""
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return str(sock.getsockname()[1])


def run_script(*args: object, **env: str) -> subprocess.CompletedProcess:
    """Run a command outside the root of the checkout."""
    return subprocess.run(
        [str(arg) for arg in args],
        cwd=ROOT / 'tests',
        env={**os.environ, 'PYTHON': sys.executable, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


# Modules of these names cannot be found: those of OpenMMLab take five seconds.
LIBRARIES = {'mmcv', 'mmdet', 'mmseg', 'mmpretrain'}
ABSENT = """
import importlib.util, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {absent}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name.split('.')[0] in {absent} else found(name, package))
"""


def run_without(
    absent: set[str], code: str, cwd: Path = ROOT, unset: Iterable[str] = ()
) -> str:
    """Run code where some modules are not installed; return its output."""
    code = ABSENT.replace('{absent}', repr(absent)) + code
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k not in unset},
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_config(folder: Path, scope: str, data_root: Path) -> str:
    """Write the small config of a library; return its path."""
    path = folder / f'{scope}_mini.py'
    path.write_text(f'root = {str(data_root)!r}\n{TEXTS[scope]}{RUNTIME}')
    return str(path)


def forget_instances() -> None:
    """Drop MMEngine's named singletons.

    A visualizer of the run before would be taken for that of the next.
    """
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope
    from mmengine.visualization import Visualizer

    kinds = [MessageHub, MMLogger, DefaultScope, Visualizer]
    for kind in kinds:
        kind._instance_dict.clear()
        kinds += kind.__subclasses__()  # Each has a list of its own.
