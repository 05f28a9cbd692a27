"""Optimizers that wrap others, and steps with a closure."""

import mmpretrain.engine.optimizers  # noqa: F401, registers its own
import pytest
import torch
from torch import nn

from helpers.mask_trainers import masked


class Accelerated(torch.optim.Optimizer):
    """As accelerate's: without Optimizer's own parts, but for properties."""

    def __init__(self, optimizer, device_placement=True):
        self.optimizer = optimizer

    state = property(lambda self: self.optimizer.state)
    param_groups = property(lambda self: self.optimizer.param_groups)
    defaults = property(lambda self: self.optimizer.defaults)

    def step(self, closure=None):
        self.optimizer.step(closure)


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation (Foret et al. 2021), of two passes."""

    def __init__(self, params, base_optimizer, rho=0.05, **kwargs):
        super().__init__(params, dict(rho=rho, **kwargs))
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        parameters = self.param_groups[0]['params']
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        for p in parameters:
            self.state[p]['old_p'] = p.clone()
            p.add_(p.grad, alpha=float(0.05 / norm))
        with torch.enable_grad():
            closure()
        for p in parameters:
            p.copy_(self.state[p]['old_p'])
        self.base_optimizer.step()


def loop(optimizer_of, closed, steps=7):
    """Train a layer by SparseTraining; return it, masks and reports."""
    torch.manual_seed(0)
    model = nn.Linear(12, 10)
    x, y = torch.randn(2, 20, 12), torch.randn(2, 20, 10)
    optimizer = optimizer_of(model.parameters())
    sparse = masked(model, optimizer=optimizer)
    reports = []
    for step in range(steps):

        def closure(i=step % 2):
            model.zero_grad()
            loss = (model(x[i]) - y[i]).square().mean()
            loss.backward()
            return loss

        if not closed:
            closure()
        reports.append(sparse.step(closure=closure if closed else None))
        mask = sparse.masks['weight']
        assert mask.sum() == 60 and not model.weight[~mask].any()
    return model, mask, [r.moved for r in reports if r], optimizer


def momentum(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


@pytest.mark.parametrize('closed', [True, False])
def test_a_wrapper_trains_as_what_it_wraps_does(closed):
    plain = loop(momentum, False)
    wrapped = loop(lambda p: Accelerated(momentum(p)), closed)
    assert torch.equal(plain[0].weight, wrapped[0].weight)
    assert torch.equal(plain[1], wrapped[1]) and plain[2] == wrapped[2]
    assert len(plain[2]) == 3 and any(plain[2])


def test_sam_stays_within_the_masks_in_both_passes():
    model, mask, moved, optimizer = loop(
        lambda p: SAM(p, torch.optim.SGD, lr=0.1, momentum=0.9), True
    )
    assert any(moved)
    outside = ~mask
    for each in (optimizer, optimizer.base_optimizer):
        for slot in each.state[model.weight].values():
            assert not slot[outside].any()
    # One step by hand: up along the masked gradient, down by the one there.
    torch.manual_seed(0)
    twin = nn.Linear(12, 10)
    optimizer = SAM(twin.parameters(), torch.optim.SGD, lr=0.1)
    sparse = masked(twin, 'Static', optimizer)
    x = torch.randn(5, 12)
    keep = sparse.masks['weight'].float(), torch.ones(10)

    def gradients(weights):
        weights = [w.detach().requires_grad_() for w in weights]
        loss = nn.functional.linear(x, *weights).square().mean()
        found = torch.autograd.grad(loss, weights)
        return [g * k for g, k in zip(found, keep, strict=True)]

    start = [twin.weight.detach().clone(), twin.bias.detach().clone()]
    first = gradients(start)
    norm = torch.sqrt(sum(g.square().sum() for g in first))
    second = gradients(
        [w + 0.05 * g / norm for w, g in zip(start, first, strict=True)]
    )

    def closure():
        twin.zero_grad()
        loss = twin(x).square().mean()
        loss.backward()
        return loss

    sparse.step(closure=closure)
    for after, w, g in zip(twin.parameters(), start, second, strict=True):
        torch.testing.assert_close(after.detach(), w - 0.1 * g)


def test_scaler_and_closure_together_are_refused():
    sparse = masked(nn.Linear(4, 4), 'Static')
    with pytest.raises(ValueError, match='GradScaler steps without a closure'):
        sparse.step(torch.amp.GradScaler('cpu'), closure=lambda: None)
