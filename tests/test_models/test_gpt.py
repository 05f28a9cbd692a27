"""GPT: values, widths, FLOPs by hand, initialization, sparse execution."""

import math

import pytest
import torch
from torch.nn import functional as F

from helpers.texts import SMALL
from sift_mm import SparseTraining
from sift_mm.engine.plan import MaskPlan
from sift_mm.errors import UserError
from sift_mm.flops import count_flops
from sift_mm.models import GPT
from sift_mm.models.gpt import IGNORED

GPT3 = dict(vocabulary=50257, context=2048, layers=12, d_model=768, heads=12)
WIDE = dict(family='wide', sparsity=0.75)
# Multiply-adds of a token at context 2048, by hand, d and f being the widths:
# 12 (4 d d + 2 d f) times the density, logits 50257 d, and attention
# 12 * 2 d times (2048 + 1) / 2, the mean number of keys up to a query.
DENSE = 84_934_656 + 38_597_376 + 18_883_584
NOMINAL = {
    0.5: (1092, 4368, 85_857_408 + 54_880_644 + 26_850_096),
    0.75: (1536, 6144, 84_934_656 + 77_194_752 + 37_767_168),
}


def gpt3(**member):
    with torch.device('meta'):
        return GPT(**GPT3, **member)


def small(seed=0, **kwargs):
    torch.manual_seed(seed)
    model = GPT(**(SMALL | kwargs))
    model.init_weights()
    return model.eval()


def text(batch=2, tokens=8):
    return torch.randint(SMALL['vocabulary'], (batch, tokens))


def test_dense_flops_by_hand():
    model = gpt3()
    assert count_flops(model, (2048,)).total == 2 * 2048 * DENSE
    # 12 blocks of 7,087,872, embeddings and the last norm: 125.2 M.
    assert sum(p.numel() for p in model.parameters()) == (
        12 * 7_087_872 + (50257 + 2048) * 768 + 2 * 768
    )


@pytest.mark.parametrize('sparsity', NOMINAL)
def test_widths_and_flops_of_sparse_wide_by_hand(sparsity):
    d_model, d_ff, nominal = NOMINAL[sparsity]
    model = gpt3(family='wide', sparsity=sparsity)
    assert (model.d_model, model.d_ff) == (d_model, d_ff)
    plan = MaskPlan(model)
    assert len(plan.parameters) == 72
    uniform = dict.fromkeys(plan.parameters, 1 - sparsity)
    assert plan.budget.cost(uniform) == 2 * 2048 * nominal
    assert plan.budget.dense == 2 * 2048 * DENSE
    # The masked matrices get the FLOPs that wider dense parts leave.
    matrices = 12 * (4 * d_model**2 + 2 * d_model * d_ff)
    others = nominal - matrices * (1 - sparsity)
    expected = 1 - (DENSE - others) / matrices
    assert plan.solved_sparsity == pytest.approx(expected, abs=1e-9)
    assert plan.ratio == pytest.approx(1, abs=1e-6)
    model.flops = 'nominal'
    assert MaskPlan(model).solved_sparsity == sparsity


def by_hand(model, ids):
    """Return the logits, with attention written out head by head."""
    weights = {n: p.double() for n, p in model.named_parameters()}
    width = model.d_model // SMALL['heads']

    def linear(x, name):
        return x @ weights[f'{name}.weight'].T + weights[f'{name}.bias']

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * weights[f'{name}.weight'] + weights[f'{name}.bias']

    x = weights['embedding.weight'][ids] + weights['positions.weight'][:8]
    for i in range(SMALL['layers']):
        h = norm(x, f'blocks.{i}.norm1')
        q, k, v = (linear(h, f'blocks.{i}.{name}') for name in 'qkv')
        heads = []
        for head in range(SMALL['heads']):
            part = slice(head * width, (head + 1) * width)
            scores = q[..., part] @ k[..., part].mT / math.sqrt(width)
            for row in range(8):
                scores[:, row, row + 1 :] = -math.inf
            heads.append(scores.softmax(-1) @ v[..., part])
        x = x + linear(torch.cat(heads, -1), f'blocks.{i}.out')
        h = linear(norm(x, f'blocks.{i}.norm2'), f'blocks.{i}.up')
        h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
        x = x + linear(h, f'blocks.{i}.down')
    return norm(x, 'norm') @ weights['embedding.weight'].T


