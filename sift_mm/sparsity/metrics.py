"""Metrics of masks: density, history, training FLOPs."""

import copy
from collections.abc import Mapping

from torch import Tensor

from sift_mm.checkpoint.packing import count, pack, unpack
from sift_mm.errors import UserError
from sift_mm.sparsity.algorithms import ALGORITHMS, AlgorithmLike


def density(masks: Mapping[str, Tensor]) -> float:
    """Return the share of active weights over all masks."""
    active = sum(int(mask.count_nonzero()) for mask in masks.values())
    return active / sum(mask.numel() for mask in masks.values())


def dead_channels(mask: Tensor) -> tuple[int, int]:
    """Count input and output channels of a layer without active weight.

    Output channels are the first axis, filters; input channels the second,
    over all taps. In a grouped convolution the second axis numbers the inputs
    of a group, and one counts if it is dead in all groups. Transposed
    convolutions have inputs on the first axis.

    Returns:
        tuple: Dead inputs, dead outputs.
    """
    taps = mask.flatten(2).any(2) if mask.ndim > 2 else mask
    dead = [count(~taps.any(axis)) for axis in (0, 1)]
    return dead[0], dead[1]


class MaskHistory:
    """History of the weights that were ever and always active.

    It is packed in main memory and takes a quarter of a byte per weight.

    Args:
        masks (Mapping[str, Tensor]): First masks by name.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self._sizes = {name: mask.numel() for name, mask in masks.items()}
        self._ever = {name: pack(mask) for name, mask in masks.items()}
        self._always = copy.deepcopy(self._ever)

    def after(self, masks: Mapping[str, Tensor]) -> 'MaskHistory':
        """Return a copy of the history, updated by masks of some layers.

        This history stays, so that an update can be aborted.
        """
        found = copy.copy(self)
        found._ever, found._always = dict(self._ever), dict(self._always)
        for name, mask in masks.items():
            bits = pack(mask)
            found._ever[name] = self._ever[name] | bits
            found._always[name] = self._always[name] & bits
        return found

    def _share(self, packed: Mapping[str, Tensor], name: str | None) -> float:
        sizes = self._sizes if name is None else {name: self._sizes[name]}
        ones = sum(count(unpack(packed[n], size)) for n, size in sizes.items())
        return ones / sum(sizes.values())

    def itop_rate(self, name: str | None = None) -> float:
        """Return the share of weights that were active at any time.

        The in-time over-parameterization rate of Liu et al. 2021, of one layer
        or of all together.
        """
        return self._share(self._ever, name)

    def degree_of_constraint(self, name: str | None = None) -> float:
        """Return the share of weights that were active all the time.

        It is that of one layer, or of all together.
        """
        return self._share(self._always, name)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the packed bits by name, as uint8 tensors."""
        return copy.deepcopy({'ever': self._ever, 'always': self._always})

    def load_state_dict(
        self, state: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        """Restore a :meth:`state_dict` of the same parameters.

        Raises:
            ValueError: If the state has other parameters.
        """
        packed = {}
        sizes = {n: -(-size // 8) for n, size in self._sizes.items()}
        for key in ('ever', 'always'):
            bits = {n: b.cpu().clone() for n, b in state[key].items()}
            if {n: b.numel() for n, b in bits.items()} != sizes:
                raise UserError(
                    'The history of the masks is not that of these '
                    f'parameters: {key!r} does not have their names and '
                    'sizes.'
                )
            packed[key] = bits
        self._ever, self._always = packed['ever'], packed['always']


def training_flops(
    algorithm: AlgorithmLike,
    sparse: float,
    dense: float,
    interval: int = 100,
    end: float = 1.0,
) -> float:
    """Return the FLOPs per training sample of 'dense' or an algorithm.

    :meth:`Algorithm.training_flops` has the arguments.

    Raises:
        ValueError: If there is no such algorithm.
    """
    if isinstance(algorithm, str) and algorithm.lower() == 'dense':
        return 3 * dense
    built = ALGORITHMS.build(algorithm)
    return built.training_flops(sparse, dense, interval, end)
