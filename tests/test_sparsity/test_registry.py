from dataclasses import dataclass

import pytest

from sift_mm.sparsity import (
    ALGORITHMS,
    DISTRIBUTIONS,
    DROP_FRACTIONS,
    ERK,
    INITIALIZERS,
    SET,
    Cosine,
    FromWeights,
    Random,
    RigL,
    Static,
    TopK,
    Uniform,
    UniformPlus,
)
from sift_mm.sparsity.registry import Registry


@pytest.mark.parametrize(
    'registry, name, cls',
    [
        (ALGORITHMS, 'RigL', RigL),
        (ALGORITHMS, 'rigl', RigL),
        (ALGORITHMS, 'SET', SET),
        (ALGORITHMS, 'set', SET),
        (ALGORITHMS, 'static', Static),
        (DISTRIBUTIONS, 'erk', ERK),
        (DISTRIBUTIONS, 'Uniform', Uniform),
        (DISTRIBUTIONS, 'uniform+', UniformPlus),
        (DISTRIBUTIONS, 'uniform_plus', UniformPlus),
        (INITIALIZERS, 'random', Random),
        (INITIALIZERS, 'top-k', TopK),
        (INITIALIZERS, 'from_weights', FromWeights),
        (DROP_FRACTIONS, 'cosine', Cosine),
    ],
)
def test_names_as_people_write_them(registry, name, cls):
    assert type(registry.build(name)) is cls
    assert type(registry.build({'type': name})) is cls


@dataclass
class Apple:
    size: int = 1


def orchard():
    registry = Registry('fruit')
    assert registry.register(Apple) is Apple
    return registry


def test_arguments_reach_the_class_and_the_config_is_left_alone():
    cfg = dict(type='apple', size=3)
    assert orchard().build(cfg) == Apple(3)
    assert cfg == dict(type='apple', size=3)


def test_an_object_passes_through():
    apple = Apple(7)
    assert orchard().build(apple) is apple


@pytest.mark.parametrize('cfg', ['pear', dict(type='pear'), dict(size=1)])
def test_an_unknown_name_lists_what_there_is(cfg):
    with pytest.raises(ValueError, match='Unknown fruit.*choose.*Apple'):
        orchard().build(cfg)


def test_an_argument_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="fruit 'apple'.*'colour'"):
        orchard().build(dict(type='apple', colour='red'))


def test_names():
    assert ALGORITHMS.names == ['Static', 'SET', 'RigL']


def test_nothing_is_no_name() -> None:
    with pytest.raises(ValueError, match='Unknown .*None'):
        ALGORITHMS.build(None)
