"""Types of a config's values: dicts, lists and modules with a ``type``."""

import re
from typing import Any

from mmengine.config import Config

from sift_mm.config.nodes import walk
from sift_mm.errors import UserError

PHASES = ('train', 'val', 'test')
# Keys whose values are dicts, where they are not None.
DICTS = (
    *('model', 'optim_wrapper', 'default_hooks', 'auto_scale_lr', 'env_cfg'),
    *('data_preprocessor', 'randomness', 'log_processor', 'visualizer'),
    *(f'{phase}_cfg' for phase in PHASES),
    *(f'{phase}_dataloader' for phase in PHASES),
    *('model.backbone', 'model.head', 'model.data_preprocessor'),
)
# Types of other values; an object is a part that is already built.
DATA = (str, int, float, list, tuple)
LISTS = re.compile(r'custom_hooks|\w+_dataloader\..*\bpipeline')
# Modules that a config builds.
MODULES = re.compile(
    r'model(\.(backbone|head|neck(\.\d+)?))?|custom_hooks\.\d+|'
    r'\w+_dataloader\..*\b(dataset|datasets\.\d+|pipeline\.\d+)'
)
# Whole numbers, with the least value of each and its words.
NUMBERS = tuple(
    (re.compile(key), least, f'a whole number{words}')
    for key, least, words in (
        (r'default_hooks\.\w+\.interval', -1, ''),
        (r'\w+_dataloader\.num_workers', 0, ', at least zero'),
        (r'\w+_dataloader\.batch_size', 1, ' above zero'),
        (r'train_cfg\.(val_interval|max_epochs|max_iters)', 1, ' above zero'),
    )
)


def check(fits: bool, key: str, value: object, what: str) -> None:
    """Raise a :class:`UserError` unless a value fits, with key and value."""
    if not fits:
        text = repr(value)
        text = text if len(text) < 80 else f'{text[:70]}...'
        raise UserError(
            f'{key} has to be {what}, not {text} ({type(value).__name__}).'
        )


def check_types(cfg: Config) -> None:
    """Refuse values that no run can read.

    Raises:
        UserError: For the first wrong value, with its key.
    """
    roots = (*DICTS[:-3], 'custom_hooks')
    nodes = [pair for name in roots for pair in walk(cfg.get(name), name)]
    for key, node in nodes:
        if node is None:
            continue
        if key in DICTS:
            check(not isinstance(node, DATA), key, node, 'a dict')
        several = isinstance(node, (list, tuple))
        if LISTS.fullmatch(key):
            check(several, key, node, 'a list')
        elif MODULES.fullmatch(key) and not (several and key == 'model.neck'):
            _check_module(node, key)
        for pattern, least, what in NUMBERS:
            if pattern.fullmatch(key):
                # MMEngine takes 4e4 iterations.
                whole = type(node) in (int, float) and node % 1 == 0
                check(whole and node >= least, key, node, what)


def _check_module(node: Any, key: str) -> None:
    """Refuse a module that is neither built nor a dict with a ``type``."""
    check(not isinstance(node, DATA), key, node, 'a dict')
    if not isinstance(node, dict):
        return
    kind = node.get('type')
    if kind is None:
        raise UserError(f'{key} has no type; add the name of its class.')
    named = isinstance(kind, str) or callable(kind)
    check(named, f'{key}.type', kind, 'the name of a class')
