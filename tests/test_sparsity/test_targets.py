import pytest
from torch import nn

from sift_mm.sparsity import select_parameters, sparsifiable_parameters


class Backbone(nn.Module):
    """A network that says what of it is sparse, as SparseIFTResNet does."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 4, 3)
        self.conv2 = nn.ConvTranspose2d(4, 4, 3)

    def sparse_parameter_names(self):
        return ['conv1.weight', 'conv2.weight']


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 2)
        self.again = self.head


WEIGHTS = [
    'backbone.stem.weight',
    'backbone.conv1.weight',
    'backbone.conv2.weight',
    'head.weight',
]


def test_weights_of_convolutions_and_linear_layers_in_order():
    # No norm, no bias, no embedding, no weight without elements, and the
    # shared head once.
    model = Model()
    model.none = nn.Linear(0, 5)
    found = sparsifiable_parameters(model)
    assert list(found) == WEIGHTS
    assert found['head.weight'] is model.head.weight


@pytest.mark.parametrize(
    'include, exclude, expected',
    [
        (None, [], WEIGHTS[1:3]),
        (None, ['*.conv2.*'], WEIGHTS[1:2]),
        (['*'], [], WEIGHTS),
        (['head.*', 'backbone.stem.weight'], [], [WEIGHTS[0], WEIGHTS[3]]),
        (('*',), ('*.conv?.*', '*.stem.*'), [WEIGHTS[3]]),
        (['*[mv]?.weight'], [], WEIGHTS[1:3]),
    ],
)
def test_selection(include, exclude, expected):
    assert list(select_parameters(Model(), include, exclude)) == expected


def test_a_bare_backbone_needs_no_prefix():
    assert list(select_parameters(Backbone())) == [
        'conv1.weight',
        'conv2.weight',
    ]


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (
            dict(include=['head.*', 'neck.*']),
            r"'neck\.\*' matches none.*: " + ', '.join(WEIGHTS),
        ),
        (dict(include=['HEAD.*']), 'matches none'),
        # The stem is dense already, so that the pattern is a mistake.
        (
            dict(exclude=['*.stem.*']),
            r'stem.* matches none.*: backbone\.conv1\.weight',
        ),
        (dict(include='head.*'), r"take lists .*write \['head\.\*'\]"),
        (dict(exclude='*.conv2.*'), r"take lists .*write \['\*\.conv2"),
        (dict(exclude=['*']), 'No parameter is selected.*include'),
        (dict(include=[]), 'No parameter is selected.*include'),
        (
            dict(model=nn.Sequential(nn.Conv2d(3, 4, 3))),
            'No parameter is selected.*include',
        ),
        (dict(model=nn.BatchNorm2d(3)), 'No parameter is selected'),
    ],
)
def test_mistakes_get_a_sentence(kwargs, words):
    with pytest.raises(ValueError, match=words):
        select_parameters(**dict(model=Model()) | kwargs)


def test_a_module_that_names_a_parameter_it_lacks_is_an_error():
    # Left out without a word, the layer would be trained dense.
    model = Model()
    model.backbone.sparse_parameter_names = lambda: [
        'conv1.weight',
        'conv3.weight',
    ]
    with pytest.raises(ValueError, match=r'backbone\.conv3\.weight'):
        select_parameters(model)
