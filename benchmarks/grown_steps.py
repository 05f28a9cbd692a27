"""What bounded steps of grown weights do to accuracy.

A sparse MLP at sparsity 0.9, RigL and AdamW, learns the classes that a random
teacher gives to random vectors; the same network dense, for scale. All
variants of a seed see the same data in the same order.

    python benchmarks/grown_steps.py [--seeds 10] [--lr 0.003]
"""

import argparse
import statistics

import torch
from torch import nn
from torch.nn import functional as F

from sift_mm.sparsity import SparseTraining
from sift_mm.sparsity.grown import GrownSteps

INPUTS, WIDTH, CLASSES = 64, 256, 10
TRAIN, TEST, BATCH, STEPS = 8192, 8192, 128, 2000
INTERVAL = 50


def mlp(width: int, depth: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    sizes = [INPUTS] + [width] * depth
    layers: list[nn.Module] = []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def accuracy(grown_steps: GrownSteps | None, seed: int, lr: float) -> float:
    """Percent right of new vectors, after a run; None is dense."""
    torch.manual_seed(seed)
    with torch.no_grad():
        inputs = torch.randn(TRAIN + TEST, INPUTS)
        logits = mlp(32, 1)(inputs)
        # Classes as often as each other, more or less.
        labels = ((logits - logits.mean(0)) / logits.std(0)).argmax(1)
    model = mlp(WIDTH, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    sparse = None
    if grown_steps is not None:
        sparse = SparseTraining(
            model,
            optimizer,
            steps=STEPS,
            sparsity=0.9,
            interval=INTERVAL,
            include=['[024].weight'],
            seed=seed,
            execution='dense',
            grown_steps=grown_steps,
        )
    for _ in range(STEPS):
        chosen = torch.randint(TRAIN, (BATCH,))
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[chosen]), labels[chosen]).backward()
        if sparse is None:
            optimizer.step()
        else:
            sparse.step()
        decay.step()
    with torch.no_grad():
        right = model(inputs[TRAIN:]).argmax(1) == labels[TRAIN:]
    return 100 * float(right.float().mean())


def main() -> None:
    """Print means and standard deviations over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, default=10)
    parser.add_argument('--lr', type=float, default=0.003)
    args = parser.parse_args()
    variants: dict[str, GrownSteps | None]
    variants = dict(free='free', bounded='bounded', dense=None)
    found = {
        name: [accuracy(variant, s, args.lr) for s in range(args.seeds)]
        for name, variant in variants.items()
    }
    for variant, values in found.items():
        print(
            f'{variant:8} {statistics.mean(values):.2f} '
            f'+- {statistics.stdev(values):.2f}'
        )
    gains = [
        b - a for a, b in zip(found['free'], found['bounded'], strict=True)
    ]
    print(
        f'bounded - free, seed by seed: {statistics.mean(gains):+.2f} '
        f'+- {statistics.stdev(gains) / len(gains) ** 0.5:.2f} (its error)'
    )


if __name__ == '__main__':
    main()
