"""Axes and presets of a sweep, and its table of finished runs."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from helpers.fake_tools import METRICS, new_calls
from helpers.runs import ROOT, write_config
from helpers.sparse_runs import sparse_config
from sift_mm.cli import experiments, sweep
from sift_mm.cli.reports.run_dirs import Run
from sift_mm.cli.reports.run_groups import Comparison, Group, network_rows
from sift_mm.cli.sweep_axes import split
from sift_mm.cli.sweep_networks import plan_networks
from sift_mm.config.loading import read_config
from sift_mm.errors import UserError

NOWHERE = Path('nowhere')


@pytest.fixture
def configs(tmp_path):
    """Write a dense and a sparse config."""
    dense = write_config(tmp_path, 'mmpretrain', NOWHERE)
    return dense, sparse_config(tmp_path / 's', 'mmpretrain', NOWHERE)


def networks(configs, *argv):
    return plan_networks(sweep.parse_args([*configs, *argv]))


def test_any_key_is_an_axis_by_its_last_parts(configs):
    options = '--family wide wide_factorized --sparsity 0.75 --algorithm SET'
    axes = ['--axis', 'lr=0.05,0.1', '--axis', 'custom_hooks.0.interval=5,7']
    found = networks(configs, *options.split(), *axes)
    assert [n.name for n in found] == [
        'dense-lr=0.05',
        'dense-lr=0.1',
        'wide-s75-set-lr=0.05-interval=5',
        'wide-s75-set-lr=0.05-interval=7',
        'wide-s75-set-lr=0.1-interval=5',
        'wide-s75-set-lr=0.1-interval=7',
        # It has no masks, and so no hook.
        'wide_factorized-s75-lr=0.05',
        'wide_factorized-s75-lr=0.1',
    ]
    assert found[2].experiment(Path('runs'), 4).cfg_options == (
        'optim_wrapper.optimizer.lr=0.05',
        'custom_hooks.0.interval=5',
        'randomness.seed=4',
    )
    # An argument of the hook that the config leaves at its default.
    found = networks(configs, *options.split(), '--axis', 'end=0.5,1')
    assert found[1].cfg_options == ('custom_hooks.0.end=0.5',)
    assert found[0].name == 'dense'


def test_a_structure_is_an_axis_also_beside_the_name_of_a_rule(configs):
    structures = 'structure=Unstructured,Block'
    options = '--family wide --sparsity 0.75 --algorithm SET Static'.split()
    found = networks(configs, *options, '--axis', structures)
    assert [n.name.partition('-s')[2] for n in found[1:]] == [
        '75-set-structure=Unstructured',
        '75-set-structure=Block',
        '75-static-structure=Unstructured',
        '75-static-structure=Block',
    ]
    hook = 'custom_hooks.0.algorithm.structure'
    settings = {f'{hook}.type': 'Block', f'{hook}.filters': 4}
    for algorithm in ('SET', 'Static'):
        cfg = read_config(configs[1], settings, algorithm=algorithm)
        assert cfg.custom_hooks[0].algorithm == dict(
            type=algorithm, structure=dict(type='Block', filters=4)
        )


def test_values_are_split_outside_of_brackets():
    assert split('0.05,0.1') == ['0.05', '0.1']
    assert split('(6,4),[1,(2,3)]') == ['(6,4)', '[1,(2,3)]']


@pytest.mark.parametrize(
    ('axis', 'said'),
    [
        ('lr', r'write it as KEY=VALUE,VALUE\.'),
        ('lr=0.1,', r'write it as KEY=VALUE,VALUE\.'),
        ('lrr=1', r'ends in lrr; did you mean optim_wrapper\.optimizer\.lr\?'),
        ('qwzx=1', r'no key of the config ends in qwzx\.$'),
        (
            'interval=1',
            r'keys .* end in interval: .*custom_hooks\.0\.interval',
        ),
        ('sparsity=0.5', r'keys .* end in sparsity: .*model\.backbone'),
        ('model.backbone.sparsity=0.5', r'is set by --sparsity\.'),
        ('custom_hooks.0.algorithm=SET', r'is set by --algorithm\.'),
        ('seed=1', r'keys .* end in seed: .*randomness\.seed'),
        ('randomness.seed=1,2', r'is set by --seeds\.'),
        ('lr=[1,2', r'Imbalanced brackets'),
        ('custom_hooks.0.interval=5,0', r'custom_hooks\.0: .*interval'),
        ('optimizer.type=SGDD', r'no optimizer SGDD'),
        ('structure=Blok', r"did you mean 'Block'\?"),
        ('optimizer.lr=1,high', r'lr=high: .* number .* there; give a n'),
        ('optimizer.lr=1,-1', r'SGD cannot be built: Invalid learning rate'),
        (
            'max_epochs=1,-1',
            r'cfg.max_epochs has to be .* above zero',
        ),
        (
            'train_dataloader.batch_size=0',
            r'has to be .* above zero',
        ),
    ],
)
def test_an_axis_that_cannot_be_is_said(configs, axis, said):
    with pytest.raises(UserError, match=said):
        networks(configs, '--axis', axis)


def test_a_gpt_has_its_arguments_in_the_model():
    pair = [
        str(ROOT / f'configs/gpt/gpt-tiny{name}1xb16-2k_text.py')
        for name in ('_', '-sift-wide-s75_set-')
    ]
    axis = 'flops=match,nominal'
    found = networks(pair, '--family', 'wide', '--axis', axis)
    assert found[0].cfg_options == ()
    assert {n.cfg_options for n in found[1:]} == {
        ('model.flops=match',),
        ('model.flops=nominal',),
    }
    with pytest.raises(UserError, match='model.sparsity is set by --sparsity'):
        networks(pair, '--axis', 'model.sparsity=0.5')
    # A setting of the member counts before the conversion, which needs it.
    cfg = read_config(pair[0], {'model.sparsity': 0.5}, family='wide')
    assert (cfg.model.family, cfg.model.sparsity) == ('wide', 0.5)


def test_one_key_is_one_axis(configs):
    with pytest.raises(UserError, match='optimizer.lr is an axis already'):
        networks(configs, '--axis', 'lr=1', 'optimizer.lr=2')


def test_presets_are_options_that_others_replace():
    def names(*argv):
        return [n.name for n in networks(('d.py', 's.py'), *argv)]

    table7 = names('--preset', 'table7')
    # Four members with inner layers x 3 x 3, Wide at 3, and the dense one.
    assert len(table7) == 4 * 3 * 3 + 3 + 1
    for name in ('wide-s90-rigl', 'doped-s50-rigl-norm_act'):
        assert name in table7
    assert len(names('--preset', 'members')) == 5 * 3 + 1
    found = names('--preset', 'algorithms', '--sparsity', '0.9')
    assert found == [
        'dense',
        *(f'wide-s90-{n}' for n in ('static', 'set', 'rigl')),
    ]


def test_a_member_is_compared_with_dense_at_its_settings():
    values = {
        'dense-lr=1': 90.0,
        'dense-lr=2': 80.0,
        'wide-s75-rigl-lr=1-interval=5': 85.0,
        'wide-s75-rigl-lr=2-interval=5': 85.0,
    }
    groups = []
    for name, value in values.items():
        folder = Path('runs', name, 'seed0')
        folder.mkdir(parents=True)
        (folder / 'result.json').write_text(json.dumps({'top1': value}))
        groups.append(Group(name, (Run(folder),)))
    rows = network_rows(Comparison(groups, groups[:2], 'top1'))
    assert [row['difference'] for row in rows] == [None, None, -5, 5]


@pytest.mark.usefixtures('standins')
def test_rows_of_finished_runs_are_done_elsewhere(capsys, monkeypatch):
    monkeypatch.setattr(sweep.html_report, 'main', lambda *_: None)
    for name in ('d_1e.py', 's_1e.py'):
        Path(name).write_text('train_cfg = dict(max_epochs=1)')
    args = ['d_1e.py', 's_1e.py', '--family', 'wide', '--sparsity', '0.5']
    args += ['--algorithm', 'SET', '--seeds', '2', '--results', 'new/done.csv']
    sweep.main(args)
    assert len(new_calls()) == 2 * 2 * 2
    with open('new/done.csv', newline='') as file:
        rows = [*csv.DictReader(file)]
    assert [(row['sweep'], row['run']) for row in rows] == [
        ('d_1e', f'{name}/seed{seed}')
        for seed in (0, 1)
        for name in ('dense', 'wide-s50-set')
    ]
    # 10 steps of 0.5 s and 20 of 1.5 s.
    assert {row['seconds'] for row in rows} == {'35.0'}
    assert float(rows[0]['mIoU']) == METRICS['mIoU']

    shutil.rmtree('work_dirs')
    Path('s_1e.py').write_text('train_cfg = dict(max_epochs=1)\nseed = 1')
    experiments.content_of.cache_clear()
    capsys.readouterr()
    sweep.main([*args, '--seeds', '1'])
    said = capsys.readouterr().out
    # Runs of the sparse config have another plan.
    assert said.startswith('1 runs are done by new/done.csv\n1 runs to do\n')
    result = Path('work_dirs/sweep/d_1e/dense/seed0/result.json')
    assert json.loads(result.read_text()) == METRICS | dict(seconds=35.0)
    with open('new/done.csv', newline='') as file:
        assert len([*csv.DictReader(file)]) == 5

    Path('new/done.csv').write_text('run,mIoU\n')
    with pytest.raises(SystemExit, match='no column plan, seconds, sweep'):
        sweep.main(args)
