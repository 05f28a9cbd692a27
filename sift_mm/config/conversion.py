"""Sparse-IFT in a config: all that follows from family and sparsity.

In a config file, one line gives the network and the channels that its neck
and heads read::

    from sift_mm.config import detector
    model = detector('wide', sparsity=0.9)

A config that was read already is changed by :func:`sparsify`.
"""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from sift_mm.checkpoint import pretrained_cfg
from sift_mm.config.channels import fit_channels
from sift_mm.config.helpers import pretrained_backbone
from sift_mm.config.nodes import set_type, type_name
from sift_mm.isoflop import FAMILIES

# Of the libraries' ResNets, the class that takes a family, and what else it
# has to be told.
BACKBONES: dict[str, tuple[str, dict[str, bool]]] = {
    'ResNet': ('SparseIFTResNet', {}),
    'ResNetV1c': ('SparseIFTResNet', dict(deep_stem=True)),
    'ResNetV1d': ('SparseIFTResNet', dict(deep_stem=True, avg_down=True)),
    'ResNet_CIFAR': ('SparseIFTResNet_CIFAR', {}),
}
WRAPPERS = {
    'OptimWrapper': 'SparseOptimWrapper',
    'AmpOptimWrapper': 'SparseAmpOptimWrapper',
}


def sparsify(
    cfg: Config,
    family: str | None = None,
    sparsity: float | None = None,
    algorithm: str | None = None,
    pretrained: str | None = None,
) -> None:
    """Turn the config of a run into one of Sparse-IFT, or change its member.

    Backbone, optim wrapper and hook become those of Sparse-IFT, where they
    are not; neck and heads get the channels that they will read.

    Args:
        cfg (Config): Config with a ResNet as ``model.backbone``, changed in
            place.
        family (str, optional): Member of the family; None leaves it.
        sparsity (float, optional): Nominal sparsity; None leaves it.
        algorithm (str, optional): How masks are trained, 'Static', 'SET' or
            'RigL'; None leaves it, and is 'RigL' where no hook is. With
            masks of a checkpoint, SET and RigL train those on.
        pretrained (str, optional): Checkpoint of a network with this
            backbone, to take its weights and masks from. Alone, it leaves a
            dense network dense.

    Raises:
        ValueError: If the config has no such backbone, a member is left
            without its sparsity, or the algorithm would not count.
    """
    backbone = cfg.get('model', {}).get('backbone') or {}
    kind = type_name(backbone)
    if kind not in BACKBONES and not kind.startswith('SparseIFTResNet'):
        raise ValueError(
            f'model.backbone is of type {kind or None!r}; of the Sparse-IFT '
            f'family there are {", ".join(BACKBONES)}.'
        )
    if kind in BACKBONES or pretrained is not None:
        _drop_weights(cfg, pretrained)
    if pretrained is not None:
        backbone['init_cfg'] = pretrained_backbone(pretrained)
        if (family, sparsity, algorithm) == (
            None,
            None,
            None,
        ) and backbone.get('family') is None:
            return  # The dense baseline.
    if kind in BACKBONES:
        name, arguments = BACKBONES[kind]
        set_type(backbone, name)
        backbone.update(arguments)
    if family is not None:
        if family not in FAMILIES:
            raise ValueError(
                f'Unknown family {family!r}; choose one of '
                f'{", ".join(FAMILIES)}.'
            )
        if family != backbone.get('family'):
            # Another member may not know the variant.
            backbone.pop('inner', None)
            backbone.pop('sparse_factors', None)
        backbone['family'] = family
    if sparsity is not None:
        backbone['sparsity'] = sparsity
    if backbone.get('family') is None or backbone.get('sparsity') is None:
        raise ValueError(
            f'The backbone would have family={backbone.get("family")!r} and '
            f'sparsity={backbone.get("sparsity")}; give both.'
        )
    _add_import(cfg)
    wrapper = cfg.get('optim_wrapper')
    if wrapper is not None:
        kind = type_name(wrapper) or 'OptimWrapper'
        if kind in WRAPPERS:
            set_type(wrapper, WRAPPERS[kind])
        _add_hook(cfg, algorithm)
    fit_channels(cfg)


def _drop_weights(cfg: Config, pretrained: str | None) -> None:
    """Drop the weights that the backbone started from.

    Args:
        cfg (Config): Config of a run, changed in place.
        pretrained (str, optional): Checkpoint that takes the place of all.
            With None, only those of a model zoo are dropped, for dense ones
            do not fit, and what they allowed to be frozen has to learn; a
            file of one's own may be of the new network.
    """
    backbone = cfg.model['backbone']
    paths = []
    if not cfg.get('resume'):
        paths.append((cfg, 'load_from', cfg.get('load_from')))
    for owner in (backbone, cfg.model):
        init = pretrained_cfg(owner.get('init_cfg')) or {}
        paths += [
            (owner, 'init_cfg', init.get('checkpoint')),
            (owner, 'pretrained', owner.get('pretrained')),
        ]
    for owner, key, path in paths:
        if not path or not (pretrained or '://' in path):
            continue
        owner[key] = None
        why = f'{pretrained} is loaded in their place'
        if pretrained is None:
            why = (
                'they are of a dense network, and the backbone starts '
                'from scratch, with all stages and norms learning'
            )
            backbone.update(frozen_stages=-1, norm_eval=False)
            # Frozen too where weights come from Caffe.
            (backbone.get('norm_cfg') or {}).pop('requires_grad', None)
        print_log(
            f'The weights of {path} are not loaded: {why}.', logger='current'
        )


def _add_import(cfg: Config) -> None:
    custom = cfg.get('custom_imports') or dict(allow_failed_imports=False)
    found = custom.get('imports') or []
    found = [found] if isinstance(found, str) else found
    if 'sift_mm' not in found:
        cfg.custom_imports = dict(custom, imports=[*found, 'sift_mm'])


def _add_hook(cfg: Config, algorithm: str | None) -> None:
    hooks = list(cfg.get('custom_hooks') or [])
    found = [h for h in hooks if type_name(h) == 'SparseTrainingHook']
    if not found:
        found = [ConfigDict(type='SparseTrainingHook')]
        hooks += found
    if algorithm is not None:
        hook = found[0]
        hook['algorithm'] = algorithm
        if algorithm != 'Static' and _loads_masks(cfg, hook):
            # It is asked for, and by default masks of a checkpoint stay.
            if hook.setdefault('transfer', 'train') != 'train':
                raise ValueError(
                    'Masks come with the loaded weights, and with transfer='
                    f'{hook["transfer"]!r} of SparseTrainingHook the '
                    f'algorithm {algorithm} would not count; to train them '
                    f'on, add --cfg-options custom_hooks.{hooks.index(hook)}.'
                    'transfer=train.'
                )
    cfg.custom_hooks = hooks


def _loads_masks(cfg: Config, hook: Mapping[str, Any]) -> bool:
    """Whether a run starts from the masks of a checkpoint."""
    sources = [
        pretrained_cfg(module.get('init_cfg'))
        for module in (cfg.model, cfg.model.backbone)
    ]
    load_from = cfg.get('load_from') and not cfg.get('resume')
    return bool(any(sources) or load_from) and not hook.get('init')
