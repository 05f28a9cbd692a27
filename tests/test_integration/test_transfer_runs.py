"""A classifier's weights and masks, carried into detector and segmentor."""

import hashlib
import json
from unittest import mock

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from helpers.forked_scripts import train_ranks
from helpers.sparse_runs import load, probed, sparse_config, train
from helpers.toy_runs import assert_same
from sift_mm.checkpoint import reading
from sift_mm.cli import test as test_tool
from sift_mm.cli.publish_model import main as publish
from sift_mm.config.resume import check_pretrained, find_start
from sift_mm.errors import UserError

# The ordinary stem, which a detector has too.
STEM = "model['backbone']['type'] = 'SparseIFTResNet'\n"
BACKBONE = dict(
    type='SparseIFTResNet',
    depth=18,
    base_channels=8,
    family='wide',
    sparsity=0.75,
)


@pytest.fixture(scope='module')
def pretrained(data, tmp_path_factory):
    """Train a classifier with a detector's stem; return the checkpoint."""
    folder = tmp_path_factory.mktemp('pretrain')
    config = sparse_config(
        folder,
        'mmpretrain',
        data['mmpretrain'],
        STEM + "train_cfg['max_epochs'] = 1\n",
    )
    train(config, folder / 'run')
    return folder / 'run/epoch_1.pth'


@pytest.fixture(scope='module')
def published(pretrained):
    """Publish the checkpoint; return the slim file."""
    publish([str(pretrained), str(pretrained.with_name('slim.pth'))])
    return next(pretrained.parent.glob('slim-*.pth'))


def start_from(checkpoint, prefix="'backbone.'"):
    return (
        "model['backbone']['init_cfg'] = dict(type='Pretrained', "
        f'checkpoint={str(checkpoint)!r}, prefix={prefix})\n'
    )


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_masks_and_weights_arrive(scope, make_config, published, tmp_path):
    # The first stage is frozen, as detectors have it; nothing learns, so
    # that weights can be compared after the run.
    config = make_config(
        scope,
        start_from(published)
        + "model['backbone'].update(frozen_stages=1, norm_eval=True)\n"
        "optim_wrapper['optimizer']['lr'] = 0.\n",
    )
    with mock.patch.object(
        reading, 'load_plain', wraps=reading.load_plain
    ) as read:
        found, source = train(config, tmp_path / 'run'), load(published)
    read.assert_called_once()
    there, here = (s['sparse_training'] for s in (source, found))
    assert_same(here['masks'], there['masks'])
    assert (here['algorithm'], here['transfer']) == ('Static', 'fixed')
    weights = {
        k: v
        for k, v in source['state_dict'].items()
        if k.startswith('backbone.')
    }
    assert len(weights) > 100
    assert_same({n: found['state_dict'][n] for n in weights}, weights)
    # Of these masks, at this network's strides: the classifier's are sparser
    # than nominal to pay for its stem, which counts less where late stages
    # keep their resolution.
    ratio = here['budget']['flops_ratio']
    assert there['budget']['flops_ratio'] == pytest.approx(1, abs=1e-3)
    if scope == 'mmdet':
        assert ratio == pytest.approx(1, abs=0.01)
    else:
        assert 1 - here['budget']['sparsity'] < 0.25
        assert 0.5 < ratio < 0.7


def test_two_processes_start_from_the_same_masks(
    make_config, published, tmp_path
):
    config = make_config(
        'mmpretrain',
        STEM
        + start_from(published)
        + "custom_hooks[0]['transfer'] = 'train'\n"
        "train_cfg['max_epochs'] = 1\n"
        'randomness = dict(seed=0, diff_rank_seed=True)\n'
        "train_dataloader['batch_size'] = 2\n",
    )
    train_ranks(config, tmp_path / 'run')
    records, other = (probed(tmp_path / 'run', rank) for rank in (0, 1))
    assert records == other
    there = load(published)['sparse_training']['masks']
    counts = {name: int(mask.sum()) for name, mask in there.items()}
    assert [r['counts'] for r in records] == [counts] * len(records)
    assert len({r['digest'] for r in records}) == len(records) > 1


