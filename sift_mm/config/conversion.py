"""Conversion of the config of a run into one of Sparse-IFT."""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from sift_mm.checkpoint.state import pretrained_cfg
from sift_mm.config.channels import fit_channels
from sift_mm.config.checks import arguments, backbone_node
from sift_mm.config.family_options import MemberOptions
from sift_mm.config.helpers import pretrained_backbone
from sift_mm.config.nodes import hook_place, set_type, type_name
from sift_mm.errors import UserError
from sift_mm.layers.family import family_of

# Sparse class and further arguments for each of the libraries' ResNets. Every
# other backbone is wrapped.
BACKBONES: dict[str, tuple[str, dict[str, bool]]] = {
    'ResNet': ('SparseIFTResNet', {}),
    'ResNetV1c': ('SparseIFTResNet', dict(deep_stem=True)),
    'ResNetV1d': ('SparseIFTResNet', dict(deep_stem=True, avg_down=True)),
    'ResNet_CIFAR': ('SparseIFTResNet_CIFAR', {}),
}
WRAPPER = 'SparseIFT'


def sparsify(
    cfg: Config,
    family: str | None = None,
    sparsity: float | None = None,
    algorithm: str | None = None,
    pretrained: str | None = None,
    inner: str | None = None,
    sparse_factors: str | None = None,
    hook: Mapping[str, Any] | None = None,
) -> None:
    """Turn the config of a run into one of Sparse-IFT, or change its member.

    A ResNet becomes ``SparseIFTResNet``, whose features may be wider: neck
    and heads get its channels. Any other backbone is wrapped by ``SparseIFT``
    and keeps its interface. ``SparseTrainingHook`` is added if it is missing.

    Args:
        cfg (Config): Config with a ``model.backbone``, or of a GPT; changed
            in place.
        family (str, optional): Member of the family; None leaves it.
        sparsity (float, optional): Nominal sparsity; None leaves it.
        algorithm (str, optional): Mask training; None leaves it ('RigL'
            without a hook). SET and RigL continue with the masks of a
            checkpoint.
        pretrained (str, optional): Checkpoint of a network with this
            backbone, for weights and masks. Alone, it leaves a dense network
            dense.
        inner (str, optional): Modules behind an inner layer.
        sparse_factors (str, optional): Masked factors.
        hook (Mapping[str, Any], optional): Other arguments of
            SparseTrainingHook.

    Raises:
        UserError: If the config has no backbone, the member has no sparsity,
            or the algorithm would have no effect.
    """
    given = family, sparsity, algorithm, pretrained, inner, sparse_factors
    convert(cfg, MemberOptions(*given, hook))
    fit_channels(cfg)


def is_wrapped(cfg: Config) -> bool:
    """Return whether the backbone of a config is wrapped."""
    backbone = cfg.get('model', {}).get('backbone') or {}
    return type_name(backbone) == WRAPPER


def convert(cfg: Config, member: MemberOptions) -> None:
    """Apply :func:`sparsify` without neck and heads."""
    backbone = backbone_node(cfg)
    kind = type_name(backbone)
    if not kind:
        raise UserError(
            'The config has no model.backbone with a type: only backbones '
            'become members of the Sparse-IFT family.'
        )
    for_hook = member.of_hook  # Checked before any change.
    is_sparse = (
        kind == WRAPPER
        or kind.startswith('SparseIFTResNet')
        or backbone is cfg.model
    )
    is_dense = backbone.get('family') is None
    if member.pretrained is not None:
        _drop_weights(cfg, member.pretrained)
        if is_dense and member == MemberOptions(pretrained=member.pretrained):
            # The dense baseline.
            backbone['init_cfg'] = _start(cfg, member.pretrained)
            return
    elif not is_sparse:
        _drop_weights(cfg, None)
    if kind in BACKBONES:
        name, arguments = BACKBONES[kind]
        set_type(backbone, name)
        backbone.update(arguments)
    elif not is_sparse:
        backbone = _wrap(cfg)
    if member.pretrained is not None:
        backbone['init_cfg'] = _start(cfg, member.pretrained)
    if member.family is not None:
        family_of(member.family)  # Refuses an unknown one.
        if member.family != backbone.get('family'):
            # Another member may not know the variant.
            backbone.pop('inner', None)
            backbone.pop('sparse_factors', None)
    backbone.update(member.of_backbone)
    if backbone.get('family') is None or backbone.get('sparsity') is None:
        raise UserError(
            f'The backbone would have family={backbone.get("family")!r} and '
            f'sparsity={backbone.get("sparsity")}; give both.'
        )
    _add_import(cfg)
    if cfg.get('optim_wrapper') is not None:
        _add_hook(cfg, for_hook)
    elif for_hook:
        raise UserError(
            'The config trains nothing (it has no optim_wrapper), so that '
            f'{", ".join(for_hook)} of the hook would not count.'
        )


