"""Messages of a command line: mistakes of users, and errors."""

import errno
import runpy
import sys
import tomllib
from pathlib import Path

import pytest

from helpers.forked_scripts import run_forked
from helpers.runs import ROOT, write_config
from sift_mm.cli import train
from sift_mm.cli.entry import Parser, entry_point, explain
from sift_mm.errors import UserError, UserKeyError, UserTypeError

SENTENCE = 'The left is right: turn it.'


def raised(error, *outer):
    """Raise an error, then others from it; return the last."""
    try:
        raise error
    except Exception as inner:
        if not outer:
            return inner
        try:
            raise outer[0] from inner
        except Exception as last:
            return raised(last, *outer[1:])


@pytest.mark.parametrize(
    'error',
    [
        raised(UserError(SENTENCE)),
        raised(UserKeyError(SENTENCE)),
        # Of a hook's call.
        raised(
            UserTypeError(SENTENCE),
            TypeError(f'{SENTENCE} in <x.Hook object at 0x7f01>'),
        ),
        # One that says more than the first.
        raised(UserError('left'), UserError(SENTENCE)),
    ],
)
def test_the_sentence_stands_alone(error):
    assert explain(error) == SENTENCE


@pytest.mark.parametrize(
    'error',
    [
        raised(ValueError('any')),
        # An error in what deals with a mistake is another error.
        raised(UserError(SENTENCE), KeyError('any')),
        raised(OSError(errno.EIO, 'Input/output error')),
        raised(RuntimeError('Connection closed by peer')),  # Of no group.
    ],
)
def test_an_error_is_no_mistake(error):
    assert explain(error) is None


def command(argv):
    Parser(description='x').parse_args(argv)
    raise UserError(SENTENCE)


def test_a_mistake_ends_with_its_sentence_and_code_2(capsys):
    with pytest.raises(SystemExit, match=SENTENCE) as stop:
        entry_point(command)([])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f'{SENTENCE}\n'


def test_where_it_was_found_is_shown_if_wanted():
    with pytest.raises(UserError, match=SENTENCE):
        entry_point(command)(['--traceback'])