def saved(path, state, prefix=''):
    """Save a checkpoint of weights alone."""
    torch.save({f'{prefix}{k}': v for k, v in state.items()}, path)
    return path


def build(checkpoint, prefix='backbone.', **changes):
    init_cfg = dict(
        type='Pretrained', checkpoint=str(checkpoint), prefix=prefix
    )
    return MODELS.build(dict(BACKBONE, init_cfg=init_cfg, **changes))


@pytest.mark.parametrize(
    'changes, words',
    [
        (
            dict(sparsity=0.9),
            r'of another shape: .*conv1.weight \(16, 3, 7, 7\) '
            r'instead of \(25, 3, 7, 7\)',
        ),
        (dict(depth=34), 'missing in the checkpoint: layer1.2.conv1.weight'),
        (dict(family='parallel'), 'missing in the checkpoint: .*conv1.'),
        (dict(family=None, sparsity=None), 'family=None.*of another shape'),
        (dict(prefix=None), 'missing in the checkpoint: conv1.weight'),
    ],
)
def test_another_networks_checkpoint_is_refused(pretrained, changes, words):
    with pytest.raises(ValueError, match=words):
        build(pretrained, **changes).init_weights()


def test_load_from_another_network_is_refused(
    make_config, pretrained, tmp_path
):
    config = make_config(
        'mmdet',
        f'load_from = {str(pretrained)!r}\n'
        "custom_hooks[0]['transfer'] = 'dense'\n"
        "model['backbone']['base_channels'] = 16\n"
        "model['neck'].update(in_channels=[32, 64, 128, 256])\n",
    )
    with pytest.raises(SystemExit, match='of another shape: '):
        train(config, tmp_path / 'run')


def test_a_run_is_resumed_without_the_file_that_it_started_from(
    make_config, published, tmp_path
):
    moved = tmp_path / 'moved.pth'
    moved.write_bytes(published.read_bytes())
    config = make_config('mmseg', start_from(moved))
    train(config, tmp_path / 'run')
    moved.unlink()
    options = ['--resume', '--cfg-options', 'train_cfg.max_iters=3']
    found = train(config, tmp_path / 'run', *options)['sparse_training']
    assert found['transfer'] == 'fixed'
    there = load(published)['sparse_training']['masks']
    assert_same(found['masks'], there)


def test_augmented_testing_counts_the_network_inside(
    make_config, published, tmp_path
):
    config = make_config('mmpretrain', STEM)
    augmented = tmp_path / 'augmented.py'
    augmented.write_text(
        f"""_base_ = {config!r}
custom_hooks = [
    dict(type='PrepareTTAHook', tta_cfg=dict(type='AverageClsScoreTTA'))]
*load, pack = _base_.test_dataloader.dataset.pipeline
flips = [dict(type='RandomFlip', prob=p) for p in (0., 1.)]
test_dataloader = dict(dataset=dict(pipeline=[
    *load, dict(type='TestTimeAug', transforms=[flips, [pack]])]))
"""
    )
    config = str(augmented)
    options = ['--work-dir', str(tmp_path), '--out', 'm.json']
    metrics = test_tool.main([config, str(published), *options])
    masks = load(published)['sparse_training']['masks'].values()
    size = sum(mask.numel() for mask in masks)
    assert metrics['density'] == sum(int(m.sum()) for m in masks) / size
    assert json.loads((tmp_path / 'm.json').read_text()) == metrics


def test_a_deeper_networks_checkpoint_is_refused(tmp_path):
    deeper = MODELS.build(dict(BACKBONE, depth=34))
    path = saved(tmp_path / 'a.pth', deeper.state_dict(), 'backbone.')
    with pytest.raises(ValueError, match='unknown to the network: layer1.2'):
        build(path).init_weights()