def _start(cfg: Config, checkpoint: str) -> dict[str, str]:
    """Return the ``init_cfg`` of a checkpoint of the model."""
    init_cfg = pretrained_backbone(checkpoint)
    if backbone_node(cfg) is cfg.model:
        del init_cfg['prefix']
    return init_cfg


def _wrap(cfg: Config) -> ConfigDict:
    """Wrap the backbone of a config, and return the wrapper.

    The user's own weights are of the new network: the wrapper loads them.
    """
    inner = cfg.model.backbone
    wrapper = ConfigDict(type=WRAPPER, backbone=inner)
    if pretrained_cfg(inner.get('init_cfg')) is not None:
        wrapper['init_cfg'] = inner.pop('init_cfg')
    cfg.model.backbone = wrapper
    return cfg.model.backbone


def _drop_weights(cfg: Config, pretrained: str | None) -> None:
    """Drop the initial weights of the backbone.

    A checkpoint replaces all of them. With None, only weights of a model zoo
    are dropped: they are dense and do not fit, and frozen stages have to
    train. The user's own file may be of the new network and stays. Empty
    names are dropped too.
    """
    backbone = backbone_node(cfg)
    owners = [backbone, cfg.model]
    if is_wrapped(cfg):
        owners.append(backbone['backbone'])
    paths = []
    if not cfg.get('resume'):
        paths.append((cfg, 'load_from', cfg.get('load_from')))
    for owner in owners:
        init = pretrained_cfg(owner.get('init_cfg')) or {}
        paths += [
            (owner, 'init_cfg', init.get('checkpoint')),
            (owner, 'pretrained', owner.get('pretrained')),
        ]
    for owner, key, path in paths:
        if path is None or path is False:
            continue
        # Configs leave '' as the place of a user's file; True of timm is the
        # file of the network's name.
        if not (pretrained or path in ('', True) or '://' in path):
            continue
        owner[key] = False if path is True else None
        why = f'{pretrained} is loaded in their place'
        if pretrained is None:
            why = (
                'they are of a dense network, and the backbone starts '
                'from scratch, with all stages and norms learning'
            )
            _unfreeze(cfg)
        print_log(
            f'The weights of {path or repr(path)} are not loaded: {why}.',
            logger='current',
        )


def _unfreeze(cfg: Config) -> None:
    """Make all stages and norms of a backbone trainable."""
    backbone = cfg.model['backbone']
    # Configs with weights from Caffe freeze norms too.
    (backbone.get('norm_cfg') or {}).pop('requires_grad', None)
    if type_name(backbone) in BACKBONES:
        backbone.update(frozen_stages=-1, norm_eval=False)
        return
    default = arguments(cfg, backbone['type'])
    if 'frozen_stages' in backbone:
        # Some backbones count from 0, for none, and refuse -1.
        stages = default.get('frozen_stages')
        backbone['frozen_stages'] = 0 if stages == 0 else -1
    if 'norm_eval' in backbone or default.get('norm_eval') is True:
        backbone['norm_eval'] = False


def _add_import(cfg: Config) -> None:
    custom = cfg.get('custom_imports') or dict(allow_failed_imports=False)
    found = custom.get('imports') or []
    found = [found] if isinstance(found, str) else found
    if 'sift_mm' not in found:
        cfg.custom_imports = dict(custom, imports=[*found, 'sift_mm'])


def _add_hook(cfg: Config, arguments: Mapping[str, Any]) -> None:
    """Add the hook if it is missing, and set its arguments."""
    hooks = list(cfg.get('custom_hooks') or [])
    place = hook_place(cfg)
    if place is None:
        place = len(hooks)
        hooks.append(ConfigDict(type='SparseTrainingHook'))
    hook = hooks[place]
    for name, value in arguments.items():
        hook[name] = _with_type(value, hook.get(name))
    algorithm = arguments.get('algorithm')
    if algorithm not in (None, 'Static') and _loads_masks(cfg, hook):
        # By default, masks of a checkpoint are fixed.
        if hook.setdefault('transfer', 'train') != 'train':
            raise UserError(
                'Masks come with the loaded weights, and with transfer='
                f'{hook["transfer"]!r} of SparseTrainingHook the algorithm '
                f'{algorithm} would not count; to train them on, add '
                '--hook transfer=train.'
            )
    cfg.custom_hooks = hooks


def _with_type(value: Any, old: Any) -> Any:
    """Complete a dict without a type, as of --hook algorithm.structure=NM."""
    if not isinstance(value, Mapping) or 'type' in value:
        return value
    if isinstance(old, str):
        return {'type': old, **value}
    return {**old, **value} if 'type' in (old or ()) else value


def _loads_masks(cfg: Config, hook: Mapping[str, Any]) -> bool:
    """Return whether a run starts from the masks of a checkpoint."""
    sources = [
        pretrained_cfg(module.get('init_cfg'))
        for module in (cfg.model, backbone_node(cfg))
    ]
    load_from = cfg.get('load_from') and not cfg.get('resume')
    return bool(any(sources) or load_from) and not hook.get('init')
