"""The networks of a sweep, and how they differ."""

import argparse
import re
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from sift_mm.config.member import MemberOptions
from sift_mm.errors import Mistake
from sift_mm.experiments.runner import Experiment
from sift_mm.layers.family import family_of


@dataclass(frozen=True)
class Network:
    """A config's path, and the member of the family that is made of it.

    Without a family it is the dense network; the sparsity is nominal;
    without an algorithm there are no masks; ``inner`` is what follows an
    inner layer, if it is not as it was; ``cfg_options`` are 'KEY=VALUE'.
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
        # The last part of a key and the value, safe as a folder's name.
        settings = (
            re.sub(r'[^\w.+=-]', '_', re.sub(r'^[^=]*\.', '', option))
            for option in self.cfg_options
        )
        return '-'.join(filter(None, (self.inner, *settings)))

    @property
    def name(self) -> str:
        """'dense', or as 'wide-s75-rigl-interval=50'."""
        found = MemberOptions(self.family, self.sparsity, self.algorithm)
        return '-'.join(filter(None, (found.name, self.variant))) or 'dense'

    def experiment(self, root: Path, seed: int) -> Experiment:
        """A run of it, in the folder of a sweep."""
        words = [
            word
            for key in ('family', 'sparsity', 'algorithm', 'inner')
            if (value := getattr(self, key)) is not None
            for word in (f'--{key}', str(value))
        ]
        return Experiment(
            root,
            f'{self.name}/seed{seed}',
            self.config,
            tuple(words),
            # Of weights, order of the data, and masks.
            (*self.cfg_options, f'randomness.seed={seed}'),
        )


def plan_networks(args: argparse.Namespace) -> list[Network]:
    """All networks of a sweep, the dense one first and as its config says.

    Raises:
        Mistake: If two networks have one name.
    """
    found = [Network(args.dense)]
    for family, sparsity, algorithm, inner, settings in product(
        args.family,
        args.sparsity,
        args.algorithm,
        args.inner,
        args.cfg_options or [()],
    ):
        # What a member lacks makes no other network of it.
        member = family_of(family)
        if member.default_factors == 'none':
            algorithm = None  # It has no masks.
        if not member.composite:
            inner = None
        settings = tuple(settings)
        found.append(
            Network(args.sparse, family, sparsity, algorithm, inner, settings)
        )
    found = list(dict.fromkeys(found))
    name, number = Counter(n.name for n in found).most_common(1)[0]
    if number > 1:
        raise Mistake(
            f'{number} networks would have the folder {name}: let the sets of '
            '--cfg-options differ in a value or the last part of a key.'
        )
    return found
