"""Small parameters and networks under a MaskTrainer."""

import torch
from torch import nn
from torch.nn import functional as F

from sift_mm.sparsity import (
    Constant,
    Cosine,
    MaskSet,
    MaskTrainer,
    Random,
    RigL,
    SparseTraining,
    UpdateSchedule,
)

PLACEMENTS = ['after_step', 'replace_step']


OPTIMIZERS = {
    'sgd': lambda p: torch.optim.SGD(p, 0.1),
    'momentum': lambda p: torch.optim.SGD(
        p, 0.05, momentum=0.9, weight_decay=0.01
    ),
    'adamw': lambda p: torch.optim.AdamW(
        p, 0.01, weight_decay=0.1, amsgrad=True
    ),
}


def small(
    weight,
    mask,
    optimizer='sgd',
    algorithm=None,
    fraction=0.4,
    placement='after_step',
    interval=1,
):
    """Return a parameter, its optimizer and its trainer."""
    parameter = nn.Parameter(torch.tensor(weight))
    masks = MaskSet({'a': parameter}, {'a': torch.tensor(mask).bool()})
    masks.apply_()
    trainer = MaskTrainer(
        masks,
        algorithm or RigL(),
        UpdateSchedule(interval, 100),
        Constant(fraction),
        placement=placement,
    )
    return parameter, OPTIMIZERS[optimizer]([parameter]), trainer


def masked(model, algorithm='RigL', optimizer=None, **options):
    """Return the mask training of a model, by default of all its layers."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    usual = dict(steps=20, interval=2, sparsity=0.5, include=['*weight'])
    return SparseTraining(model, optimizer, algorithm, **(usual | options))


def mask_of(trainer, name='a'):
    return trainer.masks[name].int().tolist()


def state_tensors(optimizer, parameter):
    """Return the tensors that an optimizer keeps of a parameter."""
    return {
        k: v
        for k, v in optimizer.state[parameter].items()
        if isinstance(v, torch.Tensor)
    }


class Net(nn.Module):
    """Two convolutions and a classifier; the norm's statistics are state."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv2(self.norm(self.conv1(x)).relu())
        return self.fc(x.mean((2, 3)))


SPARSE = ['conv1.weight', 'conv2.weight', 'fc.weight']


class Run:
    """A training run whose data depend on the step number alone."""

    def __init__(
        self,
        optimizer='momentum',
        algorithm=None,
        seed=0,
        placement='after_step',
        interval=3,
        end=12,
        prepare=lambda model: model,
    ):
        torch.manual_seed(0)
        self.model = prepare(Net())
        parameters = dict(self.model.named_parameters())
        sparse = {name: parameters[name] for name in SPARSE}
        masks = MaskSet.draw(
            sparse,
            {n: p.numel() // 4 for n, p in sparse.items()},
            Random(),
            seed,
        )
        self.optimizer = OPTIMIZERS[optimizer](parameters.values())
        self.trainer = MaskTrainer(
            masks,
            algorithm or RigL(),
            UpdateSchedule(interval, end),
            Cosine(0.5),
            seed,
            placement,
        )
        self.trainer.enforce(self.optimizer)
        self.steps = 0

    def backward(self):
        generator = torch.Generator().manual_seed(self.steps)
        weight = self.model.conv1.weight
        images = torch.randn(4, 2, 6, 6, generator=generator).to(weight)
        labels = torch.randint(5, (4,), generator=generator).to(weight.device)
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(images).float(), labels).backward()

    def step(self):
        self.backward()
        self.steps += 1
        self.trainer.step(self.optimizer, self.optimizer.step)

    def masks(self):
        return {n: m.clone() for n, m in self.trainer.masks.items()}

    def check_outside_is_zero(self):
        """Check that weights and slots outside the masks are +0."""
        for name, mask in self.trainer.masks.items():
            parameter = self.trainer.masks.parameters[name]
            slots = state_tensors(self.optimizer, parameter).values()
            for tensor in [parameter.detach(), *slots]:
                if tensor.shape == mask.shape:
                    outside = tensor[~mask]
                    assert not outside.any() and not outside.signbit().any()

    def state(self):
        """Return all that equal runs share, bit for bit."""
        tensors = {f'model/{k}': v for k, v in self.model.state_dict().items()}
        tensors |= {f'mask/{k}': v for k, v in self.trainer.masks.items()}
        for name, parameter in self.model.named_parameters():
            tensors |= {
                f'slot/{name}/{k}': v
                for k, v in state_tensors(self.optimizer, parameter).items()
            }
        return {k: v.detach().clone() for k, v in tensors.items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
