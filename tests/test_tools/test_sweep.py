"""A sweep: what is run, resumed, reported."""

import json
import os
from pathlib import Path

import pytest
from minirun import ROOT, write_config
from sparserun import sparse_config

from sift_mm.cli import sweep
from sift_mm.experiments.sweep_report import (
    Cell,
    Network,
    to_markdown,
    write_report,
)

TESTS = ROOT / 'tests'
# Stand-ins for the tools. One network is killed at its first attempt, and the
# config stop.py interrupts the sweep.
TRAIN = """
import os, signal, sys, time
from pathlib import Path
folder = next(a for a in sys.argv if a.startswith('--work-dir='))
folder = Path(folder.removeprefix('--work-dir='))
with (folder / 'calls.txt').open('a') as calls:
    print(os.getpid(), os.environ['OMP_NUM_THREADS'], *sys.argv, file=calls)
log = folder / 'train.log'
if folder.parts[1] == 'wide_factorized-s50' and not log.read_text():
    print('about to die', flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == 'stop.py':
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)
(folder / 'last_checkpoint').write_text('last.pth')
"""
TEST = """
import sys
from pathlib import Path
assert sys.argv[2] == 'last.pth'
out = next(a for a in sys.argv if a.startswith('--out='))
Path(out.removeprefix('--out=')).write_text('{"top1": 90.0}')
"""
pytestmark = pytest.mark.usefixtures('fresh_process')


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """A folder for runs of tools that do next to nothing."""
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools/train.py').write_text(TRAIN)
    (tmp_path / 'tools/test.py').write_text(TEST)
    monkeypatch.setattr(sweep, 'ROOT', tmp_path)
    return tmp_path / 'runs'


def test_a_sweep_trains_each_once_and_reports(
    data, tmp_path, capsys, monkeypatch
):
    # MMSegmentation's visualizers have one name, which runs of one process
    # would share.
    monkeypatch.setenv('PYTHONPATH', str(TESTS))
    (tmp_path / 'dense').mkdir()
    dense = write_config(tmp_path / 'dense', 'mmseg', data['mmseg'])
    sparse = sparse_config(tmp_path / 'sparse', 'mmseg', data['mmseg'])
    args = [
        dense,
        sparse,
        '--family',
        'wide',
        '--sparsity',
        '0.75',
        '--algorithm',
        'RigL',
        '--seeds',
        '1',
        '--work-dir',
        'runs',
        '--metric',
        'mIoU',
    ]
    sweep.main(args)
    said = capsys.readouterr().out
    assert said.startswith('2 runs to do')
    assert '\nwide-s75-rigl/seed0: {"' in said
    for name in ('dense', 'wide-s75-rigl'):
        folder = tmp_path / 'runs' / name / 'seed0'
        assert list(folder.glob('*/vis_data/scalars.json'))
        result = json.loads((folder / 'result.json').read_text())
        assert 0 <= result['mIoU'] <= 100
        assert result['density'] == (
            1 if name == 'dense' else pytest.approx(0.25, abs=0.06)
        )
    sweep.main(args)
    assert capsys.readouterr().out.startswith('0 runs to do')

    report, name = tmp_path / 'results.md', Path(dense).stem
    # Another sweep's table stays as it is.
    other = '<!-- sweep other: begin -->\nits own\n<!-- sweep other: end -->\n'
    report.write_text(
        f'Before\n{other}<!-- sweep {name}: begin -->\nold\n'
        f'<!-- sweep {name}: end -->\nAfter\n'
    )
    sweep.main([*args, '--report', str(report)])
    text = report.read_text()
    assert text.startswith(f'Before\n{other}') and text.endswith('After\n')
    assert 'old' not in text and '| wide | 0.75 | RigL |' in text
    assert (tmp_path / f'results-{name}.png').stat().st_size > 5000


