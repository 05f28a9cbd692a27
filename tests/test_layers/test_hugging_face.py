"""Networks of Hugging Face: stand-ins, and the real ones where installed.

The real networks run where transformers can be imported, 4.57 or 5. MMPretrain
does not import beside 5, so that the project installs neither.
"""

import copy
import pickle

import pytest
import torch
from torch import nn

import sift_mm
from helpers.hugging_face import HAS_TRANSFORMERS, NETWORKS, Conv1D
from helpers.networks import put_dense
from sift_mm.deploy import to_sparse
from sift_mm.flops import count_flops, profile
from sift_mm.layers import Composite, NothingReplaced, Wide
from sift_mm.layers.wide import wide_type
from sift_mm.orientation import inputs_first

pytestmark = pytest.mark.usefixtures('seed')


def build(name):
    """Return a network with random weights, an input and its shape."""
    dense = NETWORKS[name][0]().eval()
    with torch.no_grad():
        for p in dense.parameters():
            p.normal_(0, 0.3)
    if name == 'ViT':
        return dense, torch.rand(2, 3, 32, 32), (32, 32)
    return dense, torch.randint(3, 40, (2, 16)), (16,)


@torch.no_grad()
def logits(model, x):
    out = model(x)
    return getattr(out, 'logits', out)


def dense_layers(model):
    return {
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) or inputs_first(layer)
    }


