"""Masks of a seed stay those of earlier releases, bit for bit.

The digests are of the release that selected by C++ passes and samples. All
numbers are exact in every type, so that no rounding depends on the machine.
"""

import itertools
import zlib

import pytest
import torch
from torch import nn

from sift_mm.sparsity import (
    ALGORITHMS,
    INITIALIZERS,
    Constant,
    MaskSet,
    MaskTrainer,
    UpdateSchedule,
    generator_for,
)

SHAPES = {
    'vector': (40,),
    'linear': (8, 9),
    'conv': (6, 4, 3, 3),
    # Above 2^17 weights the earlier release took a sample.
    'large': (300, 1, 21, 23),
}
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
CASES = [
    *itertools.product(
        ['Static', 'SET', 'RigL'],
        ['Random', 'TopK', 'FromWeights'],
        ['after_step', 'replace_step'],
        [0, 1],
    )
]


def numbers(shape, key, levels):
    """Return multiples of 1/16 with many ties, or of 2^-18 without."""
    generator = generator_for(7, levels, key)
    n = torch.Size(shape).numel()
    if levels:
        values = torch.randint(-levels, levels + 1, (n,), generator=generator)
        return values.view(shape) / 16
    return (torch.randperm(n, generator=generator) - n // 2).view(shape) / (
        1 << 18
    )


def digest(algorithm, init, placement, seed):
    """Return the CRC-32 of all masks of three updates."""
    found = 0
    for (name, shape), dtype, levels in itertools.product(
        SHAPES.items(), TYPES, [0, 3, 40]
    ):
        if name == 'large' and dtype != torch.float32:
            continue
        weight = numbers(shape, 'weight', levels).to(dtype)
        if init == 'FromWeights':
            weight[numbers(shape, 'cut', 0) > 0] = 0
            weight[numbers(shape, 'cut', 0) <= 0] += 8
        parameter = nn.Parameter(weight)
        n = weight.numel()
        count = int((weight != 0).sum()) if init == 'FromWeights' else n // 3
        masks = MaskSet.draw(
            {name: parameter}, {name: count}, INITIALIZERS.build(init), seed
        )
        trainer = MaskTrainer(
            masks,
            ALGORITHMS.build(algorithm),
            UpdateSchedule(1, 9),
            Constant(0.3),
            seed,
            placement,
        )
        optimizer = torch.optim.SGD([parameter], 0.125)
        parameter.data.mul_(masks[name])
        for step in range(3):
            gradient = numbers(shape, f'gradient {step}', levels).to(dtype)
            parameter.grad = gradient
            trainer.step(optimizer, optimizer.step)
            found = zlib.crc32(masks[name].numpy().tobytes(), found)
    return f'{found:08x}'


DIGESTS = """
a2f376f7 c56d6594 a2f376f7 c56d6594 9dffd9e9 9dffd9e9 9dffd9e9
9dffd9e9 e115295c e115295c e115295c e115295c d48a01a3 9f5a9a5d
88ac02e0 612a63a5 26d0ab31 c2644de3 3c6250f2 e1c368ff 91bf8002
4cda4817 99f1590e fbc6b6a0 75022ae3 46b07727 0b943fce 5016dcb9
1fde353d 1fde353d fa0922e8 fa0922e8 e36c0015 e36c0015 c4575869
c4575869
"""


@pytest.mark.parametrize('number', range(len(CASES)))
def test_masks_are_those_of_earlier_releases(number):
    assert digest(*CASES[number]) == DIGESTS.split()[number]
