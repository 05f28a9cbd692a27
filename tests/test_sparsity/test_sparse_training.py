import copy
import warnings

import pytest
import torch
from torch import nn

import sift_mm
from helpers.mask_trainers import masked
from sift_mm.sparsity import SparseTraining


def network(family=None, sparsity=0.75, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Flatten(),
        nn.Linear(16 * 16, 4),
    )
    if family:
        sift_mm.transform(model, family, sparsity, include=['0', '2'])
    return model


def training(model=None, optimizer=None, **kwargs):
    model = model or network('parallel')
    optimizer = optimizer or torch.optim.SGD(
        model.parameters(), 0.05, momentum=0.9
    )
    kwargs = dict(steps=20, interval=2) | kwargs
    return model, optimizer, SparseTraining(model, optimizer, **kwargs)


def backward(model, seed, scaler=None):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 8, 4, 4, generator=generator)
    for parameter in model.parameters():
        parameter.grad = None
    loss = nn.functional.cross_entropy(model(images), torch.arange(4))
    (scaler.scale(loss) if scaler else loss).backward()


def run(parts, steps, scaler=None, clip=None):
    model, _, sparse = parts
    for _ in range(steps):
        backward(model, sparse.trainer.steps, scaler)
        sparse.step(scaler, clip)


def test_a_loss_scaler_changes_nothing_but_skips_what_overflows():
    plain, scaled = training(), training()
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    run(plain, 4, clip=0.1)
    run(scaled, 4, scaler, clip=0.1)
    for a, b in zip(
        plain[0].parameters(), scaled[0].parameters(), strict=True
    ):
        torch.testing.assert_close(a, b)
    before = copy.deepcopy(scaled[2].state_dict()['masks'])
    run(scaled, 1, scaler)
    backward(scaled[0], 0, scaler)
    scaled[0][4].bias.grad[0] = float('inf')
    report = scaled[2].step(scaler)
    assert report.skipped == 'a gradient was not finite'
    assert scaler.get_scale() == 512.0
    for name, mask in scaled[2].masks.items():
        assert torch.equal(mask, before[name])


def test_masks_before_weights_are_refused():
    # The first masks of the new object have cut what was loaded before it.
    saved = training()
    model = network('parallel')
    model.load_state_dict(saved[0].state_dict())
    _, _, sparse = training(model)
    with pytest.raises(ValueError, match='then load the network'):
        sparse.load_state_dict(saved[2].state_dict())


def test_an_optimizer_from_before_the_transform_is_refused():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sift_mm.transform(model, 'parallel', 0.75, include=['0'])
    with pytest.raises(ValueError, match='does not hold 0.*after sift_mm.tra'):
        training(model, optimizer)


def test_a_step_past_the_masks_is_refused():
    parts = model, optimizer, sparse = training()
    run(parts, 1)
    backward(model, 0)
    with pytest.raises(RuntimeError, match='in its place'):
        optimizer.step()
    run(parts, 1)
    # Whoever goes on without masks may.
    del parts, sparse
    optimizer.step()


@pytest.mark.parametrize(
    'family, kwargs, words',
    [
        ('parallel', dict(sparsity=0.5), 'sparsity=0.75 and .* Write it once'),
        (None, dict(include=['0.*']), 'No sparsity is given'),
        ('parallel', dict(interval=50), 'never be updated'),
    ],
)
def test_mistakes(family, kwargs, words):
    with pytest.raises(ValueError, match=words):
        training(network(family), **kwargs)


@pytest.mark.parametrize('kwargs', [dict(interval=15), dict(drop_fraction=0)])
def test_updates_that_move_nothing_are_told(kwargs):
    with pytest.warns(UserWarning, match='Masks will never change: the first'):
        training(**kwargs)


def test_complex_parameters_beside_masks():
    model = nn.Linear(4, 4)
    model.scale = nn.Parameter(torch.ones(4, dtype=torch.complex64))
    sparse = masked(model)
    for overflow in (0.0, float('inf')):
        for _ in range(2):
            model.weight.grad = torch.ones(4, 4)
            model.scale.grad = torch.full((4,), 1j + overflow)
            report = sparse.step()
        assert bool(report.skipped) == bool(overflow)


def test_an_explicit_distribution_needs_no_sparsity():
    share = dict(type='Explicit', sparsities={'0.weight': 0.5})
    _, _, sparse = training(
        network(), include=['0.weight'], distribution=share
    )
    assert sparse.density == 0.5


def test_a_distribution_that_misses_the_density_is_told():
    share = dict(type='Explicit', sparsities={'*': 0.5})
    with pytest.warns(UserWarning, match='density 0.5000 .* built for 0.2500'):
        training(distribution=share)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        training(distribution='ERK')


def test_a_resume_says_what_it_changes_and_refuses_another_sparsity():
    saved = training()
    run(saved, 2)
    model = network('parallel')
    other = training(
        model,
        torch.optim.Adam(model.parameters()),
        algorithm='SET',
        interval=5,
        end=1.0,
        drop_fraction=0.1,
        execution='dense',
    )
    run(other, 1)
    with pytest.warns(UserWarning) as found:
        other[2].load_state_dict(saved[2].state_dict())
    cosine = "{{'type': 'Cosine', 'initial': {}}}".format
    assert [str(w.message) for w in found] == [
        f'The saved run had {key}={old}; it goes on with {new}.'
        for key, old, new in [
            ('algorithm', "'RigL'", "'SET'"),
            ('interval', 2, 5),
            ('end', 15, 20),
            ('drop_fraction', cosine(0.3), cosine(0.1)),
            ('execution', "'auto'", "'dense'"),
        ]
    ]
    plain = network()
    kwargs = dict(include=['0.*', '2.*'])
    half = training(plain, sparsity=0.5, **kwargs)
    state = half[2].state_dict()
    del half
    dense = training(network(), sparsity=0.9, **kwargs)
    run(dense, 1)
    with pytest.raises(ValueError, match="'0.weight' has 576 active"):
        dense[2].load_state_dict(state)
