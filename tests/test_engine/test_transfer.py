"""Masks of a checkpoint that a run starts from: kept, trained, dropped."""

import pytest
import torch
from mmengine.hooks import Hook

from helpers.sparse_runs import load
from helpers.toy_runs import (
    assert_same,
    final_state,
    hook_of,
    pretrained_toy,
    toy_run,
    toy_runner,
)
from sift_mm.checkpoint.reading import read
from sift_mm.cli.publish_model import publish
from sift_mm.engine.transfer import Start
from sift_mm.sparsity import NM, Block, RunOptions

MASKS = dict(masks={}, transfer='')
TAKEN = dict(masks={}, transfer='fixed')


@pytest.mark.parametrize(
    'state, loaded, resumed, transfer, init, origin',
    [
        (None, False, False, 'fixed', False, 'drawn'),
        (None, False, False, 'dense', False, 'drawn'),
        (None, True, False, 'fixed', True, 'drawn'),
        (MASKS, True, False, 'fixed', True, 'drawn'),
        (MASKS, True, False, 'fixed', False, 'transferred'),
        (TAKEN, True, False, 'train', False, 'transferred'),
        (MASKS, True, False, 'dense', False, 'dropped'),
        (None, True, False, 'dense', False, 'dropped'),
        (None, True, False, 'train', False, 'without masks'),
        (MASKS, True, True, 'fixed', False, 'restored'),
        (MASKS, True, True, 'dense', False, 'restored'),
        (MASKS, True, True, 'fixed', True, 'restored'),
        (TAKEN, True, True, 'train', False, 'transferred'),
        (TAKEN, True, True, 'dense', False, 'drop them in the middle'),
        (None, True, True, 'dense', False, 'dropped'),
        (None, True, True, 'fixed', True, 'never guessed'),
    ],
)
def test_where_masks_come_from(state, loaded, resumed, transfer, init, origin):
    start = Start(state, loaded, resumed)
    options = RunOptions(
        init='Random' if init else None,
        transfer='fixed' if init else transfer,
    )
    if ' ' in origin:
        with pytest.raises(ValueError, match=origin):
            start.find_origin(options)
    else:
        assert start.find_origin(options).value == origin


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """Train masks; return the checkpoint."""
    folder = tmp_path_factory.mktemp('source')
    toy_run(folder, dict(), epochs=2)
    return folder / 'epoch_2.pth'


def masks_of(path):
    return load(path)['sparse_training']['masks']


def starts_from(path, folder, by, **hook):
    """Build a runner that loads a checkpoint by init_cfg or load_from."""
    how = (
        dict(model=pretrained_toy(path))
        if by == 'init_cfg'
        else dict(load_from=str(path))
    )
    return toy_runner(folder, hook, seed=5, **how)


@pytest.mark.parametrize('by', ['init_cfg', 'load_from'])
def test_masks_stay_as_they_are_by_default(source, tmp_path, by):
    runner = starts_from(source, tmp_path / 'b', by, algorithm='RigL')
    runner.train()
    name = 'hidden.weight'
    assert_same(masks_of(source), dict(hook_of(runner).trainer.masks))
    weights = load(source)['state_dict'][name]
    assert not torch.equal(runner.model.hidden.weight, weights)
    assert not runner.model.hidden.weight[~masks_of(source)[name]].any()
    assert hook_of(runner).trainer.steps == 16  # A run of its own.
    saved = load(tmp_path / 'b/epoch_4.pth')['sparse_training']
    assert (saved['algorithm'], saved['transfer']) == ('Static', 'fixed')


@pytest.mark.parametrize('by', ['init_cfg', 'load_from'])
def test_masks_are_trained_further(source, tmp_path, by):
    runner = starts_from(source, tmp_path / 'b', by, transfer='train')
    first = {}

    class Watch(Hook):
        def before_train_epoch(self, runner):
            masks = hook_of(runner).trainer.masks
            first.update(
                {n: first.get(n, m.clone()) for n, m in masks.items()}
            )

    runner.register_hook(Watch())
    runner.train()
    assert_same(masks_of(source), first)
    masks = hook_of(runner).trainer.masks
    assert masks.counts() == {'hidden.weight': 64}
    assert not torch.equal(masks['hidden.weight'], first['hidden.weight'])


@pytest.mark.parametrize('by', ['init_cfg', 'load_from'])
def test_masks_are_dropped_and_all_weights_train(source, tmp_path, by):
    runner = starts_from(source, tmp_path / 'b', by, transfer='dense')
    runner.train()
    name = 'hidden.weight'
    assert hook_of(runner).trainer is None
    assert runner.model.hidden.weight[~masks_of(source)[name]].any()
    assert 'sparse_training' not in load(tmp_path / 'b/epoch_4.pth')


