"""The members of the family by name, and a new one in a file of its own."""

import subprocess
import sys

import pytest

from sift_mm.layers import Family, families, register
from sift_mm.layers.family import family_of


def test_members_in_the_order_of_the_paper():
    assert families()[:5] == (
        'wide',
        'parallel',
        'factorized',
        'doped',
        'wide_factorized',
    )
    assert [name for name in families() if family_of(name).widens] == [
        'wide',
        'wide_factorized',
    ]


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'Wide'.*families.*'wide'.*None"):
        family_of('Wide')


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match="'wide' is WideFamily already"):

        @register
        class Mine(Family):
            name = 'wide'


NEW = """
from sift_mm.layers.family import Family, register
from sift_mm.layers.parallel import Parallel

@register
class Twins(Family):
    name = 'twins'

    @classmethod
    def build(cls, member, layer, norm, step, scale, cost, rank):
        return Parallel(layer, 2, member.inner, norm, 0.5, scale)
"""
USE = """
import sys, sift_mm.layers
sift_mm.layers.__path__.append(sys.argv[1])
sift_mm.layers.import_modules('sift_mm.layers')
import torch, sift_mm
net = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.Conv2d(8, 8, 3))
print(sift_mm.transform(net, 'twins', 0.5))
from sift_mm.cli.get_flops import parse_args
parse_args(['--help'])
"""


def test_a_new_member_is_one_file(tmp_path):
    (tmp_path / 'twins.py').write_text(NEW)
    done = subprocess.run(
        [sys.executable, '-c', USE, tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert '-> Parallel(Conv2d(8, 8' in done.stdout
    assert 'FLOPs 1.0000 of the dense' in done.stdout
    assert 'wide_factorized,twins' in done.stdout  # In --help.
