"""What each member of the Sparse-IFT family knows of itself."""

from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from sift_mm.errors import Mistake

if TYPE_CHECKING:
    from sift_mm.layers.member import Member


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
        raise Mistake(
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
        raise Mistake(
            f'Unknown family {name!r}; the families are '
            f'{", ".join(map(repr, families()))}, and None for '
            'the dense network.'
        )
    return _FAMILIES[name]
