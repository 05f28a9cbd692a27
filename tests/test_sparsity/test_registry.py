import sys
from dataclasses import dataclass

import pytest

from sift_mm.discovery import import_modules
from sift_mm.registry import Registry
from sift_mm.sparsity import (
    ALGORITHMS,
    DISTRIBUTIONS,
    DROP_FRACTIONS,
    ERK,
    INITIALIZERS,
    SET,
    Cosine,
    FromWeights,
    RigL,
    TopK,
    UniformPlus,
)


@pytest.mark.parametrize(
    'registry, name, cls',
    [
        (ALGORITHMS, 'RigL', RigL),
        (ALGORITHMS, 'rigl', RigL),
        (ALGORITHMS, 'set', SET),
        (DISTRIBUTIONS, 'erk', ERK),
        (DISTRIBUTIONS, 'uniform+', UniformPlus),
        (DISTRIBUTIONS, 'uniform_plus', UniformPlus),
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
    registry = Registry('fruit', Apple)
    assert registry.register(Apple) is Apple
    return registry


def test_arguments_reach_the_class_and_the_config_is_left_alone():
    cfg = dict(type='apple', size=3)
    assert orchard().build(cfg) == Apple(3)
    assert cfg == dict(type='apple', size=3)


def test_an_object_passes_through():
    apple = Apple(7)
    assert orchard().build(apple) is apple


@pytest.mark.parametrize(
    'cfg', ['pear', dict(type='pear'), dict(size=1), None]
)
def test_an_unknown_name_lists_what_there_is(cfg):
    with pytest.raises(ValueError, match='(Unknown|a) fruit.*choose.*Apple'):
        orchard().build(cfg)


def test_an_argument_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="fruit 'apple' .*argument colour"):
        orchard().build(dict(type='apple', colour='red'))


def test_a_name_that_is_taken_is_refused():
    registry = orchard()
    assert registry.register(Apple) is Apple
    # The same class of a module that was imported again.
    again = dataclass(type('Apple', (), dict(__module__=__name__)))
    assert registry.register(again) is again
    with pytest.raises(ValueError, match='fruit .*ap_ple is taken by .*Apple'):
        registry.register(type('ap_ple', (), {}))


def test_modules_whose_library_is_missing_may_be_left_out(
    tmp_path, monkeypatch
):
    package = tmp_path / 'orchard_of_files'
    package.mkdir()
    (package / '__init__.py').write_text('')
    (package / 'apple.py').write_text('ripe = True')
    (package / 'pear.py').write_text('import no_such_library.inner')
    monkeypatch.syspath_prepend(tmp_path)
    import_modules(package.name, optional=['no_such_library'])
    assert sys.modules[f'{package.name}.apple'].ripe
    with pytest.raises(ModuleNotFoundError, match='no_such_library'):
        import_modules(package.name)
