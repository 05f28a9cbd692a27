"""Which checkpoint a run goes on from, and which cannot be used."""

import os.path as osp
import re
from pathlib import Path
from string import digits

from mmengine.config import Config

from sift_mm.checkpoint import check_resumable, named, pretrained_cfg
from sift_mm.config.nodes import walk
from sift_mm.errors import Mistake
from sift_mm.reading import read


def check_checkpoint(path: str) -> None:
    """Stops with a sentence if a local checkpoint cannot be read.

    An address such as ``torchvision://`` is left to MMEngine.

    Raises:
        Mistake: If there is no such file, or a bad one.
    """
    if not _is_address(path):
        read(path)


def _is_address(path: str) -> bool:
    return '://' in path


def find_start(cfg: Config, resume: str | None = None) -> list[str]:
    """Settles which checkpoint a run goes on from, in ``cfg.load_from``.

    Args:
        cfg (Config): Config of a run, changed in place.
        resume (str, optional): A checkpoint; 'auto' for the newest one in
            the work dir; None for what the config says.

    Returns:
        list[str]: What the log has to say of it.

    Raises:
        Mistake: If the checkpoint, or each in the work dir, is none that a
            run can go on from.
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
    # Where there is nothing yet, load_from of the config holds.
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
    """Refuse a file to resume from, and say which one would do."""
    if _is_address(path):
        return
    try:
        _progress(Path(path))
    except Mistake as error:
        beside = _numbered(Path(path).expanduser().parent)
        try:
            found, _ = _newest_whole(beside)
        except Mistake:
            found = None
        other = f' The newest whole one beside it is {found}.' if found else ''
        raise Mistake(f'{error}{other}') from error


def _candidates(cfg: Config) -> list[Path]:
    """What a run may have saved: in its folder, and where it says so."""
    folder = Path(cfg.work_dir)
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    found = _numbered(folder)
    if hook.get('out_dir'):
        # As MMEngine makes it.
        found += _numbered(Path(hook['out_dir'], folder.resolve().name))
    last = folder / 'last_checkpoint'
    text = last.read_text(errors='replace').strip() if last.is_file() else ''
    if text and not _is_address(text):
        known = [osp.abspath(path) for path in found]
        found += [Path(text)] if osp.abspath(text) not in known else []
    return found


def _numbered(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by the names that MMEngine gives them.

    Best and published ones, which have longer names, go on with no run.
    """
    return [
        path
        for path in folder.glob('*.pth')
        if re.fullmatch(r'(epoch|iter)_\d+', path.stem)
    ]


def _newest_whole(paths: list[Path]) -> tuple[str | None, list[str]]:
    """The checkpoint that is furthest in its run, None of no paths.

    Those that are numbered alike are read from the last on, until one is
    whole; beside it is returned what is wrong with those before.

    Raises:
        Mistake: If none is whole.
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
            except Mistake as error:
                wrong.append(str(error))
    if found:
        return str(max(found)[1]), wrong
    if wrong:
        raise Mistake(
            'There are checkpoints, and none to resume from; remove them to '
            f'start at the beginning. {" ".join(wrong)}'
        )
    return None, []


def _progress(path: Path) -> int:
    """Iterations after which a checkpoint was saved, if a run goes on so."""
    checkpoint = read(path)
    with named(path):
        check_resumable(checkpoint)
    return checkpoint['meta']['iter']


def check_pretrained(cfg: Config) -> None:
    """Stops with a sentence if weights to start from cannot be read.

    A run that is resumed needs them no more, and is told, in its config, to
    leave those that are gone.

    Raises:
        Mistake: If a local file that the model or the run starts from does
            not exist, or is a bad one.
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
        # MMEngine takes paths with a tilde.
        full = osp.abspath(osp.expanduser(path))
        if _is_address(path) or osp.isfile(full):
            if not resumes:
                check_checkpoint(path)
        elif not resumes:
            raise Mistake(
                f'There is no checkpoint {full} to start from: train that '
                'network first, or name another file by --pretrained FILE or '
                f'--cfg-options {where}=FILE.'
            )
        else:
            lost.append(key)
    # From behind, so that one can be left out of a list.
    for key in reversed(lost):
        owner, _, name = key.rpartition('.')
        if isinstance(nodes[owner], list):
            nodes[owner].pop(int(name))
        else:
            nodes[owner][name] = None
