"""Run a library's own tests against our classes.

    python tests/upstream/run.py mmdet PATH_OF_AN_MMDETECTION_CHECKOUT

The tests stay as they are: before they are collected, the class under test is
replaced by ours, at family=None or without masks. Nothing of theirs is part
of this project, so the checkout is the caller's.
"""

import argparse
import importlib
import sys
from pathlib import Path

import pytest

BACKBONES = 'tests/test_models/test_backbones/'
# Library: test files, and {module to patch: {name there: our class}}.
SUITES = {
    'mmdet': ([BACKBONES + 'test_resnet.py'], {
        'mmdet.models.backbones': {
            'ResNet': 'sift_mm.backbones.mmdet:SparseIFTResNet'
        }
    }),
    'mmseg': ([BACKBONES + 'test_resnet.py'], {
        'mmseg.models.backbones': {
            'ResNet': 'sift_mm.backbones.mmseg:SparseIFTResNet'
        }
    }),
    'mmpretrain': (
        [BACKBONES + 'test_resnet.py', BACKBONES + 'test_resnet_cifar.py'], {
            'mmpretrain.models.backbones': {
                'ResNet':
                'sift_mm.backbones.mmpretrain:SparseIFTResNet',
                'ResNet_CIFAR':
                'sift_mm.backbones.mmpretrain:SparseIFTResNet_CIFAR'
            }
        }),
    'mmengine': ([
        'tests/test_optim/test_optimizer/test_optimizer_wrapper.py',
        'tests/test_hooks/test_ema_hook.py'
    ], {
        'mmengine.optim': {
            'OptimWrapper': 'sift_mm.engine:SparseOptimWrapper',
            'AmpOptimWrapper': 'sift_mm.engine:SparseAmpOptimWrapper'
        }
    }),
}


class Substitute:
    """Pytest plugin: put our classes in place and count their use."""

    def __init__(self, patches: dict[str, dict[str, str]]) -> None:
        self.built = {}
        self.blocks = 0
        for module_name, names in patches.items():
            module = importlib.import_module(module_name)
            for name, target in names.items():
                path, _, attribute = target.partition(':')
                ours = getattr(importlib.import_module(path), attribute)
                self._count(ours)
                setattr(module, name, ours)

    def _count(self, ours: type) -> None:
        self.built[ours.__name__] = 0
        init = ours.__init__

        def counted(instance, *args, **kwargs):
            init(instance, *args, **kwargs)
            self.built[ours.__name__] += 1
            if hasattr(instance, 'block'):
                # Upstream looks at blocks only `if isinstance(...)`: the
                # blocks have to be of the library's own types.
                self.blocks += sum(
                    type(m) is instance.block for m in instance.modules())

        ours.__init__ = counted


def main() -> int:
    """Run the tests; 0 if they pass and reached our classes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('library', choices=SUITES)
    parser.add_argument('checkout', type=Path)
    args, rest = parser.parse_known_args()
    files, patches = SUITES[args.library]
    paths = [args.checkout.resolve() / file for file in files]
    absent = [str(path) for path in paths if not path.is_file()]
    if absent:
        parser.error(f'no such test in the checkout: {", ".join(absent)}')
    plugin = Substitute(patches)
    code = pytest.main(
        [*map(str, paths), '-p', 'no:cacheprovider', '--rootdir',
         str(args.checkout), '-q', *rest],
        plugins=[plugin])
    print(f'instances of ours: {plugin.built}; residual blocks of the '
          f"library's own type: {plugin.blocks}")
    unused = [name for name, count in plugin.built.items() if not count]
    if unused or (args.library != 'mmengine' and not plugin.blocks):
        print(f'The tests did not reach {unused or "any block"}.')
        return 1
    return int(code)


if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main())