@pytest.mark.parametrize('name', NETWORKS)
def test_a_wide_network_of_zero_channels_is_the_dense_one(name):
    dense, x, shape = build(name)
    wide = copy.deepcopy(dense)
    report = sift_mm.transform(wide, 'wide', 0.75)
    blocks, parts = set(), set(NETWORKS[name][1].split())
    for layer, done in report.replaced.items():
        blocks.add(next(filter(str.isdigit, layer)))
        assert layer.rpartition('.')[2] in parts
        assert 'att' not in layer and done.flops_ratio == 1
    assert blocks == {'0', '1'}
    # Widths at equal FLOPs of both layers: 4 times at 0.75.
    densities = dict.fromkeys(report.sparse_parameters, 0.25)
    masked = profile(wide, shape, densities).total()
    assert masked.flops_sparse == profile(dense, shape).total().flops_dense
    assert masked.flops_sparse == count_flops(dense, shape).total
    put_dense(dense, wide)
    expected = logits(dense, x)
    torch.testing.assert_close(
        logits(wide, x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max()
    )


@pytest.mark.parametrize('name', NETWORKS)
def test_no_output_of_a_wide_decoder_depends_on_later_tokens(name):
    wide, x, _ = build(name)
    if name == 'ViT':
        pytest.skip('it reads images')
    sift_mm.transform(wide, 'wide', 0.75)
    later = x.clone()
    later[:, 12] = later[:, 12] % 30 + 5
    moved = (logits(wide, x) != logits(wide, later)).any(-1).any(0)
    assert moved.nonzero().min() == (12 if NETWORKS[name][2] else 0)


@pytest.mark.parametrize('name', NETWORKS)
def test_attention_is_not_widened_and_the_reason_is_said(name):
    model = build(name)[0]
    with pytest.raises(NothingReplaced) as caught:
        sift_mm.transform(model, 'wide', 0.75, include=['*att*'])
    reasons = caught.value.report.skipped
    assert all(reasons[layer] for layer in dense_layers(model))


@torch.no_grad()
def set_to(new, weight, bias):
    """Make a composite layer compute what a dense layer does."""
    for parameter in new.parameters():
        parameter.zero_()
    kind = type(new).__name__
    if kind == 'Parallel':
        last = new.layers[0]
        last.weight.copy_(weight)
    elif kind == 'Doped':
        last = new.sparse
        last.weight.copy_(weight)
    else:
        last, (d_out, d_in) = new.v, weight.shape
        u, v = (weight, torch.eye(d_out))
        if d_in < d_out:
            u, v = (torch.eye(d_in), weight)
        new.u.weight[: len(u)] = u
        new.v.weight[:, : v.shape[1]] = v
    if bias is not None:
        last.bias.copy_(bias)


@pytest.mark.parametrize('family', ['parallel', 'factorized', 'doped'])
@pytest.mark.parametrize('name', NETWORKS)
def test_the_other_members_replace_all_layers_but_the_head(name, family):
    dense, x, _ = build(name)
    # At 0.5 a rank could be smaller than both sides.
    new = copy.deepcopy(dense)
    report = sift_mm.transform(new, family, 0.75, example=x)
    heads = {'lm_head', 'embed_out', 'classifier', 'cls.predictions.decoder'}
    assert report.replaced.keys() == dense_layers(dense) - heads
    for layer in report.replaced:
        old, composite = dense.get_submodule(layer), new.get_submodule(layer)
        assert isinstance(composite, Composite)
        weight = old.weight.t() if inputs_first(old) else old.weight
        set_to(composite, weight, old.bias)
    expected = logits(dense, x)
    torch.testing.assert_close(
        logits(new, x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max()
    )


def test_a_wide_conv1d_stays_one():
    wide = NETWORKS['stand-in of GPT-2'][0]()
    sift_mm.transform(wide, 'wide', 0.5)
    layer = wide.h[0].mlp.c_fc
    assert isinstance(layer, Wide) and isinstance(layer, Conv1D)
    assert layer.weight.shape == (16, 128) and layer.nf == 128
    again = copy.deepcopy(wide)
    assert type(again.h[0].mlp.c_fc) is wide_type(Conv1D)
    # Keep the variance of masked inputs: half of 16 are read.
    assert layer.std == pytest.approx(0.02 * 2**0.5, rel=0.2)


@pytest.mark.parametrize('name', ['stand-in of GPT-2', 'GPT-2'])
def test_a_wide_gpt2_trains_and_runs_on_sparse_kernels(name):
    if name not in NETWORKS:
        pytest.skip('needs transformers')
    dense, x, _ = build(name)
    sift_mm.transform(dense, 'wide', 0.75)
    models = [dense, copy.deepcopy(dense)]
    for model, mode in zip(models, ('dense', 'sparse'), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        training = sift_mm.SparseTraining(
            model,
            optimizer,
            steps=20,
            sparsity=0.75,
            interval=2,
            execution=mode,
        )
        torch.manual_seed(1)
        for _ in range(6):
            optimizer.zero_grad()
            out = model.train()(x)
            loss = getattr(out, 'logits', out).logsumexp(-1).mean()
            loss.backward()
            training.step()
    assert '4 of 4 masked layers (forward 4, input' in training.execution
    expected, found = (logits(model.eval(), x) for model in models)
    close = dict(rtol=1e-3, atol=1e-3 * expected.abs().max())
    torch.testing.assert_close(found, expected, **close)
    sparse = to_sparse(models[1], training.masks, execution='sparse')
    assert len(sparse.sparse_report.sparse) == 4
    torch.testing.assert_close(logits(sparse, x), expected, **close)
    if HAS_TRANSFORMERS and name == 'GPT-2':  # Tokens from a cache.
        texts = [
            each.generate(x[:, :4], max_new_tokens=8, do_sample=False)
            for each in (models[1], sparse)
        ]
        assert torch.equal(*texts)


@pytest.mark.skipif(not HAS_TRANSFORMERS, reason='needs transformers')
def test_transformers_loads_a_wide_gpt2_and_pickle_restores_it():
    import transformers

    wide, x, _ = build('GPT-2')
    sift_mm.transform(wide, 'wide', 0.75)
    config = copy.deepcopy(wide.config)
    config.n_inner = 512
    plain = transformers.GPT2LMHeadModel(config).eval()
    plain.load_state_dict(wide.state_dict())
    expected = logits(wide, x)
    assert torch.equal(logits(plain, x), expected)
    assert torch.equal(logits(pickle.loads(pickle.dumps(wide)), x), expected)
