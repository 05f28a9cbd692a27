"""Sweep: its networks, its order and its report."""

import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.fake_tools import new_calls
from helpers.forked_scripts import run_forked
from helpers.runs import ROOT, write_config
from helpers.sparse_runs import sparse_config
from sift_mm.cli import experiments, sweep
from sift_mm.cli.reports.markdown import markdown_table
from sift_mm.cli.sweep_networks import Network, plan_networks
from sift_mm.errors import UserError
from sift_mm.sparsity import ALGORITHMS

pytestmark = pytest.mark.usefixtures('fresh_process')


def plan(*argv):
    return plan_networks(sweep.parse_args(['d.py', 's.py', *argv]))


def test_all_members_by_default():
    names = [n.name for n in plan()]
    # Four members x 3 x 2 with masks, one x 3 without, and the dense one.
    assert len(names) == len(set(names)) == 4 * 3 * 2 + 3 + 1
    assert names[0] == 'dense' and 'wide_factorized-s90' in names


def test_names_are_those_of_the_registries_in_any_case(capsys):
    (_, found) = plan(
        *('--family', 'WIDE', '--algorithm', 'rigl', '--sparsity', '0.75')
    )
    assert (found.family, found.algorithm) == ('wide', 'RigL')
    with pytest.raises(SystemExit):
        plan('--algorithm', 'none')
    said = capsys.readouterr().err
    assert all(name in said for name in ALGORITHMS.names)


def test_inner_layers_and_settings_are_axes():
    argv = '--family wide factorized --sparsity 0.75 --algorithm RigL'.split()
    axes = [*argv, '--inner', 'NONE', 'norm_act']
    axes += ['--cfg-options', 'custom_hooks.0.interval=50', 'a.lr=[1,2]']
    axes += ['--cfg-options', 'custom_hooks.0.interval=100']
    networks = plan(*axes)
    assert [n.name for n in networks] == [
        'dense',
        # Wide has no inner layers.
        'wide-s75-rigl-interval=50-lr=_1_2_',
        'wide-s75-rigl-interval=100',
        'factorized-s75-rigl-none-interval=50-lr=_1_2_',
        'factorized-s75-rigl-none-interval=100',
        'factorized-s75-rigl-norm_act-interval=50-lr=_1_2_',
        'factorized-s75-rigl-norm_act-interval=100',
    ]
    assert networks[-1].variant == 'norm_act-interval=100'
    run = networks[-1].experiment(Path('runs'), 3)
    assert run.folder == Path('runs', networks[-1].name, 'seed3')
    assert run.options == (
        *('--family', 'factorized', '--sparsity', '0.75'),
        *('--algorithm', 'RigL', '--inner', 'norm_act'),
    )
    assert run.cfg_options == (
        'custom_hooks.0.interval=100',
        'randomness.seed=3',
    )
    # The dense network stays as its config says.
    assert networks[0] == Network('d.py')
    with pytest.raises(UserError, match='folder wide-s75-rigl-lr=1: '):
        plan(*argv, '--cfg-options', 'a.lr=1', '--cfg-options', 'b.lr=1')


@pytest.fixture
def two(standins):
    """Write configs of a dense and a sparse network, for stand-ins."""
    for name in ('d_1e.py', 's_1e.py'):
        Path(name).write_text('train_cfg = dict(max_epochs=1)')
    return ['d_1e.py', 's_1e.py', '--seeds', '2']


def test_runs_of_a_seed_come_first_and_small_ones_in_it(two, capsys):
    args = [*two, '--family', 'wide_factorized', '--sparsity', '0.75', '0.5']
    sweep.main(args)
    order = [words[1] for words in new_calls() if words[0] == 'test']
    assert order == ['1'] * 6  # The default of --threads.
    done = [
        line.partition(':')[0]
        for line in capsys.readouterr().out.splitlines()
        if ': {' in line
    ]
    assert done == [
        f'{name}/seed{seed}'
        for seed in (0, 1)
        for name in ('dense', 'wide_factorized-s50', 'wide_factorized-s75')
    ]
    # The runs of other configs lie elsewhere.
    assert Path('work_dirs/sweep/d_1e/dense/seed1/result.json').exists()


def test_columns_of_a_table_are_aligned():
    assert markdown_table([{'a': '1', 'bb': '22'}]).splitlines() == [
        '| a   | bb  |',
        '| --- | --- |',
        '| 1   | 22  |',
    ]


