"""Search and checks of the checkpoint that a run resumes or starts from."""

import os.path as osp
import re
from pathlib import Path
from string import digits

from mmengine.config import Config

from sift_mm.checkpoint.reading import is_address, read
from sift_mm.checkpoint.state import (
    check_resumable,
    pretrained_cfg,
    with_context,
)
from sift_mm.config.nodes import walk
from sift_mm.errors import UserError


def check_checkpoint(path: str) -> None:
    """Refuse a local checkpoint that cannot be read.

    An address such as ``torchvision://`` is left to MMEngine.

    Raises:
        UserError: If there is no such file, or a bad one.
    """
    if not is_address(path):
        read(path, keep=True)


def find_start(cfg: Config, resume: str | None = None) -> list[str]:
    """Set ``cfg.load_from`` to the checkpoint that a run resumes from.

    Args:
        cfg (Config): Config of a run, changed in place.
        resume (str, optional): A checkpoint; 'auto' for the newest one in
            the work dir; None for the config's setting.

    Returns:
        list[str]: Lines for the log.

    Raises:
        UserError: If no run can resume from the checkpoint, or from any in the
            work dir.
    """
    if resume is None:
        if not cfg.get('resume'):
            return []
        resume = cfg.get('load_from') or 'auto'
    if resume != 'auto':
        _check_start(resume)
        cfg.resume, cfg.load_from = True, resume
        return []
    found, passed = _newest_whole(_candidates(cfg))
    # Without any, load_from of the config stays.
    cfg.resume = found is not None
    if found is None:
        return [
            f'There is no checkpoint in {cfg.work_dir} to resume from: the '
            'run starts at its beginning.'
        ]
    cfg.load_from = found
    return [
        *(f'A newer checkpoint is passed over. {reason}' for reason in passed),
        f'The run is resumed from {found}.',
    ]


def _check_start(path: str) -> None:
    """Refuse a bad file to resume from, and name a whole one beside it."""
    if is_address(path):
        return
    try:
        _progress(Path(path))
    except UserError as error:
        beside = _numbered(Path(path).expanduser().parent)
        try:
            found, _ = _newest_whole(beside)
        except UserError:
            found = None
        other = f' The newest whole one beside it is {found}.' if found else ''
        raise UserError(f'{error}{other}') from error


def _candidates(cfg: Config) -> list[Path]:
    """List the checkpoints of a run, in its work dir and in ``out_dir``."""
    folder = Path(cfg.work_dir)
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    found = _numbered(folder)
    if hook.get('out_dir'):
        # MMEngine's name of the folder.
        found += _numbered(Path(hook['out_dir'], folder.resolve().name))
    last = folder / 'last_checkpoint'
    text = last.read_text(errors='replace').strip() if last.is_file() else ''
    if text and not is_address(text):
        known = [osp.abspath(path) for path in found]
        found += [Path(text)] if osp.abspath(text) not in known else []
    return found


def _numbered(folder: Path) -> list[Path]:
    """List the checkpoints in a folder that have MMEngine's names.

    No run resumes from best and published ones, which have longer names.
    """
    return [
        path
        for path in folder.glob('*.pth')
        if re.fullmatch(r'(epoch|iter)_\d+', path.stem)
    ]


def _newest_whole(paths: list[Path]) -> tuple[str | None, list[str]]:
    """Return the whole checkpoint that is furthest in its run, or None.

    For each kind (epochs, iterations), files are read from the last one back
    to the first whole one. Errors of broken files are returned too.

    Raises:
        UserError: If all are broken.
    """
    kinds: dict[str, list[tuple[int, Path]]] = {}
    for path in paths:
        kind = path.stem.rstrip(digits)
        number = int(path.stem.removeprefix(kind) or -1)
        kinds.setdefault(kind, []).append((number, path))
    found, wrong = [], []
    for numbered in kinds.values():
        for _, path in sorted(numbered, reverse=True):
            try:
                found.append((_progress(path), path))
                break
            except UserError as error:
                wrong.append(str(error))
    if found:
        return str(max(found)[1]), wrong
    if wrong:
        raise UserError(
            'There are checkpoints, and none to resume from; remove them to '
            f'start at the beginning. {" ".join(wrong)}'
        )
    return None, []


def _progress(path: Path) -> int:
    """Return the iteration of a checkpoint that a run can resume from."""
    checkpoint = read(path, keep=True)
    with with_context(path):
        check_resumable(checkpoint)
    return checkpoint['meta']['iter']


def check_pretrained(cfg: Config) -> None:
    """Refuse a config whose initial weights cannot be read.

    A resumed run does not need them: missing files are removed from its
    config.

    Raises:
        UserError: If a local file of initial weights is missing or broken.
    """
    resumes = bool(cfg.get('resume') and cfg.get('load_from'))
    if cfg.get('load_from') and not resumes:
        check_checkpoint(cfg.load_from)
    nodes = dict(walk(cfg.model, 'model'))
    lost = []
    for key, node in nodes.items():
        path, where = node, key
        if isinstance(node, dict) and (config := pretrained_cfg(node)):
            path, where = str(config.get('checkpoint')), f'{key}.checkpoint'
        elif not (isinstance(node, str) and key.endswith('.pretrained')):
            continue
        # MMEngine accepts paths with a tilde.
        full = osp.abspath(osp.expanduser(path))
        if is_address(path) or osp.isfile(full):
            if not resumes:
                check_checkpoint(path)
        elif not resumes:
            raise UserError(
                f'There is no checkpoint {full} to start from: train that '
                'network first, or name another file by --pretrained FILE or '
                f'--cfg-options {where}=FILE.'
            )
        else:
            lost.append(key)
    # From the end, so that the indices of a list stay right.
    for key in reversed(lost):
        owner, _, name = key.rpartition('.')
        if isinstance(nodes[owner], list):
            nodes[owner].pop(int(name))
        else:
            nodes[owner][name] = None