@pytest.mark.parametrize('member', [{}, WIDE])
def test_values_and_causality(member, seed):
    model = small(torch.initial_seed() % 2**31, **member)
    for parameter in model.parameters():  # Biases and norms count, too.
        parameter.data.normal_(0, 0.2)
    ids = text()
    logits = model(ids)
    torch.testing.assert_close(
        logits, by_hand(model, ids).float(), rtol=1e-4, atol=1e-5
    )
    ids[:, 5] = (ids[:, 5] + 1) % SMALL['vocabulary']
    changed = (model(ids) != logits).any(-1).any(0)
    assert changed.tolist() == [False] * 5 + [True] * 3


def test_modes():
    model, ids = small(), text()
    targets = text()
    targets[0, :6] = IGNORED
    nats = -model(ids).log_softmax(-1)
    known = [[6, 7], range(8)]
    sums = [
        sum(float(nats[i, t, targets[i, t]]) for t in places)
        for i, places in enumerate(known)
    ]
    found = model(ids, targets, 'predict')
    assert [one['tokens'] for one in found] == [2, 8]
    assert [one['nats'] for one in found] == pytest.approx(sums, rel=1e-5)
    loss = model(ids, targets, 'loss')['loss']
    assert float(loss) == pytest.approx(sum(sums) / 10, rel=1e-5)
    with pytest.raises(UserError, match='context of this GPT is 8'):
        model(text(tokens=9))
    with pytest.raises(UserError, match="mode='loss' needs targets"):
        model(ids, mode='loss')


@pytest.mark.parametrize(
    'options, match',
    [
        (dict(heads=3), '3 heads do not divide d_model=16'),
        (dict(family='wide'), 'needs a sparsity'),
        (dict(layers=0), 'layers is a whole number'),
        (dict(sparsity=0.5), 'without a family'),
    ],
)
def test_wrong_arguments_are_refused(options, match):
    with pytest.raises(UserError, match=match):
        GPT(**(SMALL | options))


@pytest.mark.parametrize('family', ['parallel', 'factorized', 'doped'])
def test_other_members_replace_the_six_matrices(family):
    model = small(family=family, sparsity=0.5)
    plan = MaskPlan(model)
    owners = {'.'.join(name.split('.')[:3]) for name in plan.parameters}
    assert owners == {
        f'blocks.{i}.{name}'
        for i in range(2)
        for name in ('q', 'k', 'v', 'out', 'up', 'down')
    }
    assert plan.ratio == pytest.approx(1, abs=0.02)
    assert model.growth == 1
    assert isinstance(model(text()), torch.Tensor)


def test_initialization():
    model = small(layers=8, d_model=64, d_ff=256, **WIDE)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            expected = float('norm' in name and name.endswith('weight'))
            assert (parameter == expected).all()
            continue
        # Cut at two standard deviations, which leaves 0.8796 of one.
        std = 0.02 / 4 if name.split('.')[-2] in ('out', 'down') else 0.02
        assert parameter.abs().max() <= 2 * std
        tolerance = 4 / math.sqrt(parameter.numel())
        assert float(parameter.detach().std()) == pytest.approx(
            0.8796 * std, rel=tolerance
        ), name


def test_sparse_execution_is_the_dense_result():
    runs = []
    for execution in ('sparse', 'dense'):
        model = small(**WIDE).train()
        sparse = SparseTraining(
            model,
            torch.optim.AdamW(model.parameters(), 1e-3),
            steps=20,
            interval=2,
            end=1.0,
            sparsity=0.9,
            include=model.sparse_parameter_names(),
            execution=execution,
        )
        torch.manual_seed(1)
        for _ in range(6):
            model.zero_grad()
            model(text(), text(), 'loss')['loss'].backward()
            sparse.step()
        runs.append((model, sparse))
    (model, sparse), (other, dense) = runs
    products = 'forward 12, input gradient 12, weight gradient 12'
    assert products in sparse.trainer.execution.describe()
    for name, mask in sparse.masks.items():
        assert torch.equal(mask, dense.masks[name])
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('causal, scores', [(False, 5 * 5), (True, 15)])
def test_flops_of_causal_attention(causal, scores):
    class Attention(torch.nn.Module):
        def forward(self, ids):
            x = torch.empty(1, 2, ids.shape[1], 4, device='meta')
            return F.scaled_dot_product_attention(x, x, x, is_causal=causal)

    # Two products of two heads of width 4; T T or T (T + 1) / 2 scores.
    assert count_flops(Attention(), (5,)).total == 2 * 2 * 2 * 4 * scores
