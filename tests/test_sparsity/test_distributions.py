import random
from math import prod

import pytest

from sift_mm.sparsity import (
    DISTRIBUTIONS,
    ER,
    ERK,
    Explicit,
    Uniform,
    UniformPlus,
)

LAYERS = {'a': (4, 5), 'b': (10, 10, 3, 3), 'c': (50, 10)}


def random_shapes(seed):
    rng = random.Random(seed)
    shapes = {}
    for i in range(rng.randint(1, 12)):
        kernel = rng.choice([(), (1, 1), (3, 3), (7, 7)])
        shapes[str(i)] = (rng.randint(1, 64), rng.randint(1, 64), *kernel)
    return shapes


# 20, 900 and 500 weights.
@pytest.mark.parametrize(
    'sparsity, expected',
    [
        (0, {'a': 20, 'b': 900, 'c': 500}),
        (0.9, {'a': 2, 'b': 90, 'c': 50}),
        (0.75, {'a': 5, 'b': 225, 'c': 125}),
    ],
)
def test_uniform(sparsity, expected):
    assert Uniform().counts(LAYERS, sparsity) == expected


def test_a_layer_keeps_at_least_one_weight():
    # A tenth of three weights would round to none.
    assert Uniform().counts({'a': (1, 3)}, 0.9) == {'a': 1}


# Only the last layer, c, and only above its own limit.
@pytest.mark.parametrize(
    'kwargs, sparsity, last',
    [
        ({}, 0.9, 100),
        ({}, 0.8, 100),
        ({}, 0.75, 125),
        ({'last': 0.5}, 0.9, 250),
    ],
)
def test_uniform_plus(kwargs, sparsity, last):
    expected = {**Uniform().counts(LAYERS, sparsity), 'c': last}
    assert UniformPlus(**kwargs).counts(LAYERS, sparsity) == expected


def test_the_last_layer_is_that_of_the_network_not_of_the_alphabet():
    shapes = {'z': (10, 10), 'a': (10, 10)}
    assert UniformPlus().counts(shapes, 0.9) == {'z': 10, 'a': 20}


def test_er_does_not_look_at_the_kernel():
    # 20 / 100 for both: equal densities. ERK: 20 / 100 to 26 / 900, with
    # shares 20 and 26 of a budget of 100 weights.
    shapes = {'a': (10, 10), 'b': (10, 10, 3, 3)}
    assert ER().counts(shapes, 0.9) == {'a': 10, 'b': 90}
    assert ERK().counts(shapes, 0.9) == {'a': 43, 'b': 57}


@pytest.mark.parametrize('kind', [ER, ERK])
@pytest.mark.parametrize('sparsity', [0, 0.1, 0.5, 0.8, 0.95])
@pytest.mark.parametrize('seed', range(10))
def test_er_and_erk_on_random_networks(kind, sparsity, seed):
    shapes = random_shapes(seed)
    densities = kind().densities(shapes, sparsity)
    counts = kind().counts(shapes, sparsity)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    assert list(densities) == list(counts) == list(shapes)
    assert all(0 < d <= 1 for d in densities.values())
    assert all(1 <= counts[n] <= sizes[n] for n in sizes)
    # The budget holds.
    assert sum(densities[n] * sizes[n] for n in sizes) == pytest.approx(
        (1 - sparsity) * sum(sizes.values())
    )
    # Layers that are not dense are proportional to sum / prod, and dense
    # are those that this would make so.
    ratio = {}
    for name, shape in shapes.items():
        dims = shape if kind is ERK else shape[:2]
        ratio[name] = densities[name] * prod(dims) / sum(dims)
    free = [ratio[n] for n in shapes if densities[n] < 1 - 1e-9]
    if free:
        assert min(free) == pytest.approx(max(free))
        assert all(r <= max(free) * (1 + 1e-9) for r in ratio.values())


@pytest.mark.parametrize('name', ['Uniform', 'UniformPlus', 'ER', 'ERK'])
def test_no_sparsity_leaves_all_layers_dense_and_there_may_be_none(name):
    built = DISTRIBUTIONS.build(name)
    assert built.counts(LAYERS, 0) == {'a': 20, 'b': 900, 'c': 500}
    assert built.counts({}, 0.5) == {}


def test_explicit_takes_the_first_pattern_that_matches():
    shapes = {'layer1.a': (10, 10), 'layer1.b': (10, 10), 'fc': (10, 10)}
    explicit = Explicit({'*.b': 0.5, 'layer1.*': 0.9, 'f?': 0.0})
    # The overall sparsity plays no part.
    for sparsity in (0.1, 0.99):
        assert explicit.counts(shapes, sparsity) == {
            'layer1.a': 10,
            'layer1.b': 50,
            'fc': 100,
        }


@pytest.mark.parametrize(
    'sparsities, words',
    [
        ({'a': 0.5}, "no sparsity for 'b'.*patterns are .*'a'"),
        ({}, 'sparsities is .* for each glob pattern.*; got {}'),
        ({'*': 0.5, 'conv*': 0.1}, "'conv.*nearest are c, b, a"),
        ({'a': 0.5, 'b': 1.0, 'c': 0.1}, r"in \[0, 1\).*'b': 1"),
        ({'a': 0.5, 'b': -0.1, 'c': 0.1}, r"in \[0, 1\).*'b': -0.1"),
    ],
)
def test_mistakes_in_an_explicit_distribution(sparsities, words):
    with pytest.raises(ValueError, match=words):
        Explicit(sparsities).counts(LAYERS, 0.5)
