"""Registry of the Sparse-IFT family, and one member at a sparsity."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from sift_mm.errors import UserError
from sift_mm.flops.isoflop import check_sparsity, factor_densities
from sift_mm.layers.composite import Composite, check_inner
from sift_mm.layers.plain import Norm, size_of

# Largest relative change of a layer's FLOPs by rounding.
TOLERANCE = 0.25


class Family:
    """Base of a member of the family, each in a file of this package.

    Attributes:
        name (str): Value of the argument ``family``.
        widens (bool): Whether layers become wider together with their
            readers.
        composite (bool): Whether a layer becomes a ``Composite``; else it
            becomes a wider layer of its kind.
        default_factors (str, optional): Masked factors by default, see
            ``isoflop.SPARSE_FACTORS``; None without factors.
        layer (type[Composite]): Class in place of a dense layer.
    """

    name: ClassVar[str]
    widens: ClassVar[bool] = False
    composite: ClassVar[bool] = True
    default_factors: ClassVar[str | None] = None
    layer: ClassVar[Any]

    @classmethod
    def sizes(
        cls, member: 'Member', layer: nn.Module, step: int, cost: float | None
    ) -> dict[str, Any]:
        """Return the arguments of ``layer`` that follow from the sparsity.

        Args:
            member (Member): The member, with its sparsity and variants.
            layer (nn.Module): The dense layer.
            step (int): Divisor of an inner width of one group.
            cost (float, optional): As for ``Member.build``.
        """
        raise NotImplementedError


# The order of the paper, for lists and tables.
PAPER = ('wide', 'parallel', 'factorized', 'doped', 'wide_factorized')
_FAMILIES: dict[str, type[Family]] = {}


def register(family: type[Family]) -> type[Family]:
    """Register a member by its name (class decorator)."""
    other: Any = _FAMILIES.setdefault(family.name, family)
    if other.__qualname__ != family.__qualname__:
        raise UserError(
            f'The family {family.name!r} is {other.__qualname__} already; '
            'choose another name.'
        )
    _FAMILIES[family.name] = family
    return family


def families() -> tuple[str, ...]:
    """Return the names of all members, those of the paper first."""
    others = [name for name in _FAMILIES if name not in PAPER]
    return *(name for name in PAPER if name in _FAMILIES), *others


def family_of(name: str) -> type[Family]:
    """Return the member of a name; raise a ValueError for an unknown one."""
    if name not in _FAMILIES:
        raise UserError(
            f'Unknown family {name!r}; the families are '
            f'{", ".join(map(repr, families()))}, and None for '
            'the dense network.'
        )
    return _FAMILIES[name]


@dataclass(frozen=True)
class Member:
    """A member of the family at a sparsity, with its variants.

    Args:
        family (str): Name, one of :func:`families`.
        sparsity (float): Share of zero weights, in [0, 1).
        inner (str): Modules behind an inner layer, 'none', 'norm' or
            'norm_act'; a widened layer has no inner layer.
        sparse_factors (str, optional): Masked factors of the two factorized
            members: 'both' (default of 'factorized'), 'u' or 'none' (default
            of 'wide_factorized').

    Raises:
        ValueError: If an argument is invalid, or another member's.
    """

    family: str
    sparsity: float
    inner: str = 'none'
    sparse_factors: str | None = None

    def __post_init__(self) -> None:
        kind = family_of(self.family)
        check_sparsity(self.sparsity)
        check_inner(self.inner)
        if not kind.composite and self.inner != 'none':
            raise UserError(
                f'family={self.family!r} has no inner layers, so that '
                f'inner={self.inner!r} means nothing for it.'
            )
        if self.sparse_factors is None:
            return
        if kind.default_factors is None:
            others = [n for n in families() if family_of(n).default_factors]
            raise UserError(
                f'sparse_factors={self.sparse_factors!r} is for the families '
                f'{", ".join(map(repr, others))}; {self.family!r} '
                'has no factors to choose from.'
            )
        factor_densities(self.sparsity, self.sparse_factors)

    @property
    def kind(self) -> type[Family]:
        """Class of the member."""
        return family_of(self.family)

    @property
    def factors(self) -> str:
        """Masked factors: 'both', 'u' or 'none'."""
        return self.sparse_factors or self.kind.default_factors or 'none'

    def build(
        self,
        layer: nn.Module,
        norm: Norm | None = None,
        multiple: int = 1,
        scale: float | None = None,
        cost: float | None = None,
        rank: int | None = None,
    ) -> Composite:
        """Build the layer in place of a dense or wide layer.

        Args:
            layer (nn.Module): The dense layer, or the wide one of a wide
                network.
            norm (Callable, optional): As for :class:`Factorized`.
            multiple (int): Divisor of an inner width, for inner norms that
                divide channels into groups.
            scale (float, optional): As for :class:`Composite`.
            cost (float, optional): MACs of a factorized layer, for one
                position and group; None is the layer's.
            rank (int, optional): Inner width; None follows from the sparsity.

        Raises:
            ValueError: If the layer is too small for the sparsity, or the
                member is 'wide', which no single layer can be.
        """
        if not self.kind.composite:
            raise UserError(
                f'family={self.family!r} widens layers along with those '
                'that read them; use sift_mm.transform.'
            )
        step = 1
        if self.inner != 'none':
            # Each group of a convolution is factorized.
            step = multiple // math.gcd(multiple, size_of(layer)[2])
        sizes = self.kind.sizes(self, layer, step, cost)
        if rank is not None:
            sizes['rank'] = rank
        sizes |= dict(inner=self.inner, density=1 - self.sparsity)
        return self.kind.layer(layer, norm=norm, scale=scale, **sizes)


def check_share(ratio: float) -> None:
    """Refuse a layer whose FLOPs no whole sizes meet, with a ValueError."""
    if abs(ratio - 1) > TOLERANCE:
        raise UserError(
            'no whole number of channels, ranks or branches has '
            f'its FLOPs, the nearest {ratio:.2f} of them'
        )


def share_of_flops(new: Composite, old: nn.Module, sparsity: float) -> float:
    """Return the FLOPs of a layer under masks, divided by the dense layer's.

    Inner layers have the output positions of the dense layer, so the ratio is
    that of active weights.
    """
    sparse = set(new.sparse_parameter_names())
    used = sum(
        (1 - sparsity if name in sparse else 1) * p.numel()
        for name, p in new.named_parameters()
        if p.dim() > 1
    )
    weight: Any = old.weight
    return used / weight.numel()
