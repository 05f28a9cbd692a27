"""The index of models, and the tool that writes it."""

import json
from pathlib import Path

import metafile
import pytest
import yaml

from helpers.runs import ROOT

DENSE = ROOT / 'configs/fashion_mnist/resnet18-w4_1xb128-12e_fashion-mnist.py'

WIDE = DENSE.with_name(
    'resnet18-w4-sift-wide-s75_rigl-1xb128-12e_fashion-mnist.py'
)
FOLDERS = (
    *('cifar100', 'deeplabv3plus', 'fashion_mnist', 'gpt'),
    *('imagenet', 'retinanet'),
)


def load(path):
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize('name', FOLDERS)
def test_a_metafile_names_every_config(name):
    path = ROOT / 'configs' / name / 'metafile.yml'
    models = load(path)['Models']
    assert sorted(ROOT / model['Config'] for model in models) == sorted(
        path.parent.glob('*.py')
    )
    for model in models:
        assert model['Name'] == Path(model['Config']).stem
    index = load(ROOT / 'model-index.yml')['Import']
    assert f'configs/{name}/metafile.yml' in index
    for collection in load(path)['Collections']:
        assert (ROOT / collection['README']).is_file()


@pytest.mark.parametrize('name', ['cifar100', 'gpt', 'imagenet'])
def test_members_have_the_flops_of_the_dense_network(name):
    models = load(ROOT / 'configs' / name / 'metafile.yml')['Models']
    counts = {m['Name']: m['Metadata'] for m in models}
    networks = {n.partition('_')[0]: m for n, m in counts.items()}
    for model, metadata in counts.items():
        dense = networks[model.partition('_')[0].partition('-sift')[0]]
        # As the authors', the sparsity of Wide alone is solved; the shortcuts
        # of the others are masked and not larger.
        ratio = metadata['FLOPs'] / dense['FLOPs']
        if metadata.get('Family', 'wide') == 'wide':
            assert ratio == pytest.approx(1, rel=1e-3)
        else:
            assert 0.9 < ratio < 1
        if 'Family' in metadata:
            assert metadata['Active Parameters'] < metadata['Parameters']


@pytest.mark.parametrize('name', ['deeplabv3plus', 'retinanet'])
def test_no_flops_where_masks_are_of_another_network(name):
    models = load(ROOT / 'configs' / name / 'metafile.yml')['Models']
    for model in models:
        taken = 'sift' in model['Name'] and 'in1k-pre' in model['Name']
        for count in ('FLOPs', 'Active Parameters'):
            if taken or 'sift' in model['Name'] or count == 'FLOPs':
                assert (count in model['Metadata']) is not taken, model


def test_masks_that_are_drawn_anew_are_counted(tmp_path):
    path = tmp_path / 'configs/mini/again.py'
    path.parent.mkdir(parents=True)
    text = (
        f'_base_ = {str(WIDE)!r}\n'
        "model = dict(backbone=dict(init_cfg=dict(type='Pretrained', "
        "checkpoint='a.pth')))\n"
    )
    taken = 'masks of the pretrained checkpoint'
    for option, training in (
        ('', taken),
        ("transfer='train'", f'{taken}, RigL'),
        ("init='TopK'", 'RigL'),
    ):
        path.write_text(
            f"{text}custom_hooks = [dict(type='SparseTrainingHook', {option})]"
        )
        metadata = metafile.describe(path)[0]['Metadata']
        assert metadata['Mask Training'] == training
        assert ('FLOPs' in metadata) is (training == 'RigL')


def test_known_counts():
    models = load(ROOT / 'configs/imagenet/metafile.yml')['Models']
    dense = {m['Name'].partition('_')[0]: m['Metadata'] for m in models}
    # As in MMPreTrain's metafile, in two and three digits.
    for name, macs, parameters in [
        ('resnet18', 1.82e9, 11.69e6),
        ('resnet34', 3.68e9, 21.80e6),
        ('resnet50', 4.12e9, 25.56e6),
    ]:
        assert dense[name]['FLOPs'] == pytest.approx(macs, rel=0.01)
        assert dense[name]['Parameters'] == pytest.approx(parameters, rel=1e-3)


def test_written_anew_with_results(tmp_path):
    folder = tmp_path / 'configs/mini'
    folder.mkdir(parents=True)
    (folder / 'one_4xb8-1e.py').write_text(f'_base_ = {str(DENSE)!r}\n')
    results = tmp_path / 'results.json'
    results.write_text(json.dumps({'one_4xb8-1e': {'Top 1 Accuracy': 86.5}}))
    metafile.main([str(folder), '--results', str(results)])
    found = load(folder / 'metafile.yml')
    (model,) = found['Models']
    assert model['Config'] == 'configs/mini/one_4xb8-1e.py'
    assert model['Results'] == [
        {
            'Task': 'Image Classification',
            'Dataset': 'Fashion-MNIST',
            'Metrics': {'Top 1 Accuracy': 86.5},
        }
    ]
    assert model['Metadata']['Batch Size'] == 32
    # What the checkout's own file says is what is counted now.
    models = load(DENSE.parent / 'metafile.yml')['Models']
    (own,) = [m['Metadata'] for m in models if m['Name'] == DENSE.stem]
    assert model['Metadata'] == own | {'Batch Size': 32}
    assert load(tmp_path / 'model-index.yml') == {
        'Import': ['configs/mini/metafile.yml']
    }

    # Results stay where there are no new ones.
    metafile.main([str(folder)])
    assert load(folder / 'metafile.yml') == found
