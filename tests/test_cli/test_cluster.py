"""Sweeps on a cluster: submitit's own code on stand-ins of Slurm."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from helpers.fake_tools import new_calls
from sift_mm.cli.cluster import Slurm
from sift_mm.cli.experiments import Experiment, run_experiments
from sift_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('standins')

# A job is a process; its number is that of the process, its state a look-up.
SLURM = {
    'sbatch': """
import os, subprocess, sys
job = subprocess.Popen(
    ['bash', '-c', 'SLURM_JOB_ID=$$ exec bash "$0"', sys.argv[1]],
    stdout=open('sbatch.log', 'a'), stderr=subprocess.STDOUT,
    env={**os.environ, 'SLURM_NTASKS': '1', 'SLURM_JOB_NUM_NODES': '1',
         'SLURM_NODEID': '0', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0'},
    start_new_session=True)
with open('submitted.txt', 'a') as file:
    print(open(sys.argv[1]).read(), file=file)
print('Submitted batch job', job.pid)
""",
    'srun': """
import os, sys
words = sys.argv[1:]
place = words.index('--output')
log = words[place + 1].replace('%j', os.environ['SLURM_JOB_ID'])
out = os.open(log.replace('%t', '0'), os.O_WRONLY | os.O_CREAT)
os.dup2(out, 1), os.dup2(out, 2)
os.execvp(words[place + 2], words[place + 2:])
""",
    'sacct': """
import os, sys
print('JobID|State|NodeList')
for word in sys.argv[1:]:
    if word.isdigit():
        lives = os.path.exists(f'/proc/{word}')
        print(f'{word}|{"RUNNING" if lives else "COMPLETED"}|here')
""",
}
# Waits in a, fails in b.
WAIT = """
if 'runs/b' in str(folder):
    sys.exit('no such optimizer')
print('Epoch(train) [1][3/9] eta: 0:00:07', flush=True)
(folder / 'waits').touch()
end = time.monotonic() + 60
while not os.path.exists('go') and time.monotonic() < end:
    time.sleep(0.02)
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Put stand-ins of Slurm on the path."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name, text in SLURM.items():
        (folder / name).write_text(f'#!{sys.executable}{text}')
        (folder / name).chmod(0o755)
    monkeypatch.setenv('PATH', str(folder), prepend=os.pathsep)
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv('PYTHONPATH', str(root))


def test_jobs_outlive_a_killed_sweep_which_follows_them(slurm, capsys):
    Path('net_2e.py').write_text('train_cfg = dict(max_epochs=2)')
    Path('misbehave.py').write_text(WAIT)
    plan = [Experiment(Path('runs'), name, 'net_2e.py') for name in 'ab']
    launcher = Slurm(dict(partition='gpu', time=90), threads=2)
    forked = os.fork()
    if not forked:
        run_experiments(plan, None, launcher)
    try:
        end = time.monotonic() + 60
        while not Path('runs/a/waits').exists():
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        os.kill(forked, signal.SIGKILL)
        os.waitpid(forked, 0)
    submitted = Path('submitted.txt').read_text()
    assert submitted.count('#SBATCH --partition=gpu') == 2
    assert '--time=90' in submitted and '--cpus-per-task=2' in submitted
    capsys.readouterr()

    Path('go').touch()
    # Nothing is known of b's job but that it has ended: it is another one.
    with pytest.raises(UserError, match='^1 runs failed. b/train failed'):
        run_experiments(plan, None, launcher)
    number = Path('runs/slurm/a/job.txt').read_text()
    said = capsys.readouterr().out
    assert f'a is job {number}\n' in said and '\na: {"accuracy' in said
    assert '1 of 2 runs done, 1 failed' in said
    trained = [words for words in new_calls() if words[0] == 'train']
    ours = [words for words in trained if '--work-dir=runs/a' in words]
    assert len(ours) == 1
    assert {words[1] for words in trained} == {'2'}
    assert 'no such optimizer' in Path('runs/b/train.log').read_text()
    assert json.loads(plan[0].result.read_text())['mIoU'] == 40
    run_experiments(plan[:1], None, launcher)
    assert capsys.readouterr().out == '0 runs to do\n'


def test_what_a_cluster_needs_is_said(slurm, monkeypatch):
    with pytest.raises(UserError, match='no parameter partion: .*partition'):
        Slurm(dict(partion='gpu'))
    monkeypatch.setenv('PATH', '')
    with pytest.raises(UserError, match='there is no srun on this machine'):
        Slurm({})
    monkeypatch.setitem(sys.modules, 'submitit', None)
    with pytest.raises(UserError, match='pip install submitit'):
        Slurm({})
