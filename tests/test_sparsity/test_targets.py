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
    # No norm, no bias, no embedding, and the shared head once.
    model = Model()
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


def test_a_pattern_that_matches_nothing_lists_what_there_is():
    with pytest.raises(ValueError, match=r"'neck\.\*' matches none") as e:
        select_parameters(Model(), include=['head.*', 'neck.*'])
    assert all(name in str(e.value) for name in WEIGHTS)


def test_an_exclusion_of_what_is_not_sparse_is_an_error():
    # The stem is dense already, so that the pattern is a mistake.
    with pytest.raises(ValueError, match='stem.* matches none') as e:
        select_parameters(Model(), exclude=['*.stem.*'])
    assert 'backbone.conv1.weight' in str(e.value)


def test_a_pattern_is_case_sensitive():
    with pytest.raises(ValueError, match='matches none'):
        select_parameters(Model(), include=['HEAD.*'])


@pytest.mark.parametrize(
    'kwargs', [dict(include='head.*'), dict(exclude='*.conv2.*')]
)
def test_a_string_in_place_of_a_list_is_refused(kwargs):
    pattern = next(iter(kwargs.values()))
    with pytest.raises(ValueError, match='take lists') as e:
        select_parameters(Model(), **kwargs)
    assert f'[{pattern!r}]' in str(e.value)


@pytest.mark.parametrize(
    'model, kwargs',
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3)), {}),
        (Model(), dict(exclude=['*'])),
        (Model(), dict(include=[])),
    ],
)
def test_nothing_selected_is_an_error(model, kwargs):
    with pytest.raises(ValueError, match='No parameter is selected.*include'):
        select_parameters(model, **kwargs)


def test_a_module_that_names_a_parameter_it_lacks_is_an_error():
    # Left out without a word, the layer would be trained dense.
    model = Model()
    model.backbone.sparse_parameter_names = lambda: [
        'conv1.weight',
        'conv3.weight',
    ]
    with pytest.raises(ValueError, match=r'backbone\.conv3\.weight'):
        select_parameters(model)


def test_no_layer_to_be_sparse_in_the_whole_model():
    with pytest.raises(ValueError, match='No parameter is selected'):
        select_parameters(nn.BatchNorm2d(3))
