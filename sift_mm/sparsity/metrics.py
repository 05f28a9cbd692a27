"""Numbers about masks."""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sift_mm.errors import Mistake
from sift_mm.sparsity.algorithms import ALGORITHMS, Algorithm
from sift_mm.sparsity.packing import pack


def density(masks: Mapping[str, Tensor]) -> float:
    """Share of weights that are active, over all masks together."""
    active = sum(int(mask.count_nonzero()) for mask in masks.values())
    return active / sum(mask.numel() for mask in masks.values())


class MaskHistory:
    """Which weights were ever active, and which always.

    Kept packed, an eighth of a byte a weight each, in main memory.

    Args:
        masks (Mapping[str, Tensor]): The first masks.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self._sizes = {name: prod(m.shape) for name, m in masks.items()}
        self._ever = {n: pack(mask).numpy() for n, mask in masks.items()}
        self._always = {name: bits.copy() for name, bits in self._ever.items()}

    def record(self, name: str, mask: Tensor) -> None:
        """Take note of a layer's new mask."""
        bits = pack(mask).numpy()
        self._ever[name] |= bits
        self._always[name] &= bits

    def _share(self, packed: Mapping[str, np.ndarray]) -> float:
        # Padding bits of the last byte are 0 in every mask.
        ones = sum(
            int(np.unpackbits(bits).sum(dtype=np.int64))
            for bits in packed.values()
        )
        return ones / sum(self._sizes.values())

    def itop_rate(self) -> float:
        """Share of weights active at any time so far.

        The in-time over-parameterisation rate of Liu et al. 2021.
        """
        return self._share(self._ever)

    def degree_of_constraint(self) -> float:
        """Share of weights active all the time so far."""
        return self._share(self._always)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Packed bits by name, as uint8 tensors."""
        return {
            'ever': {
                n: torch.from_numpy(b.copy()) for n, b in self._ever.items()
            },
            'always': {
                n: torch.from_numpy(b.copy()) for n, b in self._always.items()
            },
        }

    def load_state_dict(
        self, state: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        """Restore what :meth:`state_dict` gave for the same parameters.

        Raises:
            ValueError: If it is of other parameters.
        """
        packed = {}
        for key in ('ever', 'always'):
            bits = {n: b.cpu().numpy().copy() for n, b in state[key].items()}
            sizes = {n: -(-size // 8) for n, size in self._sizes.items()}
            if {n: b.size for n, b in bits.items()} != sizes:
                raise Mistake(
                    'The history of the masks is not that of these '
                    f'parameters: {key!r} does not have their names and '
                    'sizes.'
                )
            packed[key] = bits
        self._ever, self._always = packed['ever'], packed['always']


def training_flops(
    algorithm: str | Mapping[str, Any] | Algorithm,
    sparse: float,
    dense: float,
    interval: int = 100,
    end: float = 1.0,
) -> float:
    """FLOPs of training on one sample, averaged over the schedule.

    Args:
        algorithm (str | dict | Algorithm): 'dense', or an algorithm as
            :data:`ALGORITHMS` names it.
        sparse (float): FLOPs of a sparse forward pass.
        dense (float): FLOPs of the same pass without masks.
        interval (int): Optimizer steps between two updates.
        end (float): Share of the steps until the last update.

    Returns:
        float: In the unit of ``sparse`` and ``dense``; see
        :meth:`Algorithm.training_flops`.

    Raises:
        ValueError: If there is no such algorithm.
    """
    if isinstance(algorithm, str) and algorithm.lower() == 'dense':
        return 3 * dense
    built = ALGORITHMS.build(algorithm)
    return built.training_flops(sparse, dense, interval, end)
