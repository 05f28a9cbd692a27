"""The members of the family by name."""

import pytest
import torch

from sift_mm.layers import Family, Member, families, register, transform
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


def test_a_layer_that_stands_alone_is_not_replaced_inside_itself():
    layer = torch.nn.Conv2d(8, 8, 3)
    for module in (layer, Member('parallel', 0.5).build(layer)):
        with pytest.raises(ValueError, match='itself a layer'):
            transform(module, 'parallel', 0.5)