def test_a_run_that_is_killed_stops_no_other(stand_ins, capsys):
    args = [
        'dense.py',
        'sparse.py',
        '--family',
        'wide_factorized',
        '--sparsity',
        '0.5',
        '0.75',
        '--seeds',
        '1',
        '--threads',
        '3',
        '--work-dir',
        'runs',
    ]
    killed = 'wide_factorized-s50/seed0'
    with pytest.raises(
        SystemExit, match=f'^1 runs failed.* runs/{killed}/train.log'
    ):
        sweep.main(args)
    said = capsys.readouterr()
    assert said.out.startswith('3 runs to do')
    assert 'dense/seed0: {"top1": 90.0}' in said.out
    assert 'wide_factorized-s75/seed0: {"top1": 90.0}' in said.out
    assert 'about to die' in said.err
    assert (stand_ins / killed / 'train.log').read_text() == 'about to die\n'
    sweep.main(args)
    assert capsys.readouterr().out.startswith('1 runs to do')
    attempts = (stand_ins / killed / 'calls.txt').read_text().splitlines()
    _, threads, _, *words = attempts[1].split()
    assert len(attempts) == 2 and threads == '3'
    assert words == [
        'sparse.py',
        '--resume',
        '--family',
        'wide_factorized',
        '--sparsity',
        '0.5',
        f'--work-dir=runs/{killed}',
        '--cfg-options',
        'randomness.seed=0',
        'default_hooks.checkpoint.max_keep_ckpts=2',
    ]


def test_an_interrupt_ends_the_run_and_starts_no_other(stand_ins):
    with pytest.raises(KeyboardInterrupt):
        sweep.main(['stop.py', 'sparse.py', '--work-dir', 'runs'])
    (calls,) = stand_ins.glob('*/*/calls.txt')
    with pytest.raises(ProcessLookupError):
        os.kill(int(calls.read_text().split()[0]), 0)
    assert not list(stand_ins.rglob('result.json'))


def test_what_a_sweep_consists_of():
    args = sweep.parse_args(['baseline.py', 'sparse.py'])
    networks = [n.name for n in sweep.plan_networks(args)]
    # Four members x 3 x 2 with masks, one x 3 without, and the dense one.
    assert len(networks) == len(set(networks)) == 4 * 3 * 2 + 3 + 1
    assert networks[0] == 'dense' and 'wide_factorized-s90' in networks
    # The runs of other configs lie elsewhere.
    assert args.work_dir == Path('work_dirs/sweep/baseline')
    jobs = sweep.plan_jobs(args)
    assert len(jobs) == 3 * 28 and str(jobs[0]) == 'dense/seed0'
    assert [j.seed for j in jobs] == sorted(j.seed for j in jobs)
    assert jobs[0].network.config == 'baseline.py'
    assert Network('c.py', 'wide', 0.9, 'SET').argv() == [
        'c.py',
        '--family',
        'wide',
        '--sparsity',
        '0.9',
        '--algorithm',
        'SET',
    ]


def test_mean_and_spread_are_of_the_sample():
    dense = Cell(Network('d.py'), (90.0, 91.0, 92.0), 2e9, 1000, 1000)
    wide = Cell(
        Network('w.py', 'wide', 0.75, 'RigL'),
        (92.0, 94.0),
        1.998e9,
        4000,
        1000,
    )
    once = Cell(Network('w.py', 'wide', 0.9, 'RigL'), (92.0,), 2e9, 1, 1)
    lines = to_markdown([dense, wide, once], 'top1').splitlines()
    assert '| 91.00 ± 1.00 | - | 3 |' in lines[2]  # sqrt((1 + 0 + 1) / 2)
    assert '| 92.00 | +1.00 | 1 |' in lines[4]  # One run has no spread.
    ap = Cell(Network('d.py'), (0.3061, 0.3063), 2e9, 1000, 1000)
    assert '| 0.3062 ± 0.0001 |' in to_markdown([ap], 'mAP')
    # sqrt((1 + 1) / 1) = 1.41; 0.999 of the FLOPs.
    assert '| 0.9990 | 4.0 k | 1.0 k | 93.00 ± 1.41 | +2.00 | 2 |' in lines[3]


def test_a_report_needs_the_dense_network(tmp_path):
    report = tmp_path / 'r.md'
    with pytest.raises(SystemExit, match='no runs of the dense network'):
        write_report(report, 'd', [Network('d.py')], tmp_path, 'top1')
    result = tmp_path / 'dense/seed0/result.json'
    result.parent.mkdir(parents=True)
    for metric, missing in (('top1', 'top1'), ('mIoU', 'flops')):
        result.write_text('{"mIoU": 1}')
        with pytest.raises(SystemExit, match=f'no {missing}; there are mIoU'):
            write_report(report, 'd', [Network('d.py')], tmp_path, metric)
    result.write_text(
        '{"mIoU": 1, "flops": 2, "parameters": 3, "active_parameters": 3}'
    )
    for text in ('no marks', '<!-- sweep d: end --><!-- sweep d: begin -->'):
        report.write_text(text)
        with pytest.raises(SystemExit, match='lacks the lines .*sweep d: '):
            write_report(report, 'd', [Network('d.py')], tmp_path, 'mIoU')
        assert report.read_text() == text
