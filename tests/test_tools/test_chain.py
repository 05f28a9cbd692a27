"""The chain around its trainings: what starts from what, and the table."""

import json

import pytest
from mmengine.config import Config

from demo import chain
from demo.fashion_scenes import CLASSES


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """The tools that the chain calls; they leave a file each, as they do."""
    monkeypatch.setattr(chain, 'OUT', tmp_path / 'chain')
    monkeypatch.setattr(chain, 'ROOT', tmp_path)
    monkeypatch.setattr(chain, 'prepare', lambda: None)
    made = []

    def run_tool(out, what, tool, config, *arguments):
        assert out.is_dir()
        made.append((what, tool, config, arguments))
        if tool == 'tools/train.py':
            folder = out / what.removeprefix('train_')
            logs = folder / '20260101_000000/vis_data'
            logs.mkdir(parents=True, exist_ok=True)
            kind = what.removeprefix('train_').partition('-')[0]
            (folder / chain.LAST[kind][0]).write_text('')
            (folder / 'last_checkpoint').write_text(chain.LAST[kind][0])
            records = [
                dict(step=10, loss=2.0, time=0.5),
                dict(step=1, accuracy=3.0),
                dict(step=30, loss=1.0, time=1.5),
            ]
            (logs / 'scalars.json').write_text(
                '\n'.join(map(json.dumps, records))
            )
        else:
            path = out / what.removeprefix('test_') / 'metrics.json'
            path.write_text(
                json.dumps(
                    {
                        'accuracy/top1': 80.0,
                        'coco/bbox_mAP_50': 0.25,
                        'mIoU': 40.0,
                        'flops': 2e9,
                        'active_parameters': 3e6,
                        'density': 0.2,
                    }
                )
            )

    monkeypatch.setattr(chain, 'run_tool', run_tool)
    return made


def test_each_network_starts_from_its_own_classifier(calls):
    chain.main([])
    trained = {
        (config.rpartition('/')[2], what): arguments
        for what, tool, config, arguments in calls
        if tool == 'tools/train.py'
    }
    # Two classifiers; two detectors and two segmentors, either way.
    assert len(trained) == 2 + 2 * 2 * 2
    for network, configs in chain.NETWORKS.items():
        # A path with the checkout's would be split at its commas.
        weights = f'chain/{network}/seed0/classifier/epoch_1.pth'
        for kind in ('detector', 'segmentor'):
            pretrained = trained[configs[kind], f'train_{kind}-pretrained']
            scratch = trained[configs[kind], f'train_{kind}-scratch']
            assert (
                f'model.backbone.init_cfg.checkpoint={weights}' in pretrained
            )
            assert 'model.backbone.init_cfg=None' in scratch
            assert '--resume' in scratch


def test_what_is_done_is_not_done_again(calls, capsys):
    chain.main([])
    calls.clear()
    chain.main([])
    assert not calls
    said = capsys.readouterr().out
    # 10 steps of 0.5 s and 20 of 1.5 s.
    assert (
        '| detector | wide | pretrained | mAP_50 | 0.250 | 2.000 | 3.00 M '
        '| 0.200 | 35 |'
    ) in said
    assert (chain.OUT / 'table.md').read_text().strip() in said


def test_a_checkpoint_half_written_is_trained_again(calls):
    chain.main([])
    calls.clear()
    (chain.OUT / 'wide/seed0/classifier/last_checkpoint').unlink()
    chain.main([])
    assert [what for what, *_ in calls] == ['train_classifier']


def test_several_seeds_give_mean_and_spread(calls, capsys):
    chain.main(['--seeds', '2'])
    assert '| classifier | dense | scratch | top1 | 80.00 ± 0.00 |' in (
        capsys.readouterr().out
    )
    seeds = {a for *_, arguments in calls for a in arguments if 'seed=' in a}
    assert seeds == {'randomness.seed=0', 'randomness.seed=1'}


def test_configs_and_chain_agree():
    folder = chain.CONFIGS
    named = {
        name
        for configs in chain.NETWORKS.values()
        for name in configs.values()
    }
    assert named == {path.name for path in folder.glob('*.py')}
    for network, configs in chain.NETWORKS.items():
        for kind in ('detector', 'segmentor'):
            path = folder / configs[kind]
            if kind == 'detector':  # MMSegmentation's bases need our reader.
                cfg = Config.fromfile(path)
                assert cfg.model.backbone.init_cfg.checkpoint == (
                    f'work_dirs/chain/{network}/seed0/classifier/epoch_1.pth'
                )
                assert (
                    f'epoch_{cfg.train_cfg.max_epochs}.pth'
                    == (chain.LAST[kind][0])
                )
    text = (folder / chain.NETWORKS['dense']['segmentor']).read_text()
    scope = {}
    part = text[text.index('metainfo =') : text.index('train_pipeline =')]
    exec(part, scope)
    assert scope['metainfo']['classes'] == CLASSES