def test_a_report_is_of_runs_that_are_done(two, capsys):
    args = [*two, '--family', 'factorized', '--sparsity', '0.5']
    args += ['--algorithm', 'SET', '--inner', 'norm']
    report = [*args, '--report', 'r.md', '--metric']
    with pytest.raises(SystemExit, match='No run of the dense network'):
        sweep.main([*report, 'mIoU'])
    sweep.main(args)
    sweep.main([*args, '--report', 'new/r.md', '--metric', 'mIoU'])
    sweep.main([*report, 'mIoU'])
    text = Path('r.md').read_text()
    assert Path('new/r.md').read_text() == text
    (row,) = re.findall(r'\| factorized-s50-set-norm .*', text)
    assert '| 40.00 | 0.00 ' in row and '| +0.00 ' in row
    assert b'factorized-set-norm' in Path('r-d_1e.svg').read_bytes()

    # A run of another config is not in the table.
    root = Path('work_dirs/sweep/d_1e')
    (root / 'dense/seed0/plan.txt').write_text('another')
    other = '<!-- sweep o: begin -->\nits own\n<!-- sweep o: end -->\n'
    Path('r.md').write_text(f'Before\n{other}{text}After\n')
    sweep.main([*report, 'mIoU'])
    found = Path('r.md').read_text()
    assert found.startswith(f'Before\n{other}') and found.endswith('After\n')
    assert re.search(r'\| dense .* 1 +\| 40.00 ', found)
    # Runs that are not in the table are named, there and on the screen.
    assert 'Not finished, and not in it: dense/seed0.' in found
    assert '1 runs are not finished, and not in it' in capsys.readouterr().out

    with pytest.raises(SystemExit, match='metric top1; there are'):
        sweep.main([*report, 'top1'])
    for text in (
        'no marks',
        '<!-- sweep d_1e: end --><!-- sweep d_1e: begin -->',
    ):
        Path('r.md').write_text(text)
        with pytest.raises(SystemExit, match='lacks the lines .*d_1e: begin'):
            sweep.main([*report, 'mIoU'])
        assert Path('r.md').read_text() == text


def test_what_no_run_could_start_from_is_refused(two):
    Path('file').write_text('')
    for words, said in (
        (['none.py', *two[1:]], 'none.py'),
        ([two[0], 'none.py'], 'none.py'),
        ([*two, '--work-dir', 'file'], 'file cannot be .*--work-dir'),
    ):
        with pytest.raises(SystemExit, match=said):
            sweep.main(words)
    assert not new_calls()


class ForkedTool:
    """A process of a tool, without importing all libraries again."""

    def __init__(self, command, stdout, **_):
        _, option, module, *words = command
        assert option == '-m'
        tool = ROOT / 'tools' / f'{module.rpartition(".")[2]}.py'
        done = run_forked(tool, *words)
        stdout.write(done.stdout)
        self.status = done.returncode

    def wait(self):
        return self.status


def test_the_tools_do_what_a_sweep_asks(data, tmp_path, capsys, monkeypatch):
    forking = SimpleNamespace(**vars(subprocess) | dict(Popen=ForkedTool))
    monkeypatch.setattr(experiments, 'subprocess', forking)
    (tmp_path / 'dense').mkdir()
    dense = write_config(tmp_path / 'dense', 'mmseg', data['mmseg'])
    sparse = sparse_config(tmp_path / 'sparse', 'mmseg', data['mmseg'])
    args = f'{dense} {sparse} --family wide --sparsity 0.75 --seeds 1'.split()
    args += '--algorithm RigL --work-dir runs'.split()
    args += ['--cfg-options', 'optim_wrapper.optimizer.lr=0.1']
    sweep.main(args)
    said = capsys.readouterr().out
    assert said.startswith('2 runs to do')
    for name in ('dense', 'wide-s75-rigl-lr=0.1'):
        assert f'\n{name}/seed0: {{"' in said
        folder = tmp_path / 'runs' / name / 'seed0'
        # Of training alone.
        assert len(list(folder.glob('*/vis_data/scalars.json'))) == 1
        result = json.loads((folder / 'result.json').read_text())
        assert 0 <= result['mIoU'] <= 100
        assert result['density'] == (
            1 if name == 'dense' else pytest.approx(0.25, abs=0.06)
        )
        logged = (folder / 'train.log').read_text()
        assert 'Iter(train) [' in logged  # As progress shows.
        rate = '1.0000e-03' if name == 'dense' else '1.0000e-01'
        assert f'lr: {rate}' in logged
    assert (tmp_path / 'runs/report/report.html').exists()
    sweep.main(args)
    assert capsys.readouterr().out.startswith('0 runs to do')


@pytest.mark.parametrize(
    'option, said',
    [
        (['--sparsity', '0.5', '2'], 'got 2.0'),
        (['--jobs', '0'], "'0' is not a whole number above zero"),
    ],
)
def test_options_that_no_run_could_have_are_refused(option, said, capsys):
    with pytest.raises(SystemExit):
        sweep.parse_args(['dense.py', 'sparse.py', *option])
    assert said in capsys.readouterr().err
