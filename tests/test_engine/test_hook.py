"""The hook: checks, logs, saves and restores, in real MMEngine runs."""

import re

import pytest
import torch

from helpers.sparse_runs import load
from helpers.toy_runs import (
    assert_same,
    final_state,
    hook_of,
    pretrained_toy,
    scalars,
    toy_run,
    toy_runner,
)
from sift_mm.checkpoint.state import with_digest
from sift_mm.errors import UserError


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Train masks; return the folder."""
    folder = tmp_path_factory.mktemp('trained')
    toy_run(folder, dict())
    return folder


@pytest.mark.parametrize(
    'hook',
    [
        dict(algorithm='Static', interval=10**6),
        dict(algorithm='SET'),
        dict(algorithm='RigL'),
    ],
)
def test_a_run_keeps_its_density_exactly(tmp_path, hook):
    runner = toy_run(tmp_path, hook)
    masks = hook_of(runner).trainer.masks
    assert masks.counts() == {'hidden.weight': 64}  # Half of 8 * 16.
    assert not runner.model.hidden.weight[~masks['hidden.weight']].any()
    slot = runner.optim_wrapper.optimizer.state[runner.model.hidden.weight][
        'momentum_buffer'
    ]
    assert not slot[~masks['hidden.weight']].any()
    assert runner.model.out.weight.all()
    assert ('sparse/density' in scalars(tmp_path)) == ('interval' not in hook)
    with pytest.raises(RuntimeError, match='outside the masks'):
        runner.optim_wrapper.optimizer.step()


def test_updates_are_logged(tmp_path):
    toy_run(tmp_path, dict(log_layers=True))
    logged = scalars(tmp_path)
    # 16 steps, an update every 2, the last at 75 %, step 12.
    steps = [step for step, _ in logged['sparse/density']]
    assert steps == [2, 4, 6, 8, 10, 12]
    assert {v for _, v in logged['sparse/density']} == {0.5}
    assert {v for _, v in logged['sparse/density/hidden.weight']} == {0.5}
    fractions = dict(logged['sparse/drop_fraction'])
    # 0.3 / 2 * (1 + cos(pi * 6 / 12)) = 0.15, and 0 at the end.
    assert fractions[6] == pytest.approx(0.15)
    assert fractions[12] == pytest.approx(0)
    moved = dict(logged['sparse/moved'])
    assert all(0 <= moved[s] <= fractions[s] + 1e-9 for s in steps)
    assert moved[2] > 0
    itop = [v for _, v in logged['sparse/itop_rate']]
    assert itop == sorted(itop) and 0.5 < itop[-1] <= 1


def test_load_from_without_masks_needs_a_choice(trained, tmp_path):
    checkpoint = load(trained / 'epoch_4.pth')
    masks = checkpoint.pop('sparse_training')['masks']
    plain = str(tmp_path / 'plain.pth')
    torch.save(checkpoint, plain)
    runner = toy_runner(tmp_path / 'b', dict(), load_from=plain)
    with pytest.raises(ValueError, match="'TopK' or 'Random'"):
        runner.train()
    # Those that are not zero are the checkpoint's 64 active weights.
    runner = toy_run(
        tmp_path / 'c',
        dict(init='FromWeights', algorithm='Static'),
        load_from=plain,
    )
    assert_same(dict(hook_of(runner).trainer.masks), masks)


@pytest.mark.parametrize(
    'hook, words',
    [
        (
            dict(interval=13),
            'interval is 13 optimizer steps and the last update is due by '
            'step 12',
        ),
        (
            dict(include=['hiden.*']),
            "'hiden.*' matches none .*hidden.weight, out.weight",
        ),
        (dict(sparsity=None), 'No sparsity is given'),
        (
            dict(distribution=dict(type='Explicit', sparsities={'a': 0.5})),
            'nearest are hidden.weight',
        ),
    ],
)
def test_mistakes_stop_before_the_first_iteration(tmp_path, hook, words):
    runner = toy_runner(tmp_path, hook)
    # MMEngine raises a TypeError of a hook anew.
    with pytest.raises((UserError, TypeError), match=words):
        runner.train()
    assert runner.iter == 0
    assert not list(tmp_path.glob('*.pth'))


def test_an_explicit_init_wins_over_the_checkpoints_masks(trained, tmp_path):
    runner = toy_run(
        tmp_path,
        dict(init='TopK', sparsity=0.75, algorithm='Static'),
        load_from=str(trained / 'epoch_1.pth'),
    )
    assert hook_of(runner).trainer.masks.counts() == {'hidden.weight': 32}


def test_two_hooks_are_refused(tmp_path):
    second = dict(type='SparseTrainingHook', sparsity=0.5, include=['out.*'])
    runner = toy_runner(tmp_path, dict(), custom_hooks=[second])
    with pytest.raises(ValueError, match='one SparseTrainingHook'):
        runner.train()


def test_a_second_call_of_train_leaves_the_masks_alone(tmp_path):
    runner = toy_run(tmp_path, dict())
    before = {k: v.clone() for k, v in final_state(runner).items()}
    runner.train()
    assert_same(before, final_state(runner))


def test_loaded_and_saved_without_training_masks_stay(trained, tmp_path):
    runner = toy_runner(tmp_path, dict())
    checkpoint = {}
    hook_of(runner).before_save_checkpoint(runner, checkpoint)
    assert checkpoint == {}
    runner.load_checkpoint(str(trained / 'epoch_1.pth'))
    hook_of(runner).before_save_checkpoint(runner, checkpoint)
    assert checkpoint['sparse_training']['masks']['hidden.weight'].sum() == 64


def test_a_skipped_update_is_said(tmp_path, monkeypatch):
    runner = toy_runner(tmp_path, dict(), epochs=1)
    said = []
    monkeypatch.setattr(runner.logger, 'warning', said.append)
    runner.train_dataloader.dataset.x[:] = float('nan')
    runner.train()
    assert any('step 2 skipped' in s for s in said)
    assert 'sparse/density' not in scalars(tmp_path)


@pytest.mark.parametrize('hook', [dict(drop_fraction=0), dict(interval=12)])
def test_updates_that_move_nothing_are_told(tmp_path, monkeypatch, hook):
    # 75 % of 16 steps are 12, where a cosine has come to 0.
    runner = toy_runner(tmp_path, hook)
    said = []
    monkeypatch.setattr(runner.logger, 'warning', said.append)
    runner.train()
    assert any('Masks will never change' in text for text in said)


@pytest.mark.parametrize(
    'hook, epochs, words',
    [
        (dict(algorithm='SET'), 4, "algorithm='RigL'; it goes on with 'SET'"),
        (dict(interval=3), 4, r'interval=2; it goes on with 3'),
        # 75 % of 16 steps, and of 24.
        (dict(), 6, r'end=12; it goes on with 18'),
        (dict(drop_fraction=0.2), 4, 'drop_fraction=.*0.3.*0.2'),
        (dict(placement='replace_step'), 4, "placement='after_step'"),
        (dict(execution='dense'), 4, "execution='auto'; .* with 'dense'"),
    ],
)
def test_a_change_of_the_schedule_on_resume_is_said(
    trained, tmp_path, monkeypatch, hook, epochs, words
):
    start = dict(resume=True, load_from=str(trained / 'epoch_2.pth'))
    runner = toy_runner(tmp_path, hook, epochs=epochs, **start)
    said = []
    monkeypatch.setattr(runner.logger, 'warning', said.append)
    runner.train()
    assert any(re.search(words, text) for text in said), said


# A structure: first masks, drops, growth, resume and transfer ---------------


def structured(algorithm='RigL', **options):
    return dict(algorithm=dict(type=algorithm, structure=options or 'NM'))


def holds_groups(mask):
    """Return True if 2 of 4 consecutive inputs are active."""
    return bool((mask.view(-1, 4).sum(1) == 2).all())


@pytest.mark.parametrize('algorithm', ['Static', 'SET', 'RigL'])
def test_a_structure_holds_for_the_whole_run_and_its_resume(
    tmp_path, algorithm
):
    hook = structured(algorithm)
    runner = toy_run(tmp_path, hook)
    mask = hook_of(runner).trainer.masks['hidden.weight']
    assert holds_groups(mask)
    state = load(tmp_path / 'epoch_4.pth')['sparse_training']
    assert state['structure'] == dict(type='NM', n=2, m=4)
    assert state['budget']['sparsity'] == 0.5
    resumed = toy_run(
        tmp_path / 'resumed',
        hook | dict(seed=99),
        resume=True,
        load_from=str(tmp_path / 'epoch_2.pth'),
    )
    # Numbers drawn by the new process's own seed do not survive.
    assert_same(final_state(runner), final_state(resumed))
    one, other = (hook_of(r).trainer.history for r in (runner, resumed))
    assert one.itop_rate() == other.itop_rate()
    assert one.degree_of_constraint() == other.degree_of_constraint()
    first = load(tmp_path / 'epoch_1.pth')['sparse_training']['masks']
    assert torch.equal(first['hidden.weight'], mask) == (algorithm == 'Static')


@pytest.fixture(scope='module')
def two_of_four(tmp_path_factory):
    """Train masks of a structure; return the checkpoint."""
    folder = tmp_path_factory.mktemp('structured')
    toy_run(folder, structured(), epochs=2)
    return str(folder / 'epoch_2.pth')


@pytest.mark.parametrize(
    'hook, loaded, words',
    [
        (dict(), dict(resume=True), "'Unstructured'"),
        (structured(type='NM', n=4, m=8), dict(resume=True), 'n=4, m=8'),
        (dict(transfer='train'), dict(), "'Unstructured'"),
        (structured(type='NM', n=4, m=8), dict(), 'n=4, m=8'),
    ],
)
def test_masks_of_another_structure_are_refused(
    two_of_four, tmp_path, hook, loaded, words
):
    runner = toy_runner(tmp_path, hook, load_from=two_of_four, **loaded)
    with pytest.raises(
        ValueError, match=f'saved masks have structure.*{words}'
    ):
        runner.train()
    assert runner.iter in (0, 8)


@pytest.mark.parametrize('transfer', ['fixed', 'train'])
def test_a_structure_goes_along_with_transferred_masks(
    two_of_four, tmp_path, transfer
):
    # Masks that stay need not be told their structure; it is saved anew.
    hook = structured() if transfer == 'train' else dict()
    runner = toy_run(
        tmp_path / 'b',
        hook | dict(transfer=transfer),
        load_from=two_of_four,
    )
    assert holds_groups(hook_of(runner).trainer.masks['hidden.weight'])
    saved = load(tmp_path / 'b/epoch_4.pth')['sparse_training']
    assert saved['structure'] == dict(type='NM', n=2, m=4)
    resumed = toy_run(
        tmp_path / 'c',
        hook | dict(transfer=transfer),
        resume=True,
        load_from=str(tmp_path / 'b/epoch_2.pth'),
    )
    assert_same(final_state(runner), final_state(resumed))


def test_groups_are_logged_saved_resumed_and_transferred(
    tmp_path, monkeypatch
):
    group = dict(algorithm=dict(type='SET', structure=dict(type='NM')))
    hook = dict(groups={'out.*': group}, include=['*.weight'])
    runner = toy_runner(tmp_path / 'a', hook)
    said = []
    monkeypatch.setattr(runner.logger, 'info', said.append)
    runner.train()
    words = "RigL (1), SET with structure=dict(type='NM', n=2, m=4) at sparsi"
    assert any(text.startswith(words) for text in said), said
    saved = load(tmp_path / 'a/epoch_4.pth')['sparse_training']
    assert [*saved['groups']] == ['out.weight']
    # 8 x 16 weights at 0.5, and two of four of 16.
    counts = {name: int(mask.sum()) for name, mask in saved['masks'].items()}
    assert counts == {'hidden.weight': 64, 'out.weight': 8}
    more = dict(resume=True, load_from=str(tmp_path / 'a/epoch_2.pth'))
    resumed = toy_run(tmp_path / 'b', hook, **more)
    assert_same(final_state(runner), final_state(resumed))
    # Fixed masks keep their structures without groups too.
    model = pretrained_toy(tmp_path / 'a/epoch_4.pth')
    kept = toy_run(tmp_path / 'c', dict(include=['*.weight']), model=model)
    state = hook_of(kept).trainer.state_dict()
    own = state['groups']['out.weight']
    assert (state['algorithm'], own['algorithm']) == ('Static', 'Static')
    assert own['structure'] == dict(type='NM', n=2, m=4)
    for name, mask in saved['masks'].items():
        assert torch.equal(state['masks'][name], mask)
    resumed = toy_run(
        tmp_path / 'd',
        dict(include=['*.weight']),
        resume=True,
        load_from=str(tmp_path / 'c/epoch_2.pth'),
    )
    assert_same(final_state(kept), final_state(resumed))


def test_rounding_to_a_structure_is_counted_and_said(tmp_path, monkeypatch):
    # 31 of 128 weights, in blocks of four filters.
    hook = structured(type='Block', filters=4) | dict(sparsity=0.76)
    runner = toy_runner(tmp_path, hook, epochs=1)
    said = []
    monkeypatch.setattr(runner.logger, 'info', said.append)
    runner.train()
    plan = hook_of(runner).plan(runner.model, runner.cfg)
    assert plan.counts == {'hidden.weight': 32}
    words = "structure='Block' rounds density 0.242188 to 0.250000"
    assert any(words in text for text in said), said


def test_checkpoints_of_earlier_releases_resume(trained, tmp_path):
    checkpoint = load(trained / 'epoch_2.pth')
    state = checkpoint['sparse_training']
    del state['structure']
    state |= dict(grown_steps='free', young={})
    checkpoint['sparse_training'] = with_digest(state)
    torch.save(checkpoint, tmp_path / 'old.pth')
    resumed = toy_run(
        tmp_path, dict(), resume=True, load_from=str(tmp_path / 'old.pth')
    )
    whole = load(trained / 'epoch_4.pth')
    assert_same(resumed.model.state_dict(), whole['state_dict'])
    masks = whole['sparse_training']['masks']
    assert_same(dict(hook_of(resumed).trainer.masks), masks)
