"""Networks of a sweep, and their names."""

import argparse
import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from sift_mm.cli.experiments import Experiment
from sift_mm.cli.sweep_axes import has_masks, read_axes, settings
from sift_mm.config.family_options import MemberOptions
from sift_mm.errors import UserError
from sift_mm.layers.family import family_of


@dataclass(frozen=True)
class Network:
    """Network of a sweep: a config and its member of the family.

    Attributes:
        config (str): Path of the config.
        family (str, optional): Member; None for the dense network.
        sparsity (float, optional): Nominal sparsity.
        algorithm (str, optional): Mask training; None for no masks.
        inner (str, optional): Modules behind an inner layer; None is the
            default.
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
        """Inner modules and settings, as 'norm_act-interval=50', or ''."""
        # The last part of a key and the value, as a valid folder name.
        settings = (
            re.sub(r'[^\w.+=-]', '_', re.sub(r'^[^=]*\.', '', option))
            for option in self.cfg_options
        )
        return '-'.join(filter(None, (self.inner, *settings)))

    @property
    def name(self) -> str:
        """Name of the folder: 'dense', or as 'wide-s75-rigl-lr=0.1'."""
        found = MemberOptions(self.family, self.sparsity, self.algorithm)
        return '-'.join(filter(None, (found.name or 'dense', self.variant)))

    def experiment(self, root: Path, seed: int) -> Experiment:
        """Return the run with a seed, in the folder of a sweep."""
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
            # Seed of weights, order of the data, and masks.
            (*self.cfg_options, f'randomness.seed={seed}'),
        )


def plan_networks(args: argparse.Namespace) -> list[Network]:
    """Return the networks of a sweep, the dense ones first.

    Raises:
        UserError: If two networks have one name, or an axis is not possible.
    """
    axes = read_axes(args)
    found = [
        Network(args.dense, cfg_options=options)
        for options in settings(axes, dense=True)
    ]
    for family, sparsity, algorithm, inner, more in product(
        args.family,
        args.sparsity,
        args.algorithm,
        args.inner,
        args.cfg_options or [()],
    ):
        # Options that a member lacks do not make another network.
        masks = has_masks(family)
        member = Network(
            args.sparse,
            family,
            sparsity,
            algorithm if masks else None,
            inner if family_of(family).composite else None,
        )
        found += [
            replace(member, cfg_options=(*more, *options))
            for options in settings(axes, masks=masks)
        ]
    found = list(dict.fromkeys(found))
    name, number = Counter(n.name for n in found).most_common(1)[0]
    if number > 1:
        raise UserError(
            f'{number} networks would have the folder {name}: let --axis and '
            'the sets of --cfg-options differ in a value or the last part of '
            'a key.'
        )
    return found