def test_ctrl_c_ends_in_a_line(capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        entry_point(interrupted)([])
    assert stop.value.code == 130
    assert capsys.readouterr().err == '\nStopped by Ctrl-C.\n'


SPARSE = (
    "custom_imports = dict(imports=['sift_mm'])\n"
    "model['backbone'].update(type='SparseIFTResNet_CIFAR', family='wide', "
    "sparsity=0.75)\nmodel['head']['in_channels'] = 128\n"
    "custom_hooks = [dict(type='SparseTrainingHook')]\n"
)
BACKEND = (
    "visualizer = dict(type='UniversalVisualizer', "
    "vis_backends=[dict(type='{}')])"
)
CLASSES = "{}_dataloader['dataset']['metainfo'] = dict(classes=('unicorn',))"


@pytest.mark.parametrize(
    'scope, code, sentence',
    [
        # The file.
        ('mmpretrain', 'a = (', r"line 37: '\(' was never closed in `a = \(`"),
        ('mmpretrain', 'import nothing', "line 37: No module named 'nothing'"),
        ('mmpretrain', 'a = b', "line 37: name 'b' is not defined"),
        (
            'mmpretrain',
            "custom_imports = dict(imports=['nothing'])",
            "custom_imports: .* imported .No module named 'nothing'",
        ),
        ('mmpretrain', 'model = [1]', r'model has to be a dict, not \[1\]'),
        ('mmpretrain', "default_scope = 'mmdat'", 'did you mean mmdet?'),
        # The runner and its parts.
        (
            'mmpretrain',
            BACKEND.format('WandbVisBackend'),
            'visualizer.vis_backends.0: a package is missing .*wandb',
        ),
        (
            'mmpretrain',
            "optim_wrapper['optimizer']['type'] = 'SDG'",
            'optim_wrapper.optimizer: .*SDG: did you mean SGD?',
        ),
        (
            'mmpretrain',
            "optim_wrapper['optimizer']['lr'] = -1",
            'optim_wrapper.optimizer: SGD .*Invalid learning rate: -1',
        ),
        (
            'mmpretrain',
            "param_scheduler = [dict(type='CosineRestart')]",
            'param_scheduler.0: .*did you mean CosineRestart',
        ),
        (
            'mmpretrain',
            "default_hooks['logger']['intervall'] = 3",
            'default_hooks.logger: LoggerHook has no argument intervall',
        ),
        ('mmpretrain', "train_cfg['max_epochs'] = 'x'", "max_epochs .*'x'"),
        ('mmpretrain', "train_cfg['max_epochs'] = 0", 'above zero, not 0'),
        (
            'mmpretrain',
            'train_dataloader.update(batch_size=100, drop_last=True)',
            'an epoch has no batch; set drop_last=False',
        ),
        (
            'mmpretrain',
            "train_dataloader['batchsize'] = 4",
            'train_dataloader: DataLoader has no argument batchsize',
        ),
        (
            'mmpretrain',
            "val_evaluator['type'] = 'Acuracy'",
            'val_evaluator: Acuracy .* did you mean Accuracy?',
        ),
        # The data.
        (
            'mmpretrain',
            "pipeline[0]['type'] = 'LoadImage'",
            'LoadImage is not .* did you mean LoadImageFromFile?',
        ),
        (
            'mmdet',
            CLASSES.format('train'),
            'no class of the config is a category .*unicorn.*person, bicycle',
        ),
        ('mmdet', CLASSES.format('val'), 'val_dataloader.dataset .*unicorn'),
        ('mmseg', CLASSES.format('train'), 'not a subset .*METAINFO'),
        # The start.
        ('mmpretrain', "load_from = 'none.pth'", 'There is no checkpoint '),
        (
            'mmpretrain',
            f"{SPARSE}custom_hooks[0]['interval'] = 1000",
            'never be updated: .*1000.* due by step 2',
        ),
        (
            'mmpretrain',
            f"{SPARSE}custom_hooks[0]['intervall'] = 5",
            'no argument intervall: did you mean interval?',
        ),
    ],
)
def test_a_run_that_cannot_start_says_one_sentence(
    tmp_path, data, capsys, scope, code, sentence
):
    config = Path(write_config(tmp_path, scope, data[scope]))
    with config.open('a') as stream:
        stream.write(f'{code}\n')
    with pytest.raises(SystemExit, match=sentence) as stop:
        train.main([str(config), '--work-dir', str(tmp_path / 'work')])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.err.strip() == str(stop.value) and 'mmengine -' not in said.out


@pytest.mark.parametrize(
    'options, sentence',
    [
        ('--sparsity nan', 'nan'),
        ('--work-dir file/x', 'The work dir .*file/x cannot be written'),
        ('--launcher slurm', 'needs SLURM_PROCID, .*slurm_train.sh or srun'),
        ('--launcher pytorch', 'needs RANK, .*dist_train.sh or torchrun'),
        ('--launcher mpi', 'needs OMPI_COMM_WORLD_LOCAL_RANK, .*mpirun'),
        ('--resume none.pth', 'There is no checkpoint '),
        ('--cfg-options model.bakbone.depth=3', 'did you mean backbone?'),
    ],
)
def test_options_that_cannot_hold_are_refused(configs, options, sentence):
    Path('file').write_text('')
    with pytest.raises(SystemExit, match=sentence):
        train.main([configs['mmpretrain'], *options.split()])


def test_a_run_that_is_done_says_so(runs, capsys):
    run = runs['mmpretrain']
    options = '--work-dir', str(run.work_dir), '--resume'
    train.main([run.config, *options])
    said = capsys.readouterr().out
    assert 'Nothing is left to do: the run ends after 3 iter' in said


def test_the_tool_says_its_sentence_before_the_banner(tmp_path, data):
    config = write_config(tmp_path, 'mmpretrain', data['mmpretrain'])
    done = run_forked(
        *(ROOT / 'tools/train.py', config, '--work-dir', tmp_path / 'w'),
        *('--cfg-options', 'train_cfg.max_epochs=-1'),
    )
    assert done.returncode == 2 and len(done.stdout.splitlines()) == 1


def scripts():
    """Return the module of each command."""
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    return [text.partition(':')[0] for text in project['scripts'].values()]


@pytest.mark.filterwarnings('ignore:.*found in sys.modules')
@pytest.mark.parametrize('module', scripts())
def test_a_module_of_a_command_runs_it(module, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [module, '--help'])
    with pytest.raises(SystemExit, match='0'):
        runpy.run_module(module, run_name='__main__')
    assert capsys.readouterr().out.startswith('usage: ')
