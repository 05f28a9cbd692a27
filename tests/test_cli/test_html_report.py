"""The report of runs: its page, its tables, and runs that lack something."""

import base64
import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from PIL import Image

from helpers.report_pages import charts, read_csv, report, write_tested
from helpers.toy_runs import loader, toy_runner
from sift_mm import masks_of
from sift_mm.cli import html_report
from sift_mm.cli.reports.run_dirs import Run, Scalars


@METRICS.register_module()
class Outputs(BaseMetric):
    """Metric that counts outputs, as a value that is known."""

    def process(self, data_batch, data_samples):
        self.results += [1.0 for _ in data_samples]

    def compute_metrics(self, results):
        return {'outputs': sum(results)}


def toy(folder, hook=True, epochs=3, **kwargs):
    """Train a toy run with validation and a config; return its work dir."""
    cfg = Config(dict(train_cfg=dict(by_epoch=True, max_epochs=epochs)))
    runner = toy_runner(
        folder,
        dict(log_layers=True),
        epochs=epochs,
        cfg=cfg,
        val_dataloader=loader(),
        val_cfg={},
        val_evaluator=dict(type='Outputs'),
        **kwargs,
    )
    if not hook:
        kinds = [type(h).__name__ for h in runner.hooks]
        del runner._hooks[kinds.index('SparseTrainingHook')]
    runner.train()
    return Path(folder)


def test_a_run_of_sift_mm_is_shown_with_its_masks():
    run = toy('runs/toy')
    text, page = report(run)
    first, last = (masks_of(run / f'epoch_{n}.pth') for n in (1, 3))
    name = 'hidden.weight'
    density = last[name].float().mean().item()
    (fact,) = page.rows('What was run').values()
    assert fact['mask training'] == 'RigL'
    assert fact['density'] == f'{density:.4f}' == '0.5000'
    assert 'One run, toy: finished.' in text
    assert 'What is missing' not in text
    # 16 filters of 8 inputs: a pixel a weight, black where it is active.
    found = re.findall(r'<img class="mask" src="[^,]+,([^"]+)"', text)
    for picture, mask in zip(found, (first[name], last[name]), strict=True):
        pixels = Image.open(BytesIO(base64.b64decode(picture)))
        assert np.array_equal(np.array(pixels) == 0, mask.numpy())
    rows = [r for r in read_csv('layers.csv') if r['quantity'] == 'density']
    assert {r['source'] for r in rows} == {'log', 'checkpoint'}
    assert all(float(r['value']) == density for r in rows)
    epochs = read_csv('summary.csv')
    assert [row['epoch'] for row in epochs] == ['1', '2', '3']
    assert {float(row['outputs']) for row in epochs} == {16}
    logged = Run(run).scalars.train
    assert float(epochs[1]['train_loss']) == logged[8]['loss']
    found = charts(text)
    for title in ('Training loss', 'outputs in validation', 'Ramanujan gap'):
        assert title in found
    # A line through all 12 iterations.
    lines = re.findall(r'd="([^"]+)"[^>]*var\(--s1\)', found['Training loss'])
    assert max(line.count('L') for line in lines) == 11
    for number in (1, 2):
        (run / f'epoch_{number}.pth').unlink()
    text, _ = report(run)
    assert text.count('<img class="mask"') == 1  # It is first and last.


def test_foreign_and_interrupted_runs_lack_something():
    foreign = toy('foreign', hook=False)
    cut = toy('cut')
    (cut / 'epoch_3.pth').write_bytes(b'half')
    (scalars,) = cut.glob('*/vis_data/scalars.json')
    lines = scalars.read_text().splitlines()
    kept = [line for line in lines if '"step": 12' not in line][:-1]
    scalars.write_text('\n'.join(kept) + '\n{"loss": 0.')
    text, page = report(foreign, cut)
    facts = page.rows('What was run')
    assert facts['foreign']['mask training'] == '–'
    assert facts['cut']['mask training'] == 'RigL'
    assert 'epoch_3.pth' in text and 'is no checkpoint' in text
    assert 'foreign: no' not in text

    # A test leaves a config, and no scalars.
    (cut / '20990101_000000/vis_data').mkdir(parents=True)
    (cut / '20990101_000000/vis_data/config.py').write_text('train_cfg = {}')
    (cut / 'epoch_3.pth').unlink()
    text, _ = report(cut)
    assert 'One run, cut: not finished, epoch 3 of 3, last written' in text
    # A folder that holds nothing but a checkpoint of weights.
    Path('bare').mkdir()
    torch.save({'state_dict': {'w': torch.ones(2)}}, 'bare/epoch_1.pth')
    text, _ = report('bare')
    assert 'bare: no config was found.' in text


