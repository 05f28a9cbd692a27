"""The chain of docs/transfer.md, command for command, on mini sets."""

import json
import re

from helpers.forked_scripts import run_forked
from helpers.runs import ROOT

SECTION = (ROOT / 'docs/transfer.md').read_text().partition('in small\n')[2]
COMMANDS = re.findall(
    r'(?m)^ *(?:python tools/|sift-)(train|test)(?:\.py)? (.*)$', SECTION
)
LOADERS = {'train': ('train', 'val'), 'test': ('test',)}


def test_the_commands_do_as_the_page_says(tmp_path, in_checkout):
    assert [tool for tool, _ in COMMANDS] == ['train', 'train', 'test']
    for tool, line in COMMANDS:
        config, *words = line.split()
        dense = config.replace('-sift-wide-s75', '').replace('_rigl-', '_')
        assert dense != config and (ROOT / dense).exists()
        words += [f'--out={tmp_path / "result.json"}'] * (tool == 'test')
        words.append('--cfg-options')
        for phase in LOADERS[tool]:
            workers = 'num_workers=0', 'persistent_workers=False'
            words += [f'{phase}_dataloader.{word}' for word in workers]
        if tool == 'train':
            words += ['train_dataloader.batch_size=2']
            words += ['custom_hooks.0.interval=1']
        done = run_forked(ROOT / f'tools/{tool}.py', ROOT / config, *words)
        assert done.returncode == 0, done.stdout
    result = json.loads((tmp_path / 'result.json').read_text())
    # The row of the pretrained wide detector.
    (row,) = re.findall(r'\| detector \| wide \| pretrained .*', SECTION)
    *_, flops, active, density, _ = row.split(' | ')
    assert f'{result["flops"] / 1e9:.3f}' == flops
    assert f'{result["active_parameters"] / 1e6:.2f} M' == active
    assert f'{result["density"]:.3f}' == density
