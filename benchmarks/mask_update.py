"""Cost of a mask update, in multiples of one read of its data.

ResNet-18 Sparse Wide in plain PyTorch, SGD with momentum. One read sums
weights and gradients of the masked layers and counts the masks. An update is a
step without the optimizer's work: mask gradients, change masks, clear dropped
weights and momentum. The row "topk alone" is PyTorch's topk for drop and
growth. Variants take turns, each after a read; figures are medians and
quartiles of the ratios within a turn.

    python benchmarks/mask_update.py [--sparsities 0.75 0.9] [--rounds 15]
"""

import argparse
import statistics
from collections.abc import Callable
from math import sqrt

import torch
from masked_step import CPU, Bench, timed  # type: ignore[import-not-found]
from torch import Tensor

DROPPED = 0.3


def read(bench: Bench) -> None:
    """Read weights, gradients and masks once."""
    for weight, gradient, mask in layers(bench):
        weight.sum(), gradient.sum(), mask.count_nonzero()


def topk(bench: Bench) -> None:
    """Select the weights to drop and to grow by PyTorch's topk."""
    for weight, gradient, mask in layers(bench):
        k = int(DROPPED * int(mask.count_nonzero()))
        for score, barred in ((-weight.abs(), ~mask), (gradient.abs(), mask)):
            masked = score.masked_fill_(barred, -torch.inf).flatten()
            masked.topk(k, sorted=False)


def layers(bench: Bench) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return weight, gradient and mask of each masked layer."""
    weights = [p.detach() for p in bench.masks.parameters.values()]
    return list(
        zip(weights, bench.gradients(), bench.masks.values(), strict=True)
    )


def measure(sparsity: float, rounds: int) -> dict[str, list[float]]:
    """Return the ratios to one read, by variant."""
    bench = Bench(2, 64, int(64 / sqrt(1 - sparsity)), CPU, sparsity)
    kinds: dict[str, Callable[[], object]] = {
        'RigL': lambda: bench.update('RigL'),
        'SET': lambda: bench.update('SET'),
        'topk alone': lambda: topk(bench),
    }
    ratios: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(rounds + 1):
        for name, run in kinds.items():
            bench.train()
            unit = timed(lambda: read(bench))
            seconds = timed(run)
            if turn:  # the first warms up
                ratios[name].append(seconds / unit)
    return ratios


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--sparsities', type=float, nargs='+', default=[0.75, 0.9]
    )
    parser.add_argument('--rounds', type=int, default=15)
    args = parser.parse_args()
    print(f'torch {torch.__version__}, threads {torch.get_num_threads()}')
    print(f'{"Wide":6}{"":14}{"x one read":>10}  quartiles')
    for sparsity in args.sparsities:
        for name, ratios in measure(sparsity, args.rounds).items():
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(
                f'{sparsity:<6}{name:14}{middle:10.1f}'
                f'  {low:.1f} to {high:.1f}'
            )


if __name__ == '__main__':
    main()
