"""Check of the data of a run."""

import os
import os.path as osp
from collections.abc import Iterable, Iterator
from typing import Any

from mmengine.config import Config

from sift_mm.config.nodes import type_name
from sift_mm.data import find_data_set
from sift_mm.errors import UserError

LOCAL = dict(backend='local')
LOCAL_BACKENDS = ('local', 'disk', 'LocalBackend', 'HardDiskBackend')


def leaf_datasets(cfg: Any) -> Iterator[dict]:
    """Yield the configs of the datasets inside all wrappers.

    RepeatDataset has the key ``dataset``, ConcatDataset ``datasets``.
    """
    if isinstance(cfg, (list, tuple)):
        for child in cfg:
            yield from leaf_datasets(child)
    elif isinstance(cfg, dict):
        inner = cfg.get('datasets') or cfg.get('dataset')
        if inner is None:
            yield cfg
        else:
            yield from leaf_datasets(inner)


def _prefixes(cfg: dict) -> dict[str, str]:
    """Return the folders of a dataset by content, relative to its root."""
    prefix = cfg.get('data_prefix') or {}
    if isinstance(prefix, str):
        prefix = dict(img_path=prefix)
    if not prefix and type_name(cfg).startswith('ImageNet'):
        # In MMPreTrain's ImageNet, the split names the folder.
        prefix = dict(img_path=cfg.get('split') or '')
    return {k: v for k, v in prefix.items() if isinstance(v, str)}


def _annotations(cfg: dict) -> list[str]:
    """Return the annotation file of a dataset, relative to its root."""
    ann_file = cfg.get('ann_file')
    return [ann_file] if ann_file and isinstance(ann_file, str) else []


def _exists(path: str) -> bool:
    """Return whether a file, or a folder that is not empty, exists."""
    path = osp.expanduser(path)
    if osp.isdir(path):
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    return osp.exists(path)


def _is_complete(cfg: dict) -> bool:
    """Return whether all local files of a dataset exist."""
    root = cfg.get('data_root') or ''
    known = find_data_set(type_name(cfg))
    fetches = known is not None and known.fetches_itself
    reads = cfg.get('backend_args') or cfg.get('file_client_args') or LOCAL
    is_remote = reads.get('backend') not in LOCAL_BACKENDS or '://' in root
    if cfg.get('download', fetches) or is_remote:
        return True
    wanted = [*_annotations(cfg), *_prefixes(cfg).values()]
    paths = filter(None, [root, *(osp.join(root, path) for path in wanted)])
    return all('://' in path or _exists(path) for path in paths)


def _describe(cfg: dict) -> str:
    """Return the expected contents of a dataset's root."""
    parts = _annotations(cfg)
    known = find_data_set(type_name(cfg))
    if known is not None and known.contents and not parts:
        return known.contents
    for key, prefix in _prefixes(cfg).items():
        folder = prefix.rstrip('/')
        if folder and 'img' in key:
            folder = f'the images of {folder}'
        elif folder and 'seg' in key:
            folder = f'the label maps of {folder}'
        parts += [folder] if folder else []
    return ' and '.join(parts) or f'the {type_name(cfg)} data'


def check_data(cfg: Config, phases: Iterable[str]) -> None:
    """Refuse a run whose data is missing, before anything is built.

    Only local paths are checked. A dataset that downloads itself or reads from
    a remote backend passes.

    Args:
        cfg (Config): Config of a run.
        phases (Iterable[str]): Phases to check: 'train', 'val' or 'test'.

    Raises:
        UserError: If data is missing.
    """
    missing: dict[str, dict[str, None]] = {}
    remedies: dict[str, None] = {}
    for phase in phases:
        loader = cfg.get(f'{phase}_dataloader')
        if not loader:
            raise UserError(f'The config has no {phase}_dataloader.')
        for leaf in leaf_datasets(loader.get('dataset', [])):
            if _is_complete(leaf):
                continue
            root = osp.abspath(leaf.get('data_root') or '.')
            # A dict keeps the order, a set would not.
            missing.setdefault(root, {})[_describe(leaf)] = None
            known = find_data_set(type_name(leaf))
            if known is not None and known.remedy:
                remedies[f'for {known.title}, {known.remedy}'] = None
    if missing:
        places = '; '.join(
            f'looked in {root}, which should hold {", ".join(contents)}'
            for root, contents in missing.items()
        )
        advice = ''.join(f'{remedy}; ' for remedy in remedies)
        raise UserError(
            f'The data is missing: {places}; {advice}`make demo` fetches '
            'small data of its own.'
        )
