"""A small network in mask training, sparsely or densely executed."""

import torch
from torch import nn
from torch.nn import functional as F

from sift_mm.sparsity import SparseTraining

BATCH, SIZE = 4, 10


def network(seed=0):
    """Build strides, paddings, dilation, biases, 1 x 1 and linear layers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(6, 16, 3, padding='same', bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=(1, 2)),
        nn.ReLU(),
        nn.Conv2d(24, 24, (1, 3), padding=(0, 2), dilation=(1, 2)),
        nn.ReLU(),
        nn.Conv2d(24, 32, 1, padding='valid'),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 24),
        nn.ReLU(),
        nn.Linear(24, 4),
    )


def adamw(parameters):
    return torch.optim.AdamW(parameters, 1e-3)


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.02, momentum=0.9, weight_decay=1e-4)


def training(execution, model=None, optimizer=sgd, **kwargs):
    """Return a network with its optimizer and mask training."""
    if model is None:
        kwargs = dict(include=['*'], exclude=['12.*'], sparsity=0.75) | kwargs
    model = model or network(kwargs.get('seed', 0))
    optimizer = optimizer(model.parameters())
    kwargs = dict(steps=50, interval=5, end=1.0) | kwargs
    sparse = SparseTraining(model, optimizer, execution=execution, **kwargs)
    return model, optimizer, sparse


def batch(number):
    generator = torch.Generator().manual_seed(100 + number)
    images = torch.randn(BATCH, 6, SIZE, SIZE, generator=generator)
    return images, torch.randint(4, (BATCH,), generator=generator)


def run(parts, steps, accumulate=1):
    model, optimizer, sparse = parts
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        for part in range(accumulate):
            images, labels = batch(sparse.trainer.steps * accumulate + part)
            F.cross_entropy(model(images), labels).backward()
        sparse.step()
    return parts


def assert_alike(a, b, **close):
    for name, mask in a[2].masks.items():
        assert torch.equal(mask, b[2].masks[name]), name
        assert not a[2].masks.parameters[name].detach()[~mask].any(), name
    weights = dict(b[0].named_parameters())
    for name, weight in a[0].named_parameters():
        torch.testing.assert_close(weight, weights[name], **close)


def events(call):
    """Count the calls of each operator."""
    with torch.profiler.profile() as profile:
        call()
    return {event.key: event.count for event in profile.key_averages()}
