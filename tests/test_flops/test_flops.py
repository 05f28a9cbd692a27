import warnings
from math import prod

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sift_mm.flops import FlopCount, count_flops, on_meta
from sift_mm.sparsity import ERK, Uniform, sparsifiable_parameters


# 2 x outputs x inputs of one output, on a 4 x 5 image of three channels.
@pytest.mark.parametrize(
    'layer, expected',
    [
        (nn.Conv2d(3, 8, 3, padding=1), 2 * (8 * 4 * 5) * (3 * 9)),
        (nn.Conv2d(3, 8, 3, padding=1, bias=False), 2 * (8 * 4 * 5) * (3 * 9)),
        (nn.Conv2d(3, 8, 3), 2 * (8 * 2 * 3) * (3 * 9)),
        (nn.Conv2d(3, 8, 3, 2, 1), 2 * (8 * 2 * 3) * (3 * 9)),
        (nn.Conv2d(3, 8, 1), 2 * (8 * 4 * 5) * 3),
        (nn.Conv2d(3, 6, 3, padding=1, groups=3), 2 * (6 * 4 * 5) * 9),
        (nn.Conv2d(3, 8, 3, padding=2, dilation=2), 2 * (8 * 4 * 5) * (3 * 9)),
        (nn.Sequential(nn.Flatten(), nn.Linear(60, 7)), 2 * 7 * 60),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)), 0),
    ],
)
def test_one_layer_by_hand(layer, expected):
    assert count_flops(layer, (4, 5)).total == expected


def test_a_masked_layer_costs_its_share():
    count = FlopCount(1000, {'a': 400, 'b.c': 300})
    assert count.sparse({}) == 1000
    # 400 * 3/4 and 300 * 9/10 less.
    masked = count.sparse({'a.weight': 0.25, 'b.c.weight': 0.1})
    assert masked == pytest.approx(1000 - 300 - 270)
    assert count.sparse({'a.weight': 1.0, 'unused.weight': 0.1}) == 1000


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    count_flops(model, (8, 8))
    assert model.training and next(model.parameters()).device.type == 'cpu'
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert not any(m._forward_hooks for m in model.modules())


@pytest.fixture(scope='module')
def resnet50():
    with torch.device('meta'):
        model = torchvision.models.resnet50()
    shapes = {
        n: tuple(p.shape) for n, p in sparsifiable_parameters(model).items()
    }
    return count_flops(model, (224, 224)), shapes


def test_resnet50_is_that_of_the_rigl_paper(resnet50):
    count, shapes = resnet50
    assert count.total / 1e9 == pytest.approx(8.178, abs=5e-4)
    assert sum(map(prod, shapes.values())) / 1e6 == pytest.approx(
        25.5, abs=0.1
    )
    assert len(shapes) == 54


# Published by the RigL authors. ERK: every layer sparse, stem and classifier
# too. Uniform: the stem dense, the classifier sparse.
PUBLISHED = [
    (ERK, 0.8, 0.42),
    (ERK, 0.9, 0.24),
    (ERK, 0.95, 0.12),
    (Uniform, 0.8, 0.23),
    (Uniform, 0.9, 0.13),
    (Uniform, 0.95, 0.08),
]


def published_densities(kind, shapes, sparsity):
    if kind is Uniform:
        shapes = {n: s for n, s in shapes.items() if n != 'conv1.weight'}
    counts = kind().counts(shapes, sparsity)
    return {name: counts[name] / prod(shapes[name]) for name in shapes}


@pytest.mark.parametrize('kind, sparsity, published', PUBLISHED)
def test_sparse_resnet50_as_the_rigl_authors_count(
    resnet50, kind, sparsity, published
):
    count, shapes = resnet50
    masked = published_densities(kind, shapes, sparsity)
    # Counted in multiplications and additions alone, some are a few
    # thousandths below (0.4138 for 0.42, 0.2231 for 0.23).
    ratio = count.sparse(masked) / count.total
    assert ratio == pytest.approx(published, abs=0.0075)

    # Their counter (MicroNet's) gives each output of each layer a bias and a
    # ReLU, 2 v + 1 operations for a dot product of v weights, and the stem
    # 115 x 115 outputs, as it sees the padded image of 230 x 230.

    def total(density):
        result = 0
        for name, shape in shapes.items():
            fan_in = prod(shape[1:])
            outputs = count.of(name) / (2 * fan_in)
            if name == 'conv1.weight':
                outputs *= (115 / 112) ** 2
            result += outputs * (2 * fan_in * density.get(name, 1) + 1)
        return result

    assert round(total(masked) / total({}), 2) == published


class Computed(nn.Module):
    """A layer whose weight is the result of a computation."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            nn.utils.weight_norm(self.layer)
        self.kept = None

    def forward(self, x):
        """Keep what was computed."""
        self.kept = self.layer(x)
        return self.kept


def test_after_a_forward_with_weights_that_are_computed():
    model = Computed()
    kept = model(torch.ones(1, 1, 5, 3))
    assert count_flops(model, (5, 3), 1).total == 2 * 5 * 3 * 4
    assert model.kept is kept and not model.layer.weight.is_leaf


def test_the_copy_takes_no_memory():
    class NoMemory(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            assert not isinstance(out, torch.Tensor) or out.is_meta, func
            return out

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with NoMemory():
        copy = on_meta(model)
    assert all(p.is_meta for p in [*copy.parameters(), *copy.buffers()])
    assert not any(p.is_meta for p in [*model.parameters()])


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    copy = on_meta(model)
    assert copy[0].weight is copy[1].weight


def test_a_shape_with_channels_is_refused():
    with pytest.raises(ValueError, match=r'not \(3, 32, 32\); channels'):
        count_flops(nn.Conv2d(3, 4, 3), (3, 32, 32))
