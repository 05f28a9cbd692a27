"""Keys of a config by their last parts."""

import difflib
from dataclasses import fields

from mmengine.config import Config

from sift_mm.config.checks import arguments, backbone_key, backbone_node
from sift_mm.config.family_options import MEMBER_ARGUMENTS
from sift_mm.config.nodes import hook_place, walk
from sift_mm.config.overrides import TOP_LEVEL
from sift_mm.errors import UserError
from sift_mm.names import shortened
from sift_mm.sparsity import RunOptions


def keys_of(cfg: Config) -> dict[str, None]:
    """Return the dotted keys that a run reads, with those left at defaults.

    Arguments of ``SparseTrainingHook`` and of a Sparse-IFT backbone are keys
    that a config may leave out.
    """
    found = [
        key
        for name in TOP_LEVEL
        if name in cfg
        for key, _ in walk(cfg[name], name)
    ]
    if (place := hook_of(cfg)) is not None:
        found += [f'{place}.{option.name}' for option in fields(RunOptions)]
        found.append(f'{place}.algorithm.structure')
        known = arguments(cfg, backbone_node(cfg).get('type'))
        found += [
            f'{backbone_key(cfg)}.{name}'
            for name in MEMBER_ARGUMENTS
            if name in known
        ]
    return dict.fromkeys(found)


def hook_of(cfg: Config) -> str | None:
    """Return the key of ``SparseTrainingHook``, None without one."""
    place = hook_place(cfg)
    return None if place is None else f'custom_hooks.{place}'


def find_key(option: str, text: str, *configs: Config) -> str:
    """Return the only key of some configs that is, or ends in, a text.

    Args:
        option (str): Start of the sentence of an error.
        text (str): Whole key, or its last parts, such as ``optimizer.lr``.
        *configs (Config): Configs, of which one needs the key.

    Raises:
        UserError: If no key ends so, with the most similar ones, or several.
    """
    known = dict.fromkeys(key for cfg in configs for key in keys_of(cfg))
    if text in known:
        return text
    found = [key for key in known if key.endswith(f'.{text}')]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f'{option}: {len(found)} keys of the config end in {text}: '
            f'{shortened(found)}; write the whole key.'
        )
    near = _similar(text, known)
    hint = f'; did you mean {shortened(near)}?' if near else '.'
    raise UserError(f'{option}: no key of the config ends in {text}{hint}')


def _similar(text: str, known: dict[str, None]) -> list[str]:
    """Return the keys whose last part is most like that of a text."""
    last = {key: key.rpartition('.')[2].casefold() for key in known}
    wanted = text.rpartition('.')[2].casefold()
    near = difflib.get_close_matches(wanted, set(last.values()), 3)
    return [key for name in near for key, end in last.items() if end == name]
