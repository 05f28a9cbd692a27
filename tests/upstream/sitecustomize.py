"""Puts our classes in the place of a library's, in every process.

Python imports a module of this name when it starts; run.py puts its folder on
the path. Without SIFT_MM_SUBSTITUTE it does nothing.
"""

import importlib
import os

# Library: {module: {name there: our class}}.
CLASSES = {
    'mmdet': {
        'mmdet.models.backbones': {
            'ResNet': 'sift_mm.backbones.mmdet:SparseIFTResNet'
        }
    },
    'mmseg': {
        'mmseg.models.backbones': {
            'ResNet': 'sift_mm.backbones.mmseg:SparseIFTResNet'
        }
    },
    'mmpretrain': {
        'mmpretrain.models.backbones': {
            'ResNet': 'sift_mm.backbones.mmpretrain:SparseIFTResNet',
            'ResNet_CIFAR': (
                'sift_mm.backbones.mmpretrain:SparseIFTResNet_CIFAR'
            ),
        }
    },
    'mmengine': {
        'mmengine.optim': {
            'OptimWrapper': 'sift_mm.engine:SparseOptimWrapper',
            'AmpOptimWrapper': 'sift_mm.engine:SparseAmpOptimWrapper',
        }
    },
}


def count_instances(ours: type) -> None:
    """Log each instance, and the blocks of the library's type in it.

    Upstream's tests look at blocks only `if isinstance(...)`: a backbone
    with blocks of another type would pass them unseen.
    """
    init = ours.__init__

    def counted(self, *args, **kwargs):
        init(self, *args, **kwargs)
        names = [ours.__name__]
        if hasattr(self, 'block'):
            names += ['block' for m in self.modules() if type(m) is self.block]
        with open(os.environ['SIFT_MM_BUILT'], 'a') as stream:
            stream.write(' '.join(names) + '\n')

    ours.__init__ = counted


def substitute(library: str) -> None:
    """Replace the library's classes by ours."""
    for module_name, names in CLASSES[library].items():
        module = importlib.import_module(module_name)
        for name, target in names.items():
            path, _, attribute = target.partition(':')
            ours = getattr(importlib.import_module(path), attribute)
            count_instances(ours)
            setattr(module, name, ours)


if os.environ.get('SIFT_MM_SUBSTITUTE'):
    substitute(os.environ['SIFT_MM_SUBSTITUTE'])
