"""Commands, paths, options and messages in the pages are those of the code."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields
from functools import cache

import pytest

from helpers.runs import ROOT
from sift_mm.sparsity import RunOptions

sys.path.insert(0, str(ROOT / 'docs/extension'))

import reference  # noqa: E402

PAGES = sorted(
    ROOT / name
    for name in subprocess.check_output(
        ['git', 'ls-files', '-co', '--exclude-standard', '*.md'],
        cwd=ROOT,
        text=True,
    ).splitlines()
    if (ROOT / name).exists()
)
BASH = re.compile(r'^```bash\n(.*?)^```', re.S | re.M)
PYTHON = re.compile(r'^```python\n(.*?)^```', re.S | re.M)
PATH = re.compile(
    r'\b(?:configs|sift_mm|tests|tools|docs|benchmarks)/[\w./-]+\.(?:py|md|sh)\b'
)
# Of the example of a new member, and of the reader's own.
INVENTED = {'sift_mm/layers/twins.py'}


def page_id(page):
    return str(page.relative_to(ROOT))


@cache
def parsers():
    return {name: parser for name, parser, _ in reference.find_commands()}


@cache
def messages():
    """Return all strings of the package, with … for what is inserted."""
    texts = []
    for path in (ROOT / 'sift_mm').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    ''.join(
                        str(part.value)
                        if isinstance(part, ast.Constant)
                        else '…'
                        for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant):
                texts.append(str(node.value))
    return '\n'.join(texts)


def find_commands(page):
    """Yield each command line of ours with its parser and arguments."""
    scripts = {
        f'tools/{t.removeprefix("sift_mm.cli.").partition(":")[0]}.py': n
        for n, t in tomllib.loads((ROOT / 'pyproject.toml').read_text())[
            'project'
        ]['scripts'].items()
    }
    for block in BASH.findall(page.read_text()):
        for line in block.replace('\\\n', ' ').splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
                del words[0]
            match words:
                case ['bash', 'tools/dist_train.sh', config, _, *rest]:
                    yield line, 'sift-train', [config, *rest]
                case ['bash', 'tools/dist_test.sh', config, file, _, *rest]:
                    yield line, 'sift-test', [config, file, *rest]
                case ['bash', 'tools/slurm_train.sh', _, _, config, _, *rest]:
                    yield line, 'sift-train', [config, *rest]
                case ['python', script, *rest] if script in scripts:
                    yield line, scripts[script], rest
                case [name, *rest] if name.startswith('sift-'):
                    yield line, name, rest


@pytest.mark.parametrize('page', PAGES, ids=page_id)
def test_commands_parse(page, capsys):
    for line, name, arguments in find_commands(page):
        try:
            parsers()[name].parse_args(arguments)
        except SystemExit:
            pytest.fail(f'{line}\n{capsys.readouterr().err}')


@pytest.mark.parametrize('page', PAGES, ids=page_id)
def test_paths_exist_and_code_compiles(page):
    text = page.read_text()
    missing = {
        path
        for path in PATH.findall(text)
        if not (ROOT / path).exists() and path not in INVENTED
    }
    assert not missing
    for code in PYTHON.findall(text):
        compile(code, page.name, 'exec')


@pytest.mark.parametrize('page', PAGES, ids=page_id)
def test_paragraphs_are_short(page):
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.S | re.M)
    for block in re.split(r'\n\s*\n|\n(?=- |\d+\. |\|)', text):
        lines = [line for line in block.splitlines() if line.strip()]
        prose = lines and not lines[0].startswith(('|', '    ', '<'))
        if prose:
            assert len(lines) <= 3, block
            assert max(map(len, lines)) <= 132, block


def test_every_option_and_command_has_its_place():
    options = {each.name: each for each in reference.find_options()}
    assert list(options) == [field.name for field in fields(RunOptions)]
    assert options['algorithm'].default == "`'RigL'`"
    start = "`dict(type='Cosine', initial=0.3)`"
    assert options['drop_fraction'].default == start
    assert options['transfer'].default == "`'fixed'`"
    assert set(parsers()) == set(
        re.findall(
            r'^```{command-line} (.*)',
            (ROOT / 'docs/commands.md').read_text(),
            re.M,
        )
    )


def test_messages_are_those_of_the_code():
    rows = re.findall(
        r'^\| `(.+?)` \|', (ROOT / 'docs/messages.md').read_text(), re.M
    )
    assert len(rows) > 30
    unknown = [row for row in rows if row not in messages()]
    assert not unknown


def test_promises_name_tests_that_exist():
    page = (ROOT / 'docs/reliability.md').read_text()
    promised = set(re.findall(r'`(test_\w+)`', page))
    assert len(promised) > 30
    code = '\n'.join(p.read_text() for p in ROOT.glob('tests/**/test_*.py'))
    assert not promised - set(re.findall(r'^def (test_\w+)\(', code, re.M))