@pytest.mark.parametrize(
    'more, prefix',
    [
        # A classifier's head beside the backbone.
        ({'fc.weight': torch.zeros(3, 4)}, None),
        # As in weights that come from Caffe; MMEngine takes both prefixes.
        ({'conv1.bias': torch.zeros(16)}, 'module.backbone'),
    ],
)
def test_a_weight_more_is_no_other_network(tmp_path, more, prefix):
    state = MODELS.build(BACKBONE).state_dict()
    before = f'{prefix}.' if prefix else ''
    path = saved(tmp_path / 'a.pth', state | more, before)
    model = build(path, prefix=prefix)
    model.init_weights()
    assert torch.equal(model.conv1.weight, state['conv1.weight'])


@pytest.mark.parametrize(
    'family, hook',
    [('wide', 'transfer="fixed"'), ('wide', 'init="TopK"')]
    + [('wide_factorized', '')],
)
def test_a_checkpoint_that_the_model_loads_is_checked_too(
    make_config, published, tmp_path, family, hook
):
    state = load(published)
    state['state_dict'].pop('backbone.layer1.0.conv1.weight')
    torch.save(state, tmp_path / 'part.pth')
    config = make_config(
        'mmpretrain',
        STEM + f"model['init_cfg'] = dict(type='Pretrained', "
        f'checkpoint={str(tmp_path / "part.pth")!r})\n'
        f'custom_hooks[0].update({hook})\n',
        family,
    )
    with pytest.raises(SystemExit, match='missing .*: layer1.0.conv1'):
        train(config, tmp_path / 'run')


def test_a_slim_file_is_the_run_without_its_state(pretrained, published):
    whole, slim = load(pretrained), load(published)
    assert set(slim) == {'meta', 'state_dict', 'sparse_training'}
    assert_same(dict(slim['state_dict']), dict(whole['state_dict']))
    assert 'history' not in slim['sparse_training']
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    assert published.stem == f'slim-{digest[:8]}'
    assert published.stat().st_size < 0.6 * pretrained.stat().st_size
    assert not list(published.parent.glob('*.part'))


def test_a_missing_checkpoint_is_named_before_work_starts(
    make_config, tmp_path
):
    config = make_config('mmdet', start_from('nowhere.pth'))
    words = 'nowhere.pth to start from.*backbone.init_cfg.checkpoint=FILE'
    with pytest.raises(SystemExit, match=words):
        train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def pretrained_part(path, work_dir, **options):
    init = dict(type='Pretrained', checkpoint=str(path))
    kaiming = dict(type='Kaiming', layer='Conv2d')
    return Config(
        dict(
            model=dict(
                backbone=dict(init_cfg=[kaiming, init]),
                neck=dict(pretrained=str(path)),
            ),
            work_dir=str(work_dir),
            **options,
        )
    )


def test_without_a_run_to_resume_the_checkpoint_is_needed(tmp_path):
    # The run starts anew where there is nothing to resume.
    cfg = pretrained_part('nowhere.pth', tmp_path, resume=True)
    assert find_start(cfg)
    with pytest.raises(UserError, match=r'model.backbone.init_cfg.1.check'):
        check_pretrained(cfg)
    cfg.merge_from_dict(dict(resume=True, load_from='epoch_1.pth'))
    check_pretrained(cfg)
    assert cfg.model.backbone.init_cfg == [
        dict(type='Kaiming', layer='Conv2d')
    ]
    assert cfg.model.neck.pretrained is None


def test_a_path_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save({'weight': torch.ones(1)}, tmp_path / 'a.pth')
    cfg = pretrained_part('~/a.pth', tmp_path)
    before = cfg.to_dict()
    check_pretrained(cfg)
    assert cfg.to_dict() == before
    with pytest.raises(UserError, match=f'{tmp_path}/b.pth'):
        check_pretrained(pretrained_part('~/b.pth', tmp_path))
