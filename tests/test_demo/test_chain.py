"""The chain around its trainings: what starts from what, and the table."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config
from standins import new_calls

from demo import chain
from demo.fashion_scenes import CLASSES

pytestmark = pytest.mark.usefixtures('standins')


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    monkeypatch.setattr(chain, 'prepare', lambda: None)


def test_each_network_starts_from_its_own_classifier(capsys):
    chain.main([])
    trained = {}
    for tool, _, config, *words in new_calls():
        if tool == 'train':
            (folder,) = (w for w in words if w.startswith('--work-dir='))
            start = folder.partition('-')[2].rpartition('-')[2]
            trained[Path(config).name, start] = words
    # Two classifiers; two detectors and two segmentors, either way.
    assert len(trained) == 2 + 2 * 2 * 2
    init = 'model.backbone.init_cfg'
    for network, configs in chain.NETWORKS.items():
        # A path with the checkout's would be split at its commas.
        weights = f'work_dirs/chain/{network}/seed0/classifier/epoch_1.pth'
        for kind in ('detector', 'segmentor'):
            pretrained = trained[configs[kind], 'pretrained']
            assert f'{init}.checkpoint={weights}' in pretrained
            assert f'{init}=None' in trained[configs[kind], 'scratch']
            assert 'randomness.seed=0' in pretrained
    said = capsys.readouterr().out
    rows = re.sub(' +', ' ', said)
    assert (
        '| detector | wide | pretrained | mAP_50 | 0.350 | 2.000 | 3.00 M '
        '| 0.250 | 35 |'
    ) in rows
    table = Path('work_dirs/chain/table.md').read_text()
    assert table.strip() in said
    assert [line.split()[1:6:2] for line in table.splitlines()[2:]] == [
        [kind, network, start]
        for kind in chain.METRICS
        for start in ('scratch', 'pretrained')
        for network in ('dense', 'wide')
        if (kind, start) != ('classifier', 'pretrained')
    ]


def test_what_starts_from_a_classifier_follows_it(capsys):
    chain.main([])
    new_calls()
    chain.main([])
    assert new_calls() == []
    Path('work_dirs/chain/wide/seed0/classifier/last_checkpoint').unlink()
    chain.main([])
    again = {
        word.partition('seed0/')[2]
        for tool, _, *words in new_calls()
        for word in words
        if tool == 'train' and word.startswith('--work-dir=')
    }
    follow = {'detector-pretrained', 'segmentor-pretrained'}
    assert again == {'classifier', *follow}


def test_several_seeds_give_mean_and_spread(capsys):
    chain.main(['--seeds', '2'])
    rows = re.sub(' +', ' ', capsys.readouterr().out)
    assert '| classifier | dense | scratch | top1 | 80.00 ± 0.00 |' in rows
    seeds = {a for call in new_calls() for a in call if 'seed=' in str(a)}
    assert seeds == {'randomness.seed=0', 'randomness.seed=1'}


def test_configs_and_chain_agree():
    folder = chain.CONFIGS
    named = {
        n for configs in chain.NETWORKS.values() for n in configs.values()
    }
    assert named == {path.name for path in folder.glob('*.py')}
    for network in chain.NETWORKS:
        runs = chain.plan(network, 0)
        run = runs['detector', network, 'pretrained']
        init = Config.fromfile(run.config).model.backbone.init_cfg
        assert init.checkpoint == str(run.after.last)
        assert run.last.name == 'epoch_5.pth'
        last = runs['segmentor', network, 'scratch'].last
        assert last.name == 'iter_200.pth'
    text = (folder / chain.NETWORKS['dense']['segmentor']).read_text()
    scope = {}
    part = text[text.index('metainfo =') : text.index('train_pipeline =')]
    exec(part, scope)
    assert scope['metainfo']['classes'] == CLASSES
