"""The networks of a sweep, and how they differ."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from sift_mm.config.reading import member_name
from sift_mm.experiments.runner import Experiment
from sift_mm.layers.member import Member


@dataclass(frozen=True)
class Network:
    """A config, and the member of the family that is made of it.

    Args:
        config (str): Path of the config.
        family (str, optional): Member; None is the dense network.
        sparsity (float, optional): Nominal.
        algorithm (str, optional): How masks are trained; None without masks.
        inner (str, optional): What follows an inner layer; None leaves it.
        cfg_options (tuple[str, ...]): Settings of the config, 'KEY=VALUE'.
    """

    config: str
    family: str | None = None
    sparsity: float | None = None
    algorithm: str | None = None
    inner: str | None = None
    cfg_options: tuple[str, ...] = ()

    @property
    def variant(self) -> str:
        """'norm_act-interval=50', a part of it, or ''."""
        # Of a.b=[1,2], 'b=_1_2_': safe as a folder's name.
        settings = (
            re.sub(r'[^\w.+=-]', '_', f'{key.split(".")[-1]}={value}')
            for key, _, value in (o.partition('=') for o in self.cfg_options)
        )
        return '-'.join(filter(None, (self.inner, *settings)))

    @property
    def name(self) -> str:
        """'dense', or as 'wide-s75-rigl-interval=50'."""
        found = member_name(self.family, self.sparsity, self.algorithm)
        return '-'.join(filter(None, (found, self.variant))) or 'dense'

    def experiment(self, root: Path, seed: int) -> Experiment:
        """A run of it.

        Args:
            root (Path): Folder of the sweep.
            seed (int): Of weights, order of the data, and masks.
        """
        chosen = {
            '--family': self.family,
            '--sparsity': self.sparsity,
            '--algorithm': self.algorithm,
            '--inner': self.inner,
        }
        words = ((k, str(v)) for k, v in chosen.items() if v is not None)
        return Experiment(
            root,
            f'{self.name}/seed{seed}',
            self.config,
            tuple(word for pair in words for word in pair),
            (*self.cfg_options, f'randomness.seed={seed}'),
        )


def plan_networks(
    dense: str,
    sparse: str,
    families: Sequence[str],
    sparsities: Sequence[float],
    algorithms: Sequence[str],
    inner: Sequence[str | None] = (None,),
    cfg_options: Sequence[Sequence[str]] = ((),),
) -> list[Network]:
    """All combinations, the dense network first and as its config says.

    What a member lacks, masks or inner layers, makes no difference to it.

    Args:
        dense (str): Path of the config of the baseline.
        sparse (str): Path of the config of a member.
        families (Sequence[str]): Members.
        sparsities (Sequence[float]): Nominal.
        algorithms (Sequence[str]): How masks are trained.
        inner (Sequence[str]): What follows an inner layer.
        cfg_options (Sequence[Sequence[str]]): Sets of 'KEY=VALUE'.

    Raises:
        SystemExit: If two networks have one name.
    """
    found = [Network(dense)]
    for family, sparsity, algorithm, between, options in product(
        families, sparsities, algorithms, inner, cfg_options
    ):
        masked = family != 'wide_factorized'
        found.append(
            Network(
                sparse,
                family,
                sparsity,
                algorithm if masked else None,
                between if _has_inner(family) else None,
                tuple(options),
            )
        )
    networks = list(dict.fromkeys(found))
    name, number = Counter(n.name for n in networks).most_common(1)[0]
    if number > 1:
        raise SystemExit(
            f'{number} networks would have the folder {name}: let the sets of '
            '--cfg-options differ in the last part of a key or in a value.'
        )
    return networks


def _has_inner(family: str) -> bool:
    try:
        Member(family, 0.5, 'norm')
    except ValueError:
        return False
    return True
