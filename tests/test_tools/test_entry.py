"""What a command line says of a mistake, and what of an error."""

import errno
from pathlib import Path

import pytest
from forks import run_forked
from minirun import ROOT, write_config

from sift_mm.cli.entry import Parser, entry_point, explain
from sift_mm.errors import Mistake, MistakenKey, MistakenType

SENTENCE = 'The left is right: turn it.'


def raised(error, *outer):
    """An error, raised anew as others."""
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
        raised(Mistake(SENTENCE)),
        raised(MistakenKey(SENTENCE)),
        # Of a hook's call.
        raised(
            MistakenType(SENTENCE),
            TypeError(f'{SENTENCE} in <x.Hook object at 0x7f01>'),
        ),
        # One that says more than the first.
        raised(Mistake('left'), Mistake(SENTENCE)),
    ],
)
def test_the_sentence_stands_alone(error):
    assert explain(error) == SENTENCE


@pytest.mark.parametrize(
    'error',
    [
        raised(ValueError('any')),
        # An error in what deals with a mistake is another error.
        raised(Mistake(SENTENCE), KeyError('any')),
        raised(OSError(errno.EIO, 'Input/output error')),
        raised(RuntimeError('Connection closed by peer')),  # Of no group.
    ],
)
def test_an_error_is_no_mistake(error):
    assert explain(error) is None


def command(argv):
    Parser(description='x').parse_args(argv)
    raise Mistake(SENTENCE)


def test_a_mistake_ends_with_its_sentence_and_code_2(capsys):
    with pytest.raises(SystemExit, match=SENTENCE) as stop:
        entry_point(command)([])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f'{SENTENCE}\n'


def test_where_it_was_found_is_shown_if_wanted():
    with pytest.raises(Mistake, match=SENTENCE):
        entry_point(command)(['--traceback'])


SPARSE = (
    "\ncustom_imports = dict(imports=['sift_mm'])\n"
    "model['backbone'].update(type='SparseIFTResNet_CIFAR', family='wide', "
    "sparsity=0.75)\nmodel['head']['in_channels'] = 128\n"
    "custom_hooks = [dict(type='SparseTrainingHook')]\n"
)


@pytest.mark.parametrize(
    'code, options, sentence',
    [
        (
            "custom_hooks[0]['intervall'] = 5",
            [],
            'SparseTrainingHook has no argument intervall: did you mean '
            'interval?',
        ),
        ('', ['--sparsity', 'nan'], 'nan'),
        ('', ['--resume', 'none.pth'], 'There is no checkpoint '),
        ("load_from = 'none.pth'", [], 'There is no checkpoint '),
    ],
)
def test_the_tool_says_one_sentence_before_the_banner(
    tmp_path, data, code, options, sentence
):
    config = Path(write_config(tmp_path, 'mmpretrain', data['mmpretrain']))
    with config.open('a') as stream:
        stream.write(f'{SPARSE}{code}\n')
    done = run_forked(
        ROOT / 'tools/train.py', config, '--work-dir', tmp_path, *options
    )
    assert done.returncode == 2, done.stdout
    lines = done.stdout.strip().splitlines()
    assert sentence in lines[-1] and len(lines) < 5, done.stdout
    assert 'Traceback' not in done.stdout
