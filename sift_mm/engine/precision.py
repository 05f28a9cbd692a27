"""Mixed precision of a config, on and off."""

from mmengine.config import Config
from mmengine.logging import print_log

from sift_mm.config.nodes import set_type, type_name
from sift_mm.engine.launch import has_accelerator
from sift_mm.errors import UserError

AMP_WRAPPERS = {
    'OptimWrapper': 'AmpOptimWrapper',
    'SparseOptimWrapper': 'SparseAmpOptimWrapper',
}
# Options that the float32 wrappers do not have.
AMP_OPTIONS = ('loss_scale', 'dtype', 'use_fsdp')


def enable_amp(cfg: Config) -> None:
    """Replace the optim wrapper by its mixed precision counterpart.

    Raises:
        UserError: If the wrapper has no counterpart.
    """
    wrapper = cfg.get('optim_wrapper')
    if wrapper is None:
        raise UserError('--amp needs a config with an optim_wrapper.')
    name = type_name(wrapper) or 'OptimWrapper'
    if name in AMP_WRAPPERS.values():
        print_log(f'--amp: the config already has {name}.', logger='current')
    elif name in AMP_WRAPPERS:
        set_type(wrapper, AMP_WRAPPERS[name])
    else:
        raise UserError(
            f'--amp knows {" and ".join(AMP_WRAPPERS)}, but the '
            f"config's optim_wrapper is a {name}."
        )
    wrapper.setdefault('loss_scale', 'dynamic')


def disable_amp(cfg: Config) -> None:
    """Replace a mixed precision optim wrapper by its float32 counterpart."""
    wrapper = cfg.get('optim_wrapper') or {}
    for plain, mixed in AMP_WRAPPERS.items():
        if type_name(wrapper) == mixed:
            set_type(wrapper, plain)
            for key in AMP_OPTIONS:
                wrapper.pop(key, None)


def check_amp(cfg: Config) -> None:
    """Refuse mixed precision without an accelerator.

    Raises:
        UserError: If an AMP wrapper is set and no accelerator is found.
    """
    name = type_name(cfg.get('optim_wrapper') or {})
    if name in AMP_WRAPPERS.values() and not has_accelerator():
        raise UserError(
            f'Mixed precision ({name}) needs an accelerator, '
            'and there is none: train with --no-amp.'
        )
