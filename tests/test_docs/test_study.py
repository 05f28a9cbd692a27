"""The study: its grid, its file of results, and the page written from it."""

import json
import shutil
from pathlib import Path

import pytest
import study
import study_grid
import study_report
import study_rows

from helpers.runs import ROOT

PAGE = ROOT / 'docs/results.md'
COSTS = dict(flops=2e6, active_parameters=4000, density=1.0)


def test_the_grid_has_each_run_once_and_its_configs_exist():
    runs = [(row.name, seed) for row, seed in study_grid.plan()]
    assert len(runs) == len(set(runs))
    rows = {row for row, _ in study_grid.plan()}
    assert len({row.name for row in rows}) == len(rows)
    assert all(Path(row.network.config).exists() for row in rows)
    seeds = {name: [s for n, s in runs if n == name] for name, _ in runs}
    assert {len(s) for s in seeds.values()} == {3, 5}
    assert sorted(seeds['w4/wide-s90-rigl']) == [0, 1, 2, 3, 4]
    assert runs[0] == ('w4/dense', 0)
    for question in study_grid.QUESTIONS:
        for pair in question.pairs:
            assert rows.issuperset(pair)


def finish(run, accuracy):
    """Write the files of a finished run."""
    run.folder.mkdir(parents=True)
    (run.folder / 'plan.txt').write_text(run.plan)
    run.result.write_text(json.dumps({'accuracy/top1': accuracy, **COSTS}))


def test_finished_runs_are_collected_once_and_not_run_again(
    tmp_path, monkeypatch
):
    root, kept = tmp_path / 'runs', tmp_path / 'results' / 'runs.csv'
    row = study_rows.dense()

    def train(runs, jobs, threads, done):
        assert runs[0].name == 'w4/dense/seed0'
        finish(row.experiment(root, 1), 90.25)
        done(runs[1])

    monkeypatch.setattr(study, 'RUNS', kept)
    monkeypatch.setattr(study, 'run_experiments', train)
    study.main(['run', '--work-dir', str(root)])
    assert study.collect(root, kept) == 0
    (run,) = study.read_runs(kept)
    assert (run['row'], run['seed']) == ('w4/dense', '1')
    assert (run['metric'], float(run['value'])) == ('accuracy/top1', 90.25)

    def seeds():
        done = study.keys_of(study.read_runs(kept))
        return [seed for r, seed in study.missing(('rate',), done) if r == row]

    assert seeds() == [0, 2]
    # Another recipe has other results.
    monkeypatch.setattr(study, 'content_of', lambda config: {'lr': 1})
    assert seeds() == [0, 1, 2]


def test_a_detector_runs_behind_the_classifier_of_its_seed(tmp_path):
    first, second, *_ = study.to_run(tmp_path, ('transfer',), set())
    assert first.name == 'chain/resnet18/seed0'
    assert second.name == 'chain/retinanet-pre/seed0'
    checkpoint = first.folder / 'epoch_1.pth'
    key = 'model.backbone.init_cfg.checkpoint'
    assert f'{key}={checkpoint}' in second.cfg_options


def test_differences_are_paired_by_seed(tmp_path):
    def runs(*accuracies):
        return {
            seed: {'value': str(a), **COSTS}
            for seed, a in enumerate(accuracies)
        }

    question = study_grid.BY_KEY['main']
    dense, wide, wider = question.rows
    text = study_report.section(
        {
            dense.name: runs(90, 91, 92),
            wide.name: runs(91, 93, 95),  # 1, 2, 3 more: 2 +- 4.303 / 3**0.5
            wider.name: runs(91, 92.1, 92.9),  # 1, 1.1, 0.9 more: +- 0.248
        },
        question,
    )
    assert 'Of 2 differences: 1 better, 1 not clear.\n' in text
    lines = {line.split()[1]: line for line in text.splitlines()[4:]}
    for row, cells in (
        (wide, ('93.00 ± 2.00', '+2.00', '-0.48 to +4.48', 'not clear')),
        (wider, ('+1.00', '+0.75 to +1.25', 'better')),
    ):
        assert all(f'| {cell} ' in lines[row.name] for cell in cells)
    absent = study_report.section({dense.name: runs(90)}, question)
    assert 'Of 2 differences: 2 not run yet.' in absent


def test_text_runs_by_worth_and_less_bits_are_better(tmp_path):
    runs = study.to_run(tmp_path, ('gpt', 'gpt-rules'), set())
    assert len(runs) == 27
    first = ('dense', 'wide-s75-rigl', 'wide-s50-rigl')
    assert [run.name for run in runs[:9]] == [
        f'gpt/{name}/seed{seed}' for seed in range(3) for name in first
    ]
    assert 'train_dataloader.dataset.seed=1' in runs[3].cfg_options
    question = study_grid.BY_KEY['gpt']
    bits = ((2, 2.1, 2.2), (1.9, 2.0, 2.1), (2.1, 2.2, 2.3))
    text = study_report.section(
        {
            row.name: {
                seed: {'value': str(one), **COSTS}
                for seed, one in enumerate(found)
            }
            for row, found in zip(question.rows, bits, strict=True)
        },
        question,
    )
    assert '1 better, 1 worse. Lower is better' in text
    assert text.index('-0.1000') < text.index('| better ')
    assert text.index('+0.1000') < text.index('| worse ')


def test_the_page_is_the_one_written_from_the_file(tmp_path):
    copy = tmp_path / PAGE.name
    shutil.copy(PAGE, copy)
    results = study_report.group(study.current(study.read_runs(study.RUNS)))
    study_report.write_report(results, copy, tmp_path / 'results/study.svg')
    assert copy.read_text() == PAGE.read_text()
    with pytest.raises(ValueError, match='lacks the lines'):
        study_report.write_report(
            results, ROOT / 'README.md', tmp_path / 'figure.svg'
        )
