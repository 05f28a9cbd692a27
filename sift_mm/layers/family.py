"""Members of the Sparse-IFT family: their registry, and one at a sparsity."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from sift_mm.errors import UserError
from sift_mm.flops.isoflop import check_sparsity, factor_densities
from sift_mm.layers.composite import Composite, check_inner
from sift_mm.layers.plain import Norm, size_of

# A layer whose FLOPs rounding would change by more has no equal.
TOLERANCE = 0.25


class Family:
    """A member of the family, in a file of its own in this package.

    Attributes:
        name (str): As ``family`` is written.
        widens (bool): Whether layers are made wider along with those that
            read them.
        composite (bool): Whether a layer becomes another module; else it is
            a wider one of its kind.
        default_factors (str, optional): Which of two factors carry masks,
            see ``isoflop.SPARSE_FACTORS``; None where there are no factors.
        layer (type[Composite]): Stands in for a dense layer.
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
        """What the constructor of ``layer`` takes that follows from sparsity.

        Args:
            member (Member): The member, with its sparsity and variants.
            layer (nn.Module): The dense layer.
            step (int): An inner width, of one group, is a multiple of this.
            cost (float, optional): As for ``Member.build``.
        """
        raise NotImplementedError


# The order of the paper, for lists and tables.
PAPER = ('wide', 'parallel', 'factorized', 'doped', 'wide_factorized')
_FAMILIES: dict[str, type[Family]] = {}


def register(family: type[Family]) -> type[Family]:
    """Class decorator: make a member known by its name, if that is free."""
    other: Any = _FAMILIES.setdefault(family.name, family)
    if other.__qualname__ != family.__qualname__:
        raise UserError(
            f'The family {family.name!r} is {other.__qualname__} already; '
            'choose another name.'
        )
    _FAMILIES[family.name] = family
    return family


def families() -> tuple[str, ...]:
    """Names of all members, those of the paper first."""
    others = [name for name in _FAMILIES if name not in PAPER]
    return *(name for name in PAPER if name in _FAMILIES), *others


def family_of(name: str) -> type[Family]:
    """The member of a name; a ValueError if there is none."""
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
        family (str): Its name, one of :func:`families`.
        sparsity (float): Share of zero weights, in [0, 1).
        inner (str): What follows an inner layer, 'none', 'norm' or
            'norm_act'; a widened layer has no inner one.
        sparse_factors (str, optional): Which factors of the two factorized
            members carry masks: 'both' (default of 'factorized'), 'u' or
            'none' (default of 'wide_factorized').

    Raises:
        ValueError: If an argument is none of these, or not one of this
            member's.
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
        """What the member knows of itself."""
        return family_of(self.family)

    @property
    def factors(self) -> str:
        """Which factors carry masks."""
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
        """The layer that stands in for a dense one, or for a wide one.

        Args:
            layer (nn.Module): The dense layer; of a wide network, the wide
                one.
            norm (Callable, optional): As for :class:`Factorized`.
            multiple (int): An inner width is a multiple of this where an
                inner norm divides it into groups.
            scale (float, optional): As for :class:`Composite`.
            cost (float, optional): MACs of one position and group to be met
                by a factorized layer; the layer's own if None.
            rank (int, optional): Inner width, in place of the one that
                follows.

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
            # Each group of a convolution is factorised.
            step = multiple // math.gcd(multiple, size_of(layer)[2])
        sizes = self.kind.sizes(self, layer, step, cost)
        if rank is not None:
            sizes['rank'] = rank
        sizes |= dict(inner=self.inner, density=1 - self.sparsity)
        return self.kind.layer(layer, norm=norm, scale=scale, **sizes)


def check_share(ratio: float) -> None:
    """Refuse, by a ValueError, a layer that has no equal of its FLOPs."""
    if abs(ratio - 1) > TOLERANCE:
        raise UserError(
            'no whole number of channels, ranks or branches has '
            f'its FLOPs, the nearest {ratio:.2f} of them'
        )


def share_of_flops(new: Composite, old: nn.Module, sparsity: float) -> float:
    """FLOPs of a layer under masks over those of the dense one.

    All inner layers give outputs at the positions of the dense layer, so
    that it is the ratio of the weights that take part.
    """
    sparse = set(new.sparse_parameter_names())
    used = sum(
        (1 - sparsity if name in sparse else 1) * p.numel()
        for name, p in new.named_parameters()
        if p.dim() > 1
    )
    weight: Any = old.weight
    return used / weight.numel()
