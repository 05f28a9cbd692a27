"""One new file in the folder of its kind is found, as the page says."""

import re

import pytest

from helpers.forked_scripts import run_forked
from helpers.runs import ROOT

PAGE = (ROOT / 'docs/extending.md').read_text()
BACKBONE = """
from mmpretrain.models.backbones import VGG
from mmpretrain.registry import MODELS

from sift_mm.backbones.base import SparseIFTBackbone


@MODELS.register_module()
class MyVGG(SparseIFTBackbone, VGG):
    family = None
"""
RULE, DENSITY, STRUCTURE, MEMBER = re.findall(
    '```python\n(.*?)```', PAGE, re.S
)
DROPPED = """
import sys, {package}
{package}.__path__.append(sys.argv[1])
from sift_mm.discovery import import_modules
import_modules({package!r}, optional=('mmdet', 'mmseg'))
{look}
"""
HELP = """
from sift_mm.cli.get_flops import parse_args
parse_args(['--help'])
"""

TRAIN = """
import torch
from sift_mm.sparsity import SparseTraining
model = torch.nn.Linear(16, 8)
sparse = SparseTraining(
    model,
    torch.optim.SGD(model.parameters(), 0.1),
    {algorithm},
    steps=9,
    interval=2,
    end=1.0,
    sparsity=0.5,
    include=['weight'],
)
first, active = sparse.masks['weight'].clone(), []
for _ in range(9):
    model.zero_grad()
    model(torch.randn(4, 16)).square().sum().backward()
    sparse.step()
    active.append(int(sparse.masks['weight'].sum()))
mask = sparse.masks['weight']
assert not torch.equal(mask, first)
{check}
print('trained')
"""
MEMBER_TRAINS = """
import torch, sift_mm
from sift_mm.sparsity import SparseTraining
model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Linear(8, 2))
sift_mm.transform(model, 'twins', 0.5, include=['0'])
assert len([p for p in model.parameters() if p.shape == (8, 16)]) == 2
optimizer = torch.optim.SGD(model.parameters(), 0.1)
sparse = SparseTraining(model, optimizer, steps=9, interval=2)
for _ in range(9):
    model.zero_grad()
    model(torch.randn(4, 16)).square().sum().backward()
    sparse.step()
assert sparse.trainer.steps == 9
print('trained')
"""


def trains(algorithm, check):
    return TRAIN.format(algorithm=algorithm, check=check)


FAN_OUT = trains(
    "dict(type='RigL', structure='ConstantFanOut')",
    'assert (mask.sum(0) == 4).all()',
)
# 64 (1 + 4 p (1 - p)) weights, at steps 2, 4, 6 and 8.
BREATHES = trains(
    "'Breathing'",
    'assert active == [64, 112, 112, 128, 128, 112, 112, 64, 64]',
)


@pytest.mark.parametrize(
    'package, code, look, words',
    [
        (
            'sift_mm.layers',
            MEMBER,
            HELP,
            'twins',
        ),
        ('sift_mm.layers', MEMBER, MEMBER_TRAINS, 'trained'),
        ('sift_mm.sparsity.algorithms', RULE, HELP, 'Careful'),
        (
            'sift_mm.sparsity.algorithms',
            RULE,
            trains("'Careful'", 'assert set(active) == {64}'),
            'trained',
        ),
        ('sift_mm.sparsity.algorithms', DENSITY, BREATHES, 'trained'),
        ('sift_mm.sparsity.structures', STRUCTURE, FAN_OUT, 'trained'),
        (
            'sift_mm.backbones',
            BACKBONE,
            'from mmpretrain.registry import MODELS\n'
            "print(MODELS.build(dict(type='MyVGG', depth=11)).family)",
            'None',
        ),
    ],
)
def test_one_new_file_is_found(tmp_path, package, code, look, words):
    script = tmp_path / 'look.py'
    script.write_text(DROPPED.format(package=package, look=look))
    folder = tmp_path / 'dropped'
    folder.mkdir()
    (folder / 'mine.py').write_text(code)
    done = run_forked(script, folder)
    assert done.returncode == 0, done.stdout
    assert words in done.stdout
