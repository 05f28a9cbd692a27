"""Puts our classes in the place of a library's, in every process.

Python imports a module of this name when it starts; run.py puts its folder on
the path. Without SIFT_MM_SUBSTITUTE it does nothing.
"""

import importlib
import os
from pkgutil import resolve_name

# Library: where its classes are, and ours by the names there.
BACKBONES = '{}.models.backbones'
CLASSES = {
    'mmdet': (BACKBONES, {'ResNet': 'backbones.mmdet:SparseIFTResNet'}),
    'mmseg': (BACKBONES, {'ResNet': 'backbones.mmseg:SparseIFTResNet'}),
    'mmpretrain': (
        BACKBONES,
        {
            'ResNet': 'backbones.mmpretrain:SparseIFTResNet',
            'ResNet_CIFAR': 'backbones.mmpretrain:SparseIFTResNet_CIFAR',
        },
    ),
    'mmengine': (
        '{}.optim',
        {
            'OptimWrapper': 'engine:SparseOptimWrapper',
            'AmpOptimWrapper': 'engine:SparseAmpOptimWrapper',
        },
    ),
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
    path, names = CLASSES[library]
    module = importlib.import_module(path.format(library))
    for name, target in names.items():
        ours = resolve_name(f'sift_mm.{target}')
        count_instances(ours)
        setattr(module, name, ours)


if os.environ.get('SIFT_MM_SUBSTITUTE'):
    substitute(os.environ['SIFT_MM_SUBSTITUTE'])
