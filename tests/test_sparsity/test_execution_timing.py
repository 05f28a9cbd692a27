"""The choice of execution='auto' by timed products."""

import copy
import io

import pytest
import torch
from torch import nn

from helpers.masked_training import (
    BATCH,
    SIZE,
    assert_alike,
    events,
    run,
    training,
)
from sift_mm.kernels import (
    masked_layers,
)
from sift_mm.kernels import timing as clock


def set_clock(monkeypatch, dense, sparse):
    """Replace the timing of products by given seconds."""
    taken = []

    def told(x, *_):
        taken.append(tuple(x.shape))
        return clock.Timing(dense, sparse)

    monkeypatch.setattr(masked_layers, 'time_products', told)
    monkeypatch.setattr(masked_layers, 'SMALLEST', 0)
    return taken


def test_auto_takes_what_the_clock_says_product_by_product(monkeypatch, calls):
    # The last one is faster by less than the margin.
    taken = set_clock(monkeypatch, (1.0, 1.0, 1.0), (0.5, 2.0, 0.97))
    parts = run(training('auto'), 1)
    assert len(taken) == 5 and not calls  # A step is over first.
    run(parts, 4)
    assert len(taken) == 5
    assert set(calls) == {(True, False, False)}
    text = parts[2].execution
    assert '5 of 5 masked layers (forward 5, input gradient 0,' in text
    assert '2.5 s less a step than dense (12.5 in place of 15 s)' in text
    assert_alike(parts, run(training('dense'), 5), rtol=1e-3, atol=1e-5)
    # Larger images by a factor of four are another matter, once.
    model, optimizer, sparse = parts
    for _ in range(2):
        images = torch.zeros(BATCH, 6, 2 * SIZE, 2 * SIZE)
        optimizer.zero_grad()
        model(images).sum().backward()
        sparse.step()
    assert len(taken) == 9  # The linear layer sees as many rows as before.


def test_timing_disturbs_nothing(monkeypatch):
    def timed_but_dense(*args):
        clock.time_products(*args)
        return clock.Timing((1.0,) * 3, (1.0,) * 3)

    monkeypatch.setattr(masked_layers, 'time_products', timed_but_dense)
    monkeypatch.setattr(masked_layers, 'SMALLEST', 0)
    state = torch.get_rng_state()
    auto = training('auto')
    torch.set_rng_state(state)
    run(auto, 5)
    assert torch.equal(state, torch.get_rng_state())
    assert_alike(auto, run(training('dense'), 5), rtol=0, atol=0)


def test_tiny_layers_are_not_timed_and_stay_dense(monkeypatch):
    monkeypatch.setattr(masked_layers, 'time_products', None)
    parts = run(training('auto'), 3)
    assert '0 of 5 masked layers; dense: 5 faster dense' in parts[2].execution
    assert_alike(parts, run(training('dense'), 3), rtol=0, atol=0)


def test_deterministic_algorithms_and_a_clock_do_not_go_together():
    torch.use_deterministic_algorithms(True)
    try:
        text = training('auto')[2].execution
    finally:
        torch.use_deterministic_algorithms(False)
    assert '5 because deterministic algorithms exclude timings' in text


@pytest.mark.parametrize('mode', ['auto', 'sparse'])
def test_a_resumed_run_ends_bit_for_bit_the_same(monkeypatch, mode):
    set_clock(monkeypatch, (1.0, 1.0, 1.0), (0.5, 2.0, 0.5))
    whole = run(training(mode), 7)
    states = io.BytesIO()
    torch.save([part.state_dict() for part in whole], states)
    states.seek(0)
    run(whole, 8)
    # By now the clock says something else.
    set_clock(monkeypatch, (1.0, 1.0, 1.0), (2.0, 0.5, 2.0))
    resumed = training(mode, seed=7)
    for part, state in zip(
        resumed, torch.load(states, weights_only=True), strict=True
    ):
        part.load_state_dict(state)
    run(resumed, 8)
    assert_alike(resumed, whole, rtol=0, atol=0)


def test_products_are_timed_again_when_the_density_has_halved(monkeypatch):
    # Densities at steps 0, 5, ...: 1, 0.64, 0.41, 0.30, 0.26, 0.25; below
    # 1 / 2 they are timed anew, and at most 1 / 4 just so.
    taken = set_clock(monkeypatch, (1.0, 1.0, 1.0), (2.0, 2.0, 2.0))
    options = dict(algorithm='GMP', steps=25)
    parts = run(training('auto', **options), 8)
    assert len(taken) == 5 and '5 faster dense' in parts[2].execution
    state = copy.deepcopy([part.state_dict() for part in parts])
    set_clock(monkeypatch, (1.0, 1.0, 1.0), (0.5, 0.5, 0.5))
    resumed = training('auto', seed=7, **options)
    for part, saved in zip(resumed, state, strict=True):
        part.load_state_dict(saved)
    for each in (parts, resumed):
        run(each, 16)
        assert 'forward 5, input gradient 5' in each[2].execution
    assert_alike(parts, resumed, rtol=0, atol=0)
    dense = run(training('dense', **options), 24)
    assert_alike(parts, dense, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('algorithm', ['SNFS', 'GraNet', 'MEST', 'GMP'])
def test_rules_train_the_same_masks_on_sparse_kernels(algorithm, calls):
    sparse = run(training('sparse', algorithm=algorithm), 11)
    assert_alike(
        sparse,
        run(training('dense', algorithm=algorithm), 11),
        rtol=1e-3,
        atol=1e-4,
    )
    # The weight gradient is dense where it is read, and nowhere else.
    dense = [not choice[2] for choice in calls]
    layers = len(dense) // 11
    steps = [any(dense[i * layers : (i + 1) * layers]) for i in range(11)]
    expected = dict(SNFS=range(1, 12), GraNet=(5, 10)).get(algorithm, ())
    assert steps == [number in expected for number in range(1, 12)]


@pytest.mark.parametrize('mode', ['sparse', 'auto'])
def test_a_convolution_of_images_is_run_like_the_masked(monkeypatch, mode):
    taken = set_clock(monkeypatch, (1.0, 1.0, 1.0), (0.5, 2.0, 0.5))

    def trained(mode):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 7, 2, 3, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3),
            nn.Conv2d(8, 8, 3),
        )
        kwargs = dict(include=['2.weight'], sparsity=0.75, interval=2)
        model, optimizer, sparse = training(mode, model, **kwargs)
        torch.manual_seed(1)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(2, 3, 256, 256)).square().mean().backward()
            sparse.step()
        return model, optimizer, sparse

    parts = trained(mode)
    model, _, sparse = parts
    assert_alike(parts, trained('dense'), rtol=1e-3, atol=1e-5)
    assert ', and 0, a convolution of images' in sparse.execution
    assert '1 of 1 masked layers (forward 1,' in sparse.execution
    found = events(lambda: model(torch.randn(2, 3, 256, 256)).sum().backward())
    # The third is neither masked nor of images.
    assert found['sift_mm::sparse_conv2d'] == 2
    assert found['aten::_convolution'] == 1
    # RigL reads the other's in this step.
    assert found['sift_mm::sparse_conv2d_weight_grad'] == 1
    if mode == 'auto':
        assert len(taken) == 2
        choices = sparse.trainer.execution.choices()
        assert {'0', '2'} == choices.keys()
