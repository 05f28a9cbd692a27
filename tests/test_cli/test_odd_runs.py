"""The report of runs that are odd, damaged, or many."""

import json
from pathlib import Path

import pytest

from helpers.report_pages import charts, read_csv, report, write_tested
from sift_mm.cli import html_report

WIDE = """
model = dict(backbone=dict(family='wide', sparsity=0.75))
custom_hooks = [dict(type='SparseTrainingHook')]
"""
LOOP = 'train_cfg = dict(by_epoch=True, max_epochs=4)\n'


def write_run(folder, *records, config='', session='20260101_000000', **run):
    """Write a work dir with a session of scalars, and its run.json."""
    logs = Path(folder, session, 'vis_data')
    logs.mkdir(parents=True)
    (logs / 'config.py').write_text(f'a = 1\n{config}')
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (logs / 'scalars.json').write_text('\n'.join(lines))
    if run:
        (logs.parent / 'run.json').write_text(json.dumps(run))


def step(number, loss=1.0, **more):
    return dict(step=number, iter=number, loss=loss, **more)


def valid(number, **metrics):
    return dict(step=number, **metrics)


@pytest.mark.parametrize('pretrained', ['None', "'dense.pth'"])
def test_a_resumed_seed_stays_with_its_network(pretrained):
    start = f'load_from = {pretrained}'
    for seed in (0, 1):
        write_run(f'r/net/seed{seed}', step(1), config=start, seed=seed)
    again = "resume = True\nload_from = '/r/net/seed1/epoch_1.pth'"
    write_run('r/net/seed1', step(2), config=again, session='20260102', seed=1)
    other = "load_from = 'another.pth'"
    write_run('r/other/seed0', step(1), config=other, seed=0)
    facts = report('r')[1].rows('What was run')
    assert {n: f['seeds'] for n, f in facts.items()} == {
        'net': '0, 1',
        'other': '0',
    }


def test_a_training_that_diverged_or_was_killed_is_shown():
    run = 'half'
    write_run(
        run,
        *(step(1, 2.0, time=3.0), step(2, float('nan'), time=3.0)),
        valid(2, mIoU=float('nan')),
        *(step(3, float('inf'), time=3.0), '[1]', 'null', '{"step": 4, "lo'),
        config=LOOP,
        status='running',
        seconds=1.5,  # written at the last validation
        metrics={},
    )
    log = Path(run, '20260101_000000')
    (log / 'gone').symlink_to('nowhere')  # As a file that is replaced.
    write_run(run, config=LOOP, session='20260102')
    Path(run, '20260102/run.json').write_text('["no", "record"]')
    text, page = report(run)
    assert 'not finite at 2 of 3 logged steps, first at iteration 2.' in text
    assert 'No run has a finite mIoU.' in text
    assert 'not finished, iteration 3, last written' in text
    (fact,) = page.rows('What was run').values()
    assert fact['training time'] == '0:00:09'
    # Tables without a row keep their head, which pandas asks for.
    assert Path('out/layers.csv').read_text().strip() == 'network'
    assert [row['mIoU'] for row in read_csv('summary.csv')] == ['nan']
    assert 'Training loss' in charts(text)
    text, _ = report(run, '--images', Path(run, '20260102/run.json'))
    assert 'not drawn on: no run detects or segments.' in text


def test_names_are_text_in_the_page():
    name = 'a <b>&"ü 漢 $x$ s'
    write_run(f'{name}/seed0', step(1), valid(1, acc=0.5), seed=0)
    write_run('dense', step(1), valid(1, loss_of='<i>'), config='b = 2')
    text, page = report(name, 'dense')
    assert [*page.rows('What was run')] == [name, 'dense']
    assert '<b>' not in text
    assert read_csv('runs.csv')[0]['network'] == name
    assert 'dense: there is no acc.' in text


def test_each_network_is_compared_with_the_dense_one_beside_it():
    for sweep, dense, wide in (('one', 10.0, 11.0), ('two', 80.0, 82.0)):
        for name, more, top1 in (('dense', '', dense), ('wide', WIDE, wide)):
            config = f"{more}\nsweep = '{sweep}'"
            folder = f'all/{sweep}/{name}/seed0'
            write_tested(folder, 0, config, **{'accuracy/top1': top1})
    # One that failed before its first step, and one of an older plan.
    for folder in ('all/one/wide/seed1', 'all/two/old-seed0-2026/test'):
        Path(folder, '2026/vis_data').mkdir(parents=True)
    Path('all/one/wide/seed1/plan.txt').write_text('{}')
    Path('all/one/wide/seed1/2026/vis_data').rmdir()
    text, page = report('all')
    found = page.rows('Comparison by accuracy/top1 (%)')
    assert '4 runs of 4 networks.' in text
    assert found['one/wide']['minus dense'] == '+1.00'
    assert found['two/wide']['minus dense'] == '+2.00'
    assert found['two/wide']['compared with'] == 'two/dense'
    assert 'one/wide/seed1: nothing to show; see ' in text
    # The page and the table say the same.
    for row in read_csv('networks.csv'):
        shown = found[row['network']]
        assert shown['mean'] == f'{float(row["mean"]):.2f}'
        assert shown['n'] == row['runs_with_metric']


def test_a_long_curve_ends_with_its_last_point():
    records = [step(i, loss=7e5 * (i == 1001)) for i in range(1, 1002)]
    write_run('run', *records)
    assert '>700000<' in charts(report('run')[0])['Training loss']


def test_metrics_by_iteration_are_not_epochs():
    hooks = 'default_hooks = dict(logger=dict(log_metric_by_epoch=False))'
    records = step(50, epoch=1), valid(50, acc=0.5)
    write_run('run', *records, config=LOOP + hooks)
    report('run')
    (row,) = read_csv('summary.csv')
    assert (row['iter'], row['train_loss'], row['acc']) == ('50', '1.0', '0.5')


def test_scripts_in_a_folder_are_not_run():
    Path('run').mkdir()
    Path('run/epoch_1.pth').write_bytes(b'half')
    Path('run/train.py').write_text('open("ran", "w")\na = 1')
    Path('run/wrong.py').write_text('a = (')
    text, _ = report('run')
    assert not Path('ran').exists() and 'run: no config was found.' in text


def test_the_first_run_with_a_checkpoint_is_looked_into():
    for seed in (0, 1):
        write_run(f'run/seed{seed}', step(1), config=WIDE, seed=seed)
    Path('run/seed1/epoch_1.pth').write_bytes(b'half')
    assert 'epoch_1.pth' in report('run')[0]


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(capsys):
    write_run('run', step(1))
    with pytest.raises(SystemExit):
        html_report.main(['run', '--out', '/proc/report'])
    said = capsys.readouterr().err
    assert '/proc/report cannot be written' in said and 'by --out' in said
