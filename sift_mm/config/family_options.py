"""Options of the command line for a member of the family."""

import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mmengine.config import Config

from sift_mm.names import check_names
from sift_mm.sparsity import RunOptions

# Arguments of every backbone that define its member of the family.
VARIANT = ('family', 'sparsity', 'inner', 'sparse_factors')
# Arguments of SparseIFT, which wraps a backbone; SparseIFTResNet has most.
MEMBER_ARGUMENTS = (
    *VARIANT,
    *('flops', 'include', 'exclude', 'match_shape', 'unmasked'),
)


@dataclass(frozen=True)
class MemberOptions:
    """Options of the member and its masks.

    Arguments are those of :func:`sift_mm.config.sparsify`.
    """

    family: str | None = None
    sparsity: float | None = None
    algorithm: str | Mapping[str, Any] | None = None
    pretrained: str | None = None
    inner: str | None = None
    sparse_factors: str | None = None
    hook: Mapping[str, Any] | None = None

    @classmethod
    def of_args(cls, args: Namespace) -> 'MemberOptions':
        """Build from a command line; ``--hook`` has priority."""
        flags = dict(algorithm=args.algorithm, interval=args.interval)
        # algorithm.type=RigL algorithm.structure=Block is one dict.
        nested = Config()
        nested.merge_from_dict(args.hook or {})
        hook = nested.to_dict()
        for name, value in flags.items():
            if value is not None:
                hook.setdefault(name, value)
        algorithm = hook.pop('algorithm', None)
        if isinstance(algorithm, dict) and args.algorithm:
            algorithm.setdefault('type', args.algorithm)
        named = {key: getattr(args, key) for key in (*VARIANT, 'pretrained')}
        return cls(**named, algorithm=algorithm, hook=hook or None)

    def __bool__(self) -> bool:
        """Return True if any option is given."""
        return bool(self.given)

    @property
    def given(self) -> dict[str, Any]:
        """Return the options that are given, by name."""
        return {k: v for k, v in vars(self).items() if v is not None}

    @property
    def of_backbone(self) -> dict[str, Any]:
        """Return the backbone's arguments that are given."""
        return {k: v for k in VARIANT if (v := getattr(self, k)) is not None}

    @property
    def of_hook(self) -> dict[str, Any]:
        """Return the arguments of SparseTrainingHook that are given.

        Raises:
            ValueError: If the hook has no such argument.
        """
        found = dict(self.hook or {})
        names = [option.name for option in fields(RunOptions)]
        check_names('SparseTrainingHook has no argument', found, names)
        if self.algorithm is not None:
            found['algorithm'] = self.algorithm
        return found

    @property
    def name(self) -> str:
        """Return a folder's suffix, such as 'wide-s75-rigl-pre', or ''."""
        parts = [self.family]
        if self.sparsity is not None:
            parts.append(f's{100 * self.sparsity:g}')
        parts.append(self.inner)
        if self.sparse_factors is not None:
            parts.append(f'factors_{self.sparse_factors}')
        if self.algorithm is not None:
            text = re.sub(r'[^\w.]+', '_', str(self.algorithm))
            parts.append(text.strip('_').lower())
        for key, value in (self.hook or {}).items():
            text = f'i{value}' if key == 'interval' else f'{key}_{value}'
            parts.append(re.sub(r'[^\w.]+', '_', text))
        if self.pretrained is not None:
            parts.append('pre')
        return '-'.join(filter(None, parts))
