"""Checkpoints from which a run resumes or refuses to."""

import os
import re
from functools import reduce
from operator import getitem

import pytest
import torch
from mmengine.config import Config

from helpers.sparse_runs import load, sparse_config
from helpers.toy_runs import assert_same, hook_of, toy_run, toy_runner
from sift_mm.checkpoint.state import with_digest
from sift_mm.cli import train
from sift_mm.config.resume import find_start
from sift_mm.engine.transfer import check_optimizer
from sift_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('fresh_process')
NAME = 'hidden.weight'
KEY = 'sparse_training'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Train for four epochs; return the work dir."""
    path = tmp_path_factory.mktemp('run')
    toy_run(path, dict())
    return path


@pytest.fixture
def work_dir(folder, tmp_path):
    """Copy the work dir, to damage it."""
    for path in folder.glob('*.pth'):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_4.pth'))
    return tmp_path


def without(*keys):
    *path, last = keys
    return lambda checkpoint: reduce(getitem, path, checkpoint).pop(last)


def setting(value, *keys):
    *path, last = keys
    return lambda c: reduce(getitem, path, c).update({last: value})


def mask_in(checkpoint):
    return checkpoint[KEY]['masks'][NAME]


def flip(checkpoint, was):
    mask = mask_in(checkpoint).view(-1)
    mask[int((mask == was).nonzero()[0])] = not was


def empty_history(checkpoint):
    for kind in checkpoint[KEY]['history'].values():
        kind[NAME].zero_()


def weights_outside(checkpoint):
    checkpoint['state_dict'][NAME][~mask_in(checkpoint)] = 1


def all_true(checkpoint):
    mask_in(checkpoint).fill_(True)


def poison(value):
    return lambda c: c['state_dict']['out.weight'][0, 3].fill_(value)


CHANGED = 'not what was saved'
BAD = {
    'newer': (setting(99, KEY, 'version'), 'version 99.*up to 1'),
    'no training of masks': (without(KEY), 'holds no masks'),
    'no masks': (without(KEY, 'masks'), 'holds no masks'),
    'masks of floats': (
        setting({NAME: torch.ones(16, 8)}, KEY, 'masks'),
        'no bool tensor',
    ),
    'a bit more': (lambda c: flip(c, False), CHANGED),
    'empty history': (empty_history, CHANGED),
    'other member': (setting(0.75, KEY, 'budget', 'nominal'), CHANGED),
    'no meta': (without('meta'), 'does not say in its meta'),
    'no iteration': (without('meta', 'iter'), 'does not say in its meta'),
    'other iteration': (setting(9, 'meta', 'iter'), 'of iteration 8.*9'),
    'nan': (poison(float('nan')), "'out.weight'.*NaN"),
    'inf': (poison(float('inf')), "'out.weight'.*infinite"),
    '-inf': (poison(-float('inf')), "'out.weight'.*infinite"),
    'no optimizer': (without('optimizer'), 'has no optimizer'),
    'other slot': (
        setting(torch.ones(8, 16), 'optimizer', 'state', 0, 'momentum_buffer'),
        r'momentum_buffer.*\(8, 16\).*\(16, 8\)',
    ),
    'fewer parameters': (
        without('optimizer', 'param_groups', 0, 'params', -1),
        r'\[3\].*\[4\]',
    ),
    'no schedule': (without('param_schedulers'), 'no param_schedulers'),
    'slots a number': (setting(3, 'optimizer', 'state', 0), 'is damaged'),
    'slot a number': (
        setting(3, 'optimizer', 'state', 0, 'momentum_buffer'),
        r'momentum_buffer.*shape \(\) for',
    ),
    'groups a text': (setting('x', 'optimizer', 'param_groups'), 'is damaged'),
    'published': (without('message_hub'), 'published'),
    'weights outside': (weights_outside, f'would cut weights.*{NAME}'),
}
# Not seen by the digest, which an older file does not have, or a new one has.
SEALED = {
    'no steps': (without(KEY, 'steps'), 'steps are missing'),
    'no seed': (without(KEY, 'seed'), 'seed is missing'),
    'no history': (without(KEY, 'history'), 'history is missing'),
    'half a history': (without(KEY, 'history', 'ever'), 'history is missing'),
    'of no layer': (without(KEY, 'history', 'ever', NAME), 'history does not'),
    'empty history': (empty_history, 'history does not have'),
    'no bits': (
        setting(3, KEY, 'history', 'ever', NAME),
        'bad.pth: The checkpoint is damaged',
    ),
    'full always': (
        setting(torch.full((16,), 255).byte(), KEY, 'history', 'always', NAME),
        'always had',
    ),
    'other member': (
        setting(0.75, KEY, 'budget', 'nominal'),
        'sparsity=0.75 there and 0.5 here',
    ),
    'all true': (all_true, 'history does not have'),
}


def resume(path, tmp_path):
    return toy_runner(
        tmp_path / 'new', dict(), resume=True, load_from=str(path)
    )


@pytest.mark.parametrize('name', [*BAD, *(f'sealed, {k}' for k in SEALED)])
def test_a_run_does_not_go_on_from(name, folder, tmp_path):
    spoil, words = (BAD | {f'sealed, {k}': v for k, v in SEALED.items()})[name]
    checkpoint = load(folder / 'epoch_2.pth')
    spoil(checkpoint)
    if name.startswith('sealed'):
        checkpoint[KEY] = with_digest(checkpoint[KEY])
    path = tmp_path / 'bad.pth'
    torch.save(checkpoint, path)
    runner = resume(path, tmp_path)
    with pytest.raises(UserError, match=words):
        runner.train()
    # Nothing was trained or written.
    assert not list((tmp_path / 'new').glob('*.pth'))


def of_attention(checkpoint):
    masks = torch.full((2, 2), -torch.inf).triu(1)
    checkpoint['state_dict']['mask'] = masks


def of_an_older_release(checkpoint):
    del checkpoint[KEY]['digest'], checkpoint[KEY]['iter']


@pytest.mark.parametrize('change', [of_attention, of_an_older_release])
def test_a_run_goes_on_from_what_was_saved(change, folder, tmp_path):
    checkpoint = load(folder / 'epoch_2.pth')
    change(checkpoint)
    torch.save(checkpoint, tmp_path / 'a.pth')
    runner = resume(tmp_path / 'a.pth', tmp_path)
    runner.train()
    whole = load(folder / 'epoch_4.pth')
    assert_same(runner.model.state_dict(), whole['state_dict'])
    assert_same(dict(hook_of(runner).trainer.masks), whole[KEY]['masks'])


def test_a_run_that_ended_within_an_accumulation_goes_on(tmp_path):
    # 8 iterations in threes: the last step is of two. 16 end with one of one.
    wrapper = dict(accumulative_counts=3)
    toy_run(tmp_path, dict(), wrapper, epochs=2)
    runner = toy_run(tmp_path, dict(), wrapper, epochs=4, resume=True)
    assert hook_of(runner).trainer.steps == 3 + 4


class Scaled(torch.nn.Module):
    """With parameters of which slots of another shape may have the shape."""

    def __init__(self, rows=3):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.layers = torch.nn.Sequential(
            *(torch.nn.Linear(*size) for size in ((4, rows), (rows, 1))),
            torch.nn.Linear(1, 2),
            torch.nn.Linear(2, 2),
        )

    def optimized(self, kind):
        optimizer = getattr(torch.optim, kind)(self.parameters())
        (self.layers(torch.ones(2, 4)) * self.scale).sum().backward()
        optimizer.step()
        return optimizer


@pytest.mark.parametrize(
    'kind', ['Adafactor', 'AdamW', 'SGD', 'RMSprop', 'Rprop', 'ASGD', 'NAdam']
)
def test_slots_of_another_shape_may_be_meant(kind):
    saved = Scaled().optimized(kind).state_dict()
    check_optimizer(saved, Scaled().optimized(kind))
    if kind in ('AdamW', 'RMSprop', 'Rprop', 'NAdam'):
        with pytest.raises(UserError, match=r'shape \(3, 4\).* of \(5, 4\)'):
            check_optimizer(saved, Scaled(rows=5).optimized(kind))


@pytest.mark.parametrize(
    'spoil, words',
    [
        (all_true, 'leave no weight out'),
        (lambda c: mask_in(c).logical_not_(), f'would cut weights.*{NAME}'),
        (poison(float('nan')), "a.pth: 'out.weight' .* NaN"),
    ],
)
def test_what_a_run_starts_from(spoil, words, folder, tmp_path):
    checkpoint = load(folder / 'epoch_2.pth')
    spoil(checkpoint)
    checkpoint[KEY] = with_digest(checkpoint[KEY])
    torch.save(checkpoint, tmp_path / 'a.pth')
    runner = toy_runner(
        tmp_path / 'b', dict(), load_from=str(tmp_path / 'a.pth')
    )
    with pytest.raises(UserError, match=words):
        runner.train()


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_byte(path):
    content = bytearray(path.read_bytes())
    weights = load(path)['state_dict'][NAME].numpy().tobytes()
    content[content.index(weights) + 5] ^= 4
    path.write_bytes(content)


def spoil_weights(path):
    checkpoint = load(path)
    poison(float('nan'))(checkpoint)
    torch.save(checkpoint, path)


def start(work_dir, option='auto', **options):
    """Return config and messages of a start with this --resume."""
    cfg = Config(dict(work_dir=str(work_dir), **options))
    said = find_start(cfg, option)
    return cfg, ' '.join(said)


@pytest.mark.parametrize(
    'last', [None, '', 'epoch_4.pth', 'epoch_1.pth', 'gone.pth', '\0\xff']
)
def test_the_newest_is_taken_whatever_last_checkpoint_says(work_dir, last):
    if last is None:
        (work_dir / 'last_checkpoint').unlink()
    else:
        text = str(work_dir / last) if last.endswith('.pth') else last
        (work_dir / 'last_checkpoint').write_text(text)
    cfg, said = start(work_dir, load_from='weights.pth')
    assert cfg.resume and cfg.load_from == str(work_dir / 'epoch_4.pth')
    assert f'resumed from {work_dir}/epoch_4.pth' in said
    assert ('gone.pth' in said) == (last == 'gone.pth')


@pytest.mark.parametrize(
    'damage, words',
    [
        (cut, 'epoch_4.pth is no checkpoint, or is damaged'),
        (lambda path: path.write_bytes(b''), 'epoch_4.pth is no checkpoint'),
        (flip_byte, 'epoch_4.pth is damaged: the bytes'),
        (spoil_weights, 'epoch_4.pth: .*NaN'),
    ],
)
def test_what_is_not_whole_is_passed_over(work_dir, damage, words):
    damage(work_dir / 'epoch_4.pth')
    damage(work_dir / 'epoch_2.pth')
    cfg, said = start(work_dir)
    assert cfg.load_from == str(work_dir / 'epoch_3.pth')
    assert re.search(f'passed over.*{words}', said)
    assert 'epoch_2.pth' not in said
    # Named, it is refused.
    with pytest.raises(UserError, match=f'{words}.* is .*epoch_3.pth.$'):
        start(work_dir, str(work_dir / 'epoch_4.pth'))
    # As the config may say.
    cfg, said = start(work_dir, None, resume=True)
    assert cfg.load_from == str(work_dir / 'epoch_3.pth')


def test_numbers_are_compared_and_not_names_or_times(work_dir):
    (work_dir / 'epoch_1.pth').rename(work_dir / 'epoch_10.pth')
    os.utime(work_dir / 'epoch_2.pth', (2e9, 2e9))
    # MMEngine's published_keys and save_best make such files.
    for name in ('epoch_11-12345678.pth', 'best_acc_epoch_12.pth'):
        (work_dir / name).write_bytes((work_dir / 'epoch_2.pth').read_bytes())
    cfg, said = start(work_dir)
    assert cfg.load_from == str(work_dir / 'epoch_10.pth')
    assert '12345678' not in said and 'best' not in said


def test_of_epochs_and_iterations_the_further_one_is_taken(work_dir):
    (work_dir / 'epoch_3.pth').rename(work_dir / 'iter_12.pth')
    cfg, _ = start(work_dir)
    assert cfg.load_from == str(work_dir / 'epoch_4.pth')
    cut(work_dir / 'epoch_4.pth')
    cfg, _ = start(work_dir)
    assert cfg.load_from == str(work_dir / 'iter_12.pth')


def test_another_folder_of_checkpoints_is_looked_into(work_dir, tmp_path):
    run = tmp_path / 'elsewhere/run'
    run.mkdir(parents=True)
    hooks = dict(checkpoint=dict(out_dir=str(tmp_path / 'out')))
    target = tmp_path / 'out/run'
    target.mkdir(parents=True)
    (work_dir / 'epoch_2.pth').rename(target / 'epoch_2.pth')
    cfg, _ = start(run, default_hooks=hooks)
    assert cfg.load_from == str(target / 'epoch_2.pth')
    # Or it was said on the command line of the run before.
    cfg, said = start(run)
    assert not cfg.resume and 'starts at its beginning' in said
    (run / 'last_checkpoint').write_text(str(target / 'epoch_2.pth'))
    cfg, _ = start(run)
    assert cfg.load_from == str(target / 'epoch_2.pth')


def test_nothing_is_started_over_checkpoints_that_are_not_whole(work_dir):
    for path in work_dir.glob('*.pth'):
        cut(path)
    (work_dir / 'last_checkpoint').unlink()
    for option, options in (('auto', {}), (None, dict(resume=True))):
        with pytest.raises(UserError, match='none to resume from') as stop:
            start(work_dir, option, **options)
        assert all(f'epoch_{i}.pth' in str(stop.value) for i in range(1, 5))
    with pytest.raises(UserError, match='epoch_4.pth is no.*damaged[^.]*.$'):
        start(work_dir, str(work_dir / 'epoch_4.pth'))


def test_where_nothing_is_a_run_starts_as_the_config_says(tmp_path):
    cfg, said = start(tmp_path / 'new', load_from='weights.pth')
    assert not cfg.resume and cfg.load_from == 'weights.pth'
    assert 'starts at its beginning' in said
    cfg, said = start(tmp_path, None)
    assert 'resume' not in cfg and not said


def test_a_broken_run_goes_on_by_its_command_line(data, tmp_path):
    # A full disk: the newest file is cut, and last_checkpoint is empty.
    config = sparse_config(tmp_path / 'c', 'mmpretrain', data['mmpretrain'])
    argv = [config, '--work-dir', str(tmp_path / 'run'), '--no-validate']
    train.main(argv)
    newest = tmp_path / 'run/epoch_3.pth'
    whole = load(newest)
    cut(newest)
    (tmp_path / 'run/last_checkpoint').write_text('')
    train.main([*argv, '--resume'])
    again = load(newest)
    assert_same(whole['state_dict'], again['state_dict'])
    assert_same(whole[KEY]['masks'], again[KEY]['masks'])
    logs = sorted((tmp_path / 'run').glob('*/*.log'))
    said = logs[-1].read_text()
    assert f'passed over. {newest} is no checkpoint' in said
    assert f'resumed from {tmp_path}/run/epoch_2.pth' in said


def test_the_config_in_a_checkpoint_is_not_run(work_dir):
    # MMEngine would, in search of a key.
    path = work_dir / 'epoch_4.pth'
    checkpoint = load(path)
    ran = work_dir / 'ran'
    checkpoint['meta']['config'] = f'open({str(ran)!r}, "w").close()\n'
    torch.save(checkpoint, path)
    toy_run(work_dir, dict(), epochs=5, resume=True)
    assert (work_dir / 'epoch_5.pth').exists() and not ran.exists()
