"""Cost of masks in a training step, and cost of a mask update.

ResNet-18 Sparse Wide 0.75 (base width 128, 44.7 M masked weights) in plain
PyTorch, SGD with momentum. Variants run in one process and take turns, so that
other load affects all of them; figures are medians over the rounds, of times
or of ratios within a round.

    python benchmarks/masked_step.py [--rounds 15] [--batch 8] [--size 224]
        [--structure Block]

An update is measured without the optimizer's step. "One read" sums weights and
gradients and counts the masks; "topk" selects the weights to drop and to grow.

Targets: a masked step takes at most 1.02 times an unmasked step, an update
less than an unmasked step.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, ResNet

from sift_mm.kernels import keep_freed_memory
from sift_mm.sparsity import (
    SET,
    STRUCTURES,
    Constant,
    MaskSet,
    MaskTrainer,
    Random,
    RigL,
    Structure,
    Uniform,
    UpdateSchedule,
    apply_masks_,
    select_parameters,
)

SPARSITY = 0.75
DROPPED = 0.3
CPU = torch.device('cpu')


def build_model(width: int) -> ResNet:
    """Build a ResNet-18 with ``width`` channels in its first stage."""
    # torchvision has no argument for the width, so stages are rebuilt.
    model = ResNet(BasicBlock, [2, 2, 2, 2])
    model.inplanes = width
    model.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
    model.bn1 = nn.BatchNorm2d(width)
    for i in range(4):
        stage = model._make_layer(
            BasicBlock, width * 2**i, 2, stride=1 if i == 0 else 2
        )
        setattr(model, f'layer{i + 1}', stage)
    model.fc = nn.Linear(width * 8, 1000)
    return model


def timed(function: Callable[[], object], device: torch.device = CPU) -> float:
    """Return the seconds of a function, with synchronized device."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


class Bench:
    """Variants of a training step on one model.

    Args:
        batch: Number of images.
        size: Height and width of images.
        width: Channels of the first stage.
        device: Device of model and images.
        structure: Structure of the masks.
    """

    def __init__(
        self,
        batch: int,
        size: int,
        width: int,
        device: torch.device,
        structure: Structure,
    ) -> None:
        torch.manual_seed(0)
        self.model = build_model(width).to(device)
        self.images = torch.randn(batch, 3, size, size, device=device)
        self.labels = torch.randint(1000, (batch,), device=device)
        parameters = select_parameters(
            self.model, include=['layer*.conv*', 'layer*.downsample.0.*']
        )
        counts = Uniform().counts(
            {n: tuple(p.shape) for n, p in parameters.items()}, SPARSITY
        )
        structures = dict.fromkeys(parameters, structure)
        self.masks = MaskSet.draw(parameters, counts, Random(), 0, structures)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4
        )
        self.trainers = {
            kind.__name__: MaskTrainer(
                self.masks,
                kind(structure),
                UpdateSchedule(1, 10**9),
                Constant(DROPPED),
            )
            for kind in (SET, RigL)
        }
        self.between = MaskTrainer(self.masks, RigL(), None, Constant(DROPPED))
        self.float_masks = [m.float() for m in self.masks.values()]
        # Momentum exists from the first step on.
        self.unmasked()
        self.between.enforce(self.optimizer)
        self.backward()
        self.dense = [g.clone() for g in self.gradients()]

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the masked weights."""
        return [
            p.grad
            for p in self.masks.parameters.values()
            if p.grad is not None
        ]

    def backward(self) -> None:
        """Compute the gradients of the batch."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.images), self.labels).backward()

    def restore(self) -> None:
        """Restore sparse weights and dense gradients."""
        self.between.enforce(self.optimizer)
        torch._foreach_copy_(self.gradients(), self.dense)

    def unmasked(self) -> None:
        """Take a step without masks."""
        self.backward()
        self.optimizer.step()

    def masked(self) -> None:
        """Take a masked step between two updates."""
        self.backward()
        self.between.step(self.optimizer, self.optimizer.step)

    def update(self, name: str) -> None:
        """Update masks without the optimizer's step."""
        self.trainers[name].step(self.optimizer, lambda: None)

    def layers(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return weight, gradient and mask of each masked layer."""
        weights = [p.detach() for p in self.masks.parameters.values()]
        return list(
            zip(weights, self.gradients(), self.masks.values(), strict=True)
        )

    def read(self) -> None:
        """Read weights, gradients and masks once."""
        for weight, gradient, mask in self.layers():
            weight.sum(), gradient.sum(), mask.count_nonzero()

    def topk(self) -> None:
        """Select the weights to drop and to grow by PyTorch's topk."""
        for weight, gradient, mask in self.layers():
            k = int(DROPPED * int(mask.count_nonzero()))
            scores = (-weight.abs(), ~mask), (gradient.abs(), mask)
            for score, barred in scores:
                masked = score.masked_fill_(barred, -torch.inf).flatten()
                masked.topk(k, sorted=False)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--structure', default='Unstructured')
    args = parser.parse_args()
    keep_freed_memory()
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    structure = STRUCTURES.build(args.structure)
    bench = Bench(args.batch, args.size, 128, device, structure)
    masks = list(bench.masks.values())
    variants: dict[str, Callable[[], object]] = {
        'unmasked step': bench.unmasked,
        'masked step': bench.masked,
        'gradients: apply_masks_': lambda: apply_masks_(
            bench.gradients(), masks
        ),
        'gradients: foreach mul, bool': lambda: torch._foreach_mul_(
            bench.gradients(), masks
        ),
        'gradients: foreach mul, float': lambda: torch._foreach_mul_(
            bench.gradients(), bench.float_masks
        ),
        'one read of weights and masks': bench.read,
        'topk alone': bench.topk,
        'mask update, SET': lambda: bench.update('SET'),
        'mask update, RigL': lambda: bench.update('RigL'),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    order = list(variants)
    for i in range(args.rounds + 1):
        # Alternating order: no variant always follows the same one.
        for name in order if i % 2 else order[::-1]:
            bench.restore()
            seconds = timed(variants[name], device)
            if i:  # the first round warms up
                times[name].append(seconds)

    weights = sum(m.numel() for m in masks)
    where = (
        torch.cuda.get_device_name(device)
        if device.type == 'cuda'
        else f'CPU, {torch.get_num_threads()} threads'
    )
    print(
        f'{where}, torch {torch.__version__}, {weights / 1e6:.1f} M masked '
        f'weights, batch {args.batch}, {args.size} px, median of '
        f'{args.rounds} rounds'
    )
    print(f'{"":32}{"ms":>9}{"x unmasked step":>18}{"  quartiles"}')
    for name, values in times.items():
        ratios = [
            v / u for v, u in zip(values, times['unmasked step'], strict=True)
        ]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f'{name:32}{1e3 * statistics.median(values):9.1f}'
            f'{middle:18.3f}  {low:.3f} to {high:.3f}'
        )


if __name__ == '__main__':
    main()
