"""Says at once, and in one sentence, which checkpoint of a run is missing."""

import os.path as osp
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint

from sift_mm.checkpoint import pretrained_cfg
from sift_mm.errors import Mistake


def check_checkpoint(path: str) -> None:
    """Stops with a sentence if a local checkpoint does not exist.

    Args:
        path (str): Path, or an address such as ``https://`` or
            ``torchvision://``, which is left to MMEngine.

    Raises:
        Mistake: If it is a path and there is no such file.
    """
    if not _is_there(path):
        raise Mistake(f'There is no checkpoint {_full_path(path)}.')


def _is_there(path: str) -> bool:
    """Whether there is such a file; an address is MMEngine's business."""
    return '://' in path or osp.isfile(_full_path(path))


def _full_path(path: str) -> str:
    # MMEngine takes paths with a tilde.
    return osp.abspath(osp.expanduser(path))


def check_pretrained(cfg: Config) -> None:
    """Stops with a sentence if weights to start from are not there.

    A run that is resumed needs them no more, and is told to leave them.

    Args:
        cfg (Config): Config of a run, changed in place.

    Raises:
        Mistake: If the model names a local file that does not exist.
    """
    resumes = cfg.get('resume') and (
        cfg.get('load_from') or find_latest_checkpoint(cfg.work_dir)
    )
    missing = [
        source
        for source in _pretrained_sources(cfg, 'model')
        if not _is_there(source[2])
    ]
    for owner, index, path, key in missing:
        if not resumes:
            raise Mistake(
                f'There is no checkpoint {_full_path(path)} to start from: '
                'train that network first, or name another file by '
                f'--pretrained FILE or --cfg-options {key}=FILE.'
            )
        if isinstance(owner, list):
            owner.pop(index)
        else:
            owner[index] = None


def _pretrained_sources(
    owner: Any, index: Any, key: str = 'model'
) -> Iterator[tuple[Any, Any, str, str]]:
    """What loads weights: where it stands, its path, and the path's key."""
    node = owner[index]
    if isinstance(node, dict):
        config = pretrained_cfg(node)
        if config is not None:
            yield (
                owner,
                index,
                str(config.get('checkpoint')),
                (f'{key}.checkpoint'),
            )
        if isinstance(node.get('pretrained'), str):
            yield node, 'pretrained', node['pretrained'], f'{key}.pretrained'
        for name in node:
            yield from _pretrained_sources(node, name, f'{key}.{name}')
    elif isinstance(node, list):
        # From behind, so that one can be left out.
        for i in reversed(range(len(node))):
            yield from _pretrained_sources(node, i, f'{key}.{i}')