@pytest.mark.parametrize('transfer', ['fixed', 'train', 'dense'])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(
    source, tmp_path, transfer
):
    def run(folder, **more):
        runner = toy_run(
            folder,
            dict(transfer=transfer),
            model=pretrained_toy(source),
            **more,
        )
        return runner

    whole = run(tmp_path / 'whole')
    resumed = run(
        tmp_path / 'resumed',
        resume=True,
        load_from=str(tmp_path / 'whole/epoch_2.pth'),
    )
    if transfer == 'dense':
        assert_same(whole.model.state_dict(), resumed.model.state_dict())
    else:
        assert_same(final_state(whole), final_state(resumed))
        saved = load(tmp_path / 'resumed/epoch_4.pth')
        assert saved['sparse_training']['transfer'] == transfer


def test_a_run_with_nothing_to_resume_counts_from_its_own_start(
    source, tmp_path
):
    runner = toy_run(
        tmp_path / 'b',
        dict(transfer='train'),
        model=pretrained_toy(source),
        resume=True,
    )
    assert hook_of(runner).trainer.steps == 16


def test_masks_of_other_parameters_are_refused(source, tmp_path):
    runner = starts_from(
        source, tmp_path / 'b', 'init_cfg', include=['out.weight']
    )
    with pytest.raises(
        ValueError, match='lack out.weight and have hidden.weight'
    ):
        runner.train()


@pytest.mark.parametrize('by', ['init_cfg', 'load_from'])
def test_masks_of_another_sparsity_are_refused(source, tmp_path, by):
    runner = starts_from(source, tmp_path / 'b', by, sparsity=0.75)
    with pytest.raises(ValueError, match='sparsity=0.5 there and 0.75 here'):
        runner.train()


def grouped(filters=2, **more):
    """Return options: 2:4 in one layer, blocks of a density in the other."""
    rule = dict(type='SET', structure=dict(type='Block', filters=filters))
    group = dict(algorithm=rule, sparsity=0.75) | more
    return dict(
        algorithm=dict(type='RigL', structure='NM'),
        include=['*.weight'],
        groups={'hidden.*': group},
    )


@pytest.fixture(scope='module', params=[False, True], ids=['slim', 'compact'])
def published(request, tmp_path_factory):
    """Publish the checkpoint of a run with groups; return the file."""
    folder = tmp_path_factory.mktemp('groups')
    toy_run(folder, grouped(), epochs=2)
    return publish(
        folder / 'epoch_2.pth', folder / 'out.pth', small=request.param
    )


@pytest.mark.parametrize(
    'hook',
    [
        dict(include=['*.weight']),
        grouped(),
        grouped() | dict(transfer='train'),
    ],
    ids=['of the file', 'fixed', 'train'],
)
def test_a_published_file_keeps_the_groups(published, tmp_path, hook):
    runner = toy_run(tmp_path / 'b', hook, load_from=str(published))
    masks = hook_of(runner).trainer.masks
    assert masks.counts() == {'hidden.weight': 32, 'out.weight': 8}
    assert Block(2).has(masks['hidden.weight'])
    assert NM(2, 4).has(masks['out.weight'])
    source = read(published)['sparse_training']
    moved = not torch.equal(
        masks['hidden.weight'], source['masks']['hidden.weight']
    )
    assert moved == ('transfer' in hook)
    saved = load(tmp_path / 'b/epoch_4.pth')['sparse_training']
    for state in (saved, source):
        own = state['groups']['hidden.weight']
        assert own['structure'] == {'type': 'Block', 'filters': 2}
        assert state['structure'] == {'type': 'NM', 'n': 2, 'm': 4}
    own = saved['groups']['hidden.weight']['algorithm']
    assert own == ('SET' if moved else 'Static')


@pytest.mark.parametrize(
    'hook, words',
    [
        (
            grouped(sparsity=0.5),
            "'hidden.weight' has 32 active weights and is to have 64",
        ),
        (
            grouped(filters=4),
            "dict.type='Block', filters=2.*and the .* has .*filters=4.*"
            "use .* groups={'hidden.weight': dict.algorithm=dict.type='SET'",
        ),
        (
            dict(include=['*.weight'], transfer='train'),
            "filters=2.* for 'hidden.weight' .* has 'Unstructured'",
        ),
    ],
)
def test_a_published_file_with_other_groups_is_refused(
    published, tmp_path, hook, words
):
    for transfer in {'train', hook.get('transfer', 'fixed')}:
        hook = hook | dict(transfer=transfer)
        runner = toy_runner(tmp_path / 'b', hook, load_from=str(published))
        with pytest.raises(ValueError, match=words):
            runner.train()


def test_contradictory_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="init='TopK'.*transfer='dense'"):
        toy_runner(tmp_path, dict(init='TopK', transfer='dense'))
