"""The members of the family by name."""

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