def test_seeds_of_one_config_are_compared_with_dense():
    dense = 'model = dict(width=8)'
    wide = """
model = dict(backbone=dict(family='wide', sparsity=0.75))
custom_hooks = [dict(type='SparseTrainingHook')]"""
    for seed, values in enumerate([(90, 92), (91, 92), (92, 93)]):
        for name, config, value, flops in (
            ('wide-s75', wide, values[1], 3e9),
            ('dense', dense, values[0], 2e9),
        ):
            write_tested(
                f'sweep/{name}/seed{seed}',
                seed,
                config,
                **{'accuracy/top1': value, 'flops': flops},
                flops_of_dense=2e9,
                parameters=4000,
                active_parameters=1000,
            )
    write_tested('sweep/old-seed0-20260101', 0, dense, **{'accuracy/top1': 1})
    text, page = report('sweep')
    assert '6 runs of 2 networks.' in text
    facts = page.rows('What was run')
    assert [*facts] == ['dense', 'wide-s75']
    assert facts['wide-s75'] == {
        'network': 'wide-s75',
        'member': 'wide',
        'sparsity, nominal': '0.75',
        'FLOPs an image': '3.000 G',
        'of dense': '1.5000',
        'parameters': '4.000 k',
        'active': '1.000 k',
        'seeds': '0, 1, 2',
    }
    found = page.rows('Comparison by accuracy/top1 (%)')
    # Differences 2, 1, 1: mean 4/3, deviation 1/sqrt(3), t(0.975; 2) = 4.3027,
    # so that half the interval is 4.3027 / sqrt(3) / sqrt(3) = 1.4342.
    assert found['wide-s75'] == {
        'network': 'wide-s75',
        'sparsity': '0.75',
        'FLOPs, of dense': '1.5000',
        'n': '3',
        'mean': '92.33',
        'standard deviation': '0.58',
        'minus dense': '+1.33',
        'interval, 95 %': '−0.10 to +2.77',
        'pairs': '3',
    }
    assert found['dense']['mean'] == '91.00'
    assert found['dense']['minus dense'] == '–'
    assert 'the interval includes no difference' in text
    (row,) = [r for r in read_csv('networks.csv') if r['network'] != 'dense']
    assert float(row['difference']) == pytest.approx(4 / 3)
    assert float(row['low']) == pytest.approx(4 / 3 - 1.43421, abs=1e-4)
    assert len(read_csv('runs.csv')) == 6

    _, page = report('sweep', '--dense', 'wide-s75')
    found = page.rows('Comparison by accuracy/top1 (%)')
    assert found['dense']['minus dense'] == '−1.33'


def test_names_are_those_of_folders_and_unique():
    for folder, config in (
        ('a/one', 'a = 1'),
        ('b/one', 'a = 2'),
        ('c/two_seed0', 'a = 3'),
        ('c/two_seed1', 'a = 3'),
        ('c/three/seed0', 'a = 4'),
        ('c/three/seed1', 'a = 5'),  # Another network, by its config.
    ):
        write_tested(folder, int(folder[-1] == '1'), config, acc=0.5)
    _, page = report('a', 'b', 'c')
    assert [*page.rows('What was run')] == [
        *('a/one', 'b/one', 'c/three/seed0', 'c/three/seed1', 'c/two')
    ]


def test_results_alone_are_compared():
    for seed, (dense, wide) in enumerate([(0.25, 0.5), (0.25, 0.75)]):
        write_tested(f'runs/dense/seed{seed}', seed, '', mIoU=dense)
        write_tested(f'runs/wide-s75/seed{seed}', seed, '', mIoU=wide)
    text, page = report('runs')
    found = page.rows('Comparison by mIoU (%)')['wide-s75']
    # Differences 0.25 and 0.5: deviation 0.25/sqrt(2), t(0.975; 1) = 12.706.
    assert found['minus dense'] == '+0.3750' and found['pairs'] == '2'
    assert found['interval, 95 %'] == '−1.2133 to +1.9633'
    assert 'wide-s75, seed 1: no config was found.' in text


