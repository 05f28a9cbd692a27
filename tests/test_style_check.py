"""The rules of style that `make lint` holds."""

import subprocess
import sys

import pytest
import style_check

FUNCTION = 'def f():\n    """{}"""\n'
CLASS = 'class C:\n    """{}"""\n'


@pytest.mark.parametrize(
    'source, finding',
    [
        (FUNCTION.format('Return the masks.'), ''),
        (FUNCTION.format('The masks.'), 'imperative, not with "The"'),
        (FUNCTION.format('Draws masks.'), '"Draw" in place of "Draws"'),
        (FUNCTION.format('Whether it is.'), 'begins with "Whether"'),
        (FUNCTION.format('Return' + ' all' * 20), '21 words, at most 20'),
        ('"""What masks do."""\n', 'begins with "What"'),
        (CLASS.format('Hook that trains masks.'), ''),
        (CLASS.format('Set of masks.'), ''),
        (CLASS.format('A hook.'), ''),
        (CLASS.format('Trains masks.'), 'not with "Trains"'),
        (CLASS.format('Build masks.'), 'not with "Build"'),
        (
            'class C:\n    @property\n    def n(self):\n'
            '        """Number of masks."""\n',
            '',
        ),
        ('def f():\n' + '    # Why.\n\n    pass\n' * 64, ''),
        ('def f():\n' + '    # Why.\n\n    pass\n' * 65, '66 lines of code'),
        ('#\n' * 400, ''),
        ('#\n' * 401, '401 lines'),
    ],
)
def test_findings(tmp_path, source, finding):
    path = tmp_path / 'module.py'
    path.write_text(source)
    found = [message for _, message in style_check.check_file(path)]
    assert len(found) == bool(finding), found
    assert finding in ''.join(found)


def test_modules_of_one_name_and_the_exit_status(tmp_path):
    package = tmp_path / 'sift_mm'
    for folder in (package, package / 'a', package / 'b'):
        folder.mkdir()
        (folder / '__init__.py').touch()
    files = [package / 'a/masks.py', package / 'b/masks.py']
    for file in files:
        file.touch()

    def check(*names):
        return subprocess.run(
            [sys.executable, style_check.__file__, *names],
            capture_output=True,
            text=True,
        )

    assert check(files[0]).returncode == 0
    done = check(*files)
    assert done.returncode == 1
    assert done.stdout.endswith(f'name taken by {files[0]}\n')
    assert done.stdout.startswith(f'{files[1]}:1: ')
