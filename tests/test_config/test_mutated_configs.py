"""Broken configs end in one sentence: mutations of the shipped ones.

``SIFT_MM_CASES`` says how many; ``SIFT_MM_SEED`` repeats a run.
"""

import math
import os
import random
import re
from functools import cache
from pathlib import Path

from mmengine.config import Config

from helpers.runs import ROOT
from sift_mm.cli import get_flops, print_config

CASES = int(os.environ.get('SIFT_MM_CASES', 0))
# The suite takes those with small networks.
CONFIGS = sorted((ROOT / 'configs').glob('*/*.py' if CASES else 'f*/*.py'))
OTHER = (
    *(None, '', 'x', 'model.backbone', -1, 0, -0.5, 3.7, math.nan, math.inf),
    *(10**15, True, [], [1, 'a'], {}, dict(type='Nothing'), (1, 2, 3)),
)


@cache
def shipped(path: Path) -> dict:
    return Config.fromfile(path).to_dict()


def nodes(node, key=()):
    """Yield all places in a config by their keys."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for name, value in items:
        yield (*key, name)
        if isinstance(value, (dict, list, tuple)):
            yield from nodes(value, (*key, name))


def mutable(node):
    """Copy a config with lists for tuples, so that every place can be set."""
    if isinstance(node, dict):
        return {k: mutable(v) for k, v in node.items()}
    if isinstance(node, (list, tuple)):
        return [mutable(v) for v in node]
    return node


def misspelt(name, draw):
    place = draw.randrange(len(name) + 1)
    letter = draw.choice('abcxyz_')
    return name[:place] + letter + name[place + draw.randrange(2) :]


def mutate(cfg, draw):
    """Change one place of a config; return what was done, in words."""
    parts = [key for key in nodes(cfg) if key[0] in PARTS]
    *way, name = draw.choice(parts)
    node = cfg
    for step in way:
        node = node[step]
    kind = draw.choice(['delete', 'value', 'value', 'name', 'swap'])
    if kind == 'delete':
        del node[name]
    elif kind == 'name' and isinstance(node[name], str):
        node[name] = misspelt(node[name], draw)
    elif kind == 'name' and isinstance(name, str):
        node[misspelt(name, draw)] = node.pop(name)
    elif kind == 'swap':
        other = draw.choice(list(node) if isinstance(node, dict) else [0])
        node[name], node[other] = node[other], node[name]
    else:
        node[name] = draw.choice(OTHER)
    return f'{kind} {".".join(map(str, [*way, name]))}'


PARTS = (
    *('model', 'custom_hooks', 'data_preprocessor', 'default_scope'),
    *('train_dataloader', 'test_dataloader', 'train_cfg', 'custom_imports'),
    *('default_hooks', 'auto_scale_lr', 'test_pipeline', 'work_dir'),
)


def text(cfg):
    lines = [f'{key} = {value!r}' for key, value in cfg.items()]
    return re.sub(r'\b(nan|inf)\b', r"float('\1')", '\n'.join(lines))


def ends_well(main, argv, capsys):
    """Run a command; it may stop only with one sentence and code 2."""
    try:
        main(argv)
    except SystemExit as stop:
        said = capsys.readouterr().err.strip()
        assert stop.code == 2, said
        last = said.splitlines()[-1]
        assert last == str(stop).strip() and last[-1] in '.?', said
        assert 'Traceback' not in said and len(last) < 900
    return True


def case(seed, capsys, folder):
    draw = random.Random(seed)
    cfg = mutable(shipped(draw.choice(CONFIGS)))
    done = [mutate(cfg, draw) for _ in range(draw.choice([1, 1, 2]))]
    print(f'seed {seed}: {", ".join(done)}')
    path = folder / 'mutated.py'
    path.write_text(text(cfg))
    member = draw.choice([[], ['--family', 'wide', '--sparsity', '0.75']])
    ends_well(print_config.main, [str(path), *member], capsys)
    ends_well(get_flops.main, [str(path), *member], capsys)


def test_a_broken_config_ends_in_a_sentence(capsys, tmp_path):
    first = int(os.environ.get('SIFT_MM_SEED', random.randrange(10**6)))
    for seed in range(first, first + min(CASES or 12, 1000)):
        case(seed, capsys, tmp_path)
