"""The composite layers: arithmetic, gradients, variance, masks."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from sift_mm.layers import Family, Member, families, register
from sift_mm.layers.family import family_of
from sift_mm.layers.plain import replace
from sift_mm.sparsity import MaskSet, Random, Uniform, select_parameters

pytestmark = pytest.mark.usefixtures('seed')
FAMILIES = ['parallel', 'factorized', 'doped', 'wide_factorized']
INNER = ['none', 'norm', 'norm_act']


def test_families_come_in_the_order_of_the_paper():
    assert families()[:5] == ('wide', *FAMILIES)
    widening = [name for name in families() if family_of(name).widens]
    assert widening == ['wide', 'wide_factorized']


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match="'wide' is WideFamily already"):

        @register
        class Mine(Family):
            name = 'wide'


CONV = dict(kernel_size=3, stride=2, padding=2, dilation=2)
KINDS = [
    pytest.param(
        lambda: nn.Conv2d(8, 16, bias=False, **CONV),
        (2, 8, 9, 9),
        id='dilated',
    ),
    pytest.param(
        lambda: nn.Conv2d(
            8, 16, 3, padding=1, groups=4, padding_mode='reflect'
        ),
        (2, 8, 6, 6),
        id='grouped',
    ),
    pytest.param(lambda: nn.Conv1d(8, 16, 5), (2, 8, 9), id='conv1d'),
    pytest.param(lambda: nn.Conv3d(8, 16, 2), (2, 8, 4, 4, 4), id='conv3d'),
    pytest.param(lambda: nn.Linear(8, 16), (2, 5, 8), id='linear'),
]


def apply(layer, weight, x):
    """Run the dense layer with another weight."""
    return functional_call(layer, {'weight': weight}, x)


def product(layer):
    """Return V U of a Factorized layer, group by group."""
    u, v = layer.u.weight.flatten(1), layer.v.weight.flatten(1)
    groups = getattr(layer, 'groups', 1)
    return torch.cat(
        [b @ a for a, b in zip(u.chunk(groups), v.chunk(groups), strict=True)]
    )


@pytest.mark.parametrize('make, shape', KINDS)
def test_without_inner_layers_each_equals_a_dense_layer(make, shape):
    x = torch.randn(shape, dtype=torch.float64)
    for family in FAMILIES:
        dense = make().double()
        layer = Member(family, 0.75).build(dense)
        if family == 'parallel':
            weight = sum(one.weight for one in layer.layers)
        elif family == 'doped':
            weight = layer.sparse.weight + product(layer.low_rank).view_as(
                dense.weight
            )
        else:
            weight = product(layer).view_as(dense.weight)
        if dense.bias is not None:
            nn.init.zeros_(dense.bias)  # as that of the new layers
        expected = apply(dense, weight, x)
        assert expected.abs().mean() > 0.01
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize('make, shape', KINDS)
@pytest.mark.parametrize('inner', ['norm', 'norm_act'])
def test_inner_layers_stand_where_they_should(make, shape, inner):
    x = torch.randn(shape)
    # A batch norm, by its definition; layer norm over the features.
    where = [d for d in range(len(shape)) if d != 1]
    if isinstance(make(), nn.Linear):
        where = [-1]

    def between(out):
        mean = out.mean(where, keepdim=True)
        var = out.var(where, keepdim=True, correction=0)
        out = (out - mean) / (var + 1e-5).sqrt()
        return out.relu() if inner == 'norm_act' else out

    layer = Member('factorized', 0.75, inner).build(make())
    torch.testing.assert_close(
        layer(x), layer.v(between(layer.u(x))), atol=1e-5, rtol=1e-4
    )
    layer = Member('parallel', 0.75, inner).build(make())
    assert len(layer.layers) == 4 and layer.layers[0].bias is None
    expected = sum(between(one(x)) for one in layer.layers) / 2
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('inner', INNER)
@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('sparsity', [0.75, 0.9])
@pytest.mark.parametrize(
    'make, shape',
    [
        (lambda: nn.Conv2d(32, 48, 3, bias=False), (8, 32, 12, 12)),
        (lambda: nn.Conv2d(32, 64, 3, groups=2), (8, 32, 12, 12)),
        (lambda: nn.Linear(128, 96), (64, 128)),
    ],
)
def test_the_output_varies_as_the_dense_layers(
    family, inner, sparsity, make, shape
):
    dense = make()
    member = Member(family, sparsity, inner)
    layer = nn.Sequential(member.build(dense))
    if sparsity == 0.75:
        for p in layer.parameters():
            nn.init.constant_(p, 7.0)
        layer[0].init_weights()
    parameters = (
        select_parameters(layer) if member.family != 'wide_factorized' else {}
    )
    shapes = {n: tuple(p.shape) for n, p in parameters.items()}
    masks = MaskSet.draw(
        parameters, Uniform().counts(shapes, sparsity), Random(), 0
    )
    masks.apply_(dict(layer.named_parameters()))
    with torch.no_grad():
        x = torch.randn(shape)
        expected = apply(dense, dense.weight, x).var()
        if family == 'parallel' and inner != 'none':
            # Normed, then: 1, or of a ReLU (1 - 1 / pi) / 2, which is .34.
            expected = torch.tensor(1.0 if inner == 'norm' else 0.34)
        assert 0.6 < layer(x).var() / expected < 1.6


@pytest.mark.parametrize(
    'kwargs, names',
    [
        (
            dict(family='parallel'),
            ['layers.0', 'layers.1', 'layers.2', 'layers.3'],
        ),
        (dict(family='factorized'), ['u', 'v']),
        (dict(family='factorized', sparse_factors='u'), ['u']),
        (dict(family='factorized', sparse_factors='none'), []),
        (dict(family='doped'), ['sparse']),
        (dict(family='wide_factorized'), []),
        (dict(family='wide_factorized', sparse_factors='both'), ['u', 'v']),
    ],
)
def test_what_is_sparse(kwargs, names):
    layer = Member(sparsity=0.75, **kwargs).build(nn.Linear(32, 32))
    assert layer.sparse_parameter_names() == [f'{n}.weight' for n in names]


def test_it_looks_like_the_layer_it_replaces():
    dense = nn.Conv2d(4, 6, 3, stride=2, padding=1, dtype=torch.float64)
    for family in FAMILIES:
        layer = Member(family, 0.75, 'norm').build(dense)
        assert not isinstance(layer, nn.Conv2d)
        assert (layer.in_channels, layer.out_channels) == (4, 6)
        assert layer.stride == (2, 2)
        assert {p.dtype for p in layer.parameters()} == {torch.float64}
        with pytest.raises(
            AttributeError, match=r'no single weight.*exclude='
        ):
            _ = layer.weight
        linear = Member(family, 0.75).build(dense).named_parameters()
        assert sum(name.endswith('bias') for name, _ in linear) == 1
        last = dict(memory_format=torch.channels_last)
        layer = Member(family, 0.75).build(nn.Conv2d(4, 6, 3).to(**last))
        for p in layer.parameters():
            assert p.dim() < 4 or p.is_contiguous(**last)


def test_a_replaced_layer_stays_frozen_and_in_its_mode():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
    model.requires_grad_(False).eval()
    replace(model, '0', Member('parallel', 0.5, 'norm').build(model[0]))
    assert not any(p.requires_grad for p in model.parameters())
    assert not model[0].norms[0].training


def test_wide_is_no_layer_of_its_own():
    with pytest.raises(ValueError, match='sift_mm.transform'):
        Member('wide', 0.5).build(nn.Linear(8, 8))