def test_run_json_is_preferred():
    run = toy('run')
    (log,) = (path.parent for path in run.glob('*/vis_data'))
    record = dict(
        config='configs/a_name.py',
        status='running',
        seconds=7200.0,
        seed=5,
        versions={'torch': '2.12'},
        machine='8 cores of a machine',
        member=dict(family='doped', sparsity=0.9, inner='norm'),
        masks=dict(
            algorithm='SET', nominal=0.9, solved=0.875, active=25, size=200
        ),
        flops=dict(inference=5e6, dense=5e6, ratio=1.0, training_ratio=1.25),
        parameters=2_000_000,
        active_parameters=250_000,
        metrics={'outputs': 7.0},
        best={'outputs': 8.0},
    )
    (log / 'run.json').write_text(json.dumps(record))
    # As with log_with_hierarchy.
    scalars = log / 'vis_data/scalars.json'
    scalars.write_text(scalars.read_text().replace('"loss"', '"train/loss"'))
    text, page = report(run)
    (fact,) = page.rows('What was run').values()
    assert fact == {
        'network': 'run',
        'config': 'a_name',
        'member': 'doped, inner=norm',
        'mask training': 'SET',
        'sparsity, nominal': '0.9',
        'solved': '0.8750',
        'density': '0.1250',
        'FLOPs an image': '5.000 M',
        'of dense': '1.0000',
        'training FLOPs, of dense': '1.2500',
        'parameters': '2.000 M',
        'active': '250.000 k',
        'training time': '2:00:00',
        'seeds': '5',
    }
    (machine,) = page.rows('Machines and versions').values()
    assert machine['machine'] == '8 cores of a machine'
    assert 'run has outputs 7.00.' in text
    assert 'Training loss' in charts(text)


def steps(found):
    return {k: [*getattr(found, k)] for k in ('train', 'valid', 'masks')}


def test_a_resumed_session_replaces_the_steps_that_it_repeats():
    def train(step, epoch):
        return dict(step=step, iter=step, epoch=epoch, loss=1.0)

    def moved(step):
        return {'step': step, 'sparse/moved': 0.1}

    found = Scalars()
    found.add(
        [train(2, 1), moved(3), train(4, 1), dict(step=1, acc=1.0)]
        + [moved(5), train(6, 2), train(8, 2), dict(step=2, acc=2.0)]
    )
    # Resumed after the first epoch, and still at the second.
    found.add([train(6, 2)])
    assert steps(found) == {
        'train': [2, 4, 6],
        'valid': [1],
        'masks': [3, 5],
    }
    found.add([dict(step=0, acc=3.0)])  # A validation alone.
    assert [*found.valid] == [1]
    found.add([train(2, 1), train(4, 1)])  # From the start.
    assert steps(found) == {'train': [2, 4], 'valid': [], 'masks': []}


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_predictions_are_drawn_on_sample_images(scope, runs, tmp_path):
    run = runs[scope]
    text, _ = report(run.work_dir, '--samples', '2')
    assert 'is not drawn' not in text
    found = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', text)
    # Annotations and predictions of two images.
    assert len(found) == 4
    pictures = [Image.open(BytesIO(base64.b64decode(f))) for f in found]
    assert pictures[0].size == pictures[1].size
    assert np.array(pictures[0]).std() > 1
    picture = tmp_path / 'mine.jpg'
    Image.new('RGB', (64, 48), 'gray').save(picture)
    text, _ = report(run.work_dir, '--images', picture)
    assert text.count('data:image/jpeg') == 1 and 'mine.jpg' in text
    assert 'data:image/jpeg' not in report(run.work_dir, '--samples', '0')[0]


def test_data_that_is_missing_is_said(runs, tmp_path):
    (log,) = runs['mmseg'].work_dir.glob('2*/vis_data/config.py')
    (tmp_path / 'run/20260101_000000/vis_data').mkdir(parents=True)
    checkpoint = Path(runs['mmseg'].checkpoint)
    (tmp_path / 'run' / checkpoint.name).symlink_to(checkpoint)
    text = re.sub(r"'[^']*/cityscapes'", "'nowhere'", log.read_text())
    (tmp_path / 'run/20260101_000000/vis_data/config.py').write_text(text)
    text, _ = report('run')
    assert 'run is not drawn: ' in text and 'nowhere' in text


@pytest.mark.parametrize(
    'words, said',
    [
        (['nowhere'], 'There is no folder nowhere'),
        (['empty'], 'empty is no work dir, and has none in it'),
        (['run', '--metric', 'mIoU'], 'No run has the metric mIoU; there are'),
        (['run', '--dense', 'Run'], 'No run is called Run: did you mean run?'),
        (['run', '--out', 'file'], 'file cannot be written (File exists)'),
        (['run', '--images', 'no.jpg'], 'there is no image no.jpg'),
        (['run', '--samples', '-1'], "'-1' is not a whole number"),
    ],
)
def test_bad_input_gets_one_sentence(words, said, capsys):
    Path('empty').mkdir()
    Path('file').write_text('')
    write_tested('run', 0, 'a = 1', **{'accuracy/top1': 1.0})
    with pytest.raises(SystemExit):
        html_report.main(words)
    assert said in capsys.readouterr().err
