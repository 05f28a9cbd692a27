"""Sweeps on a cluster: submitit's own code on stand-ins of Slurm."""

import json
import os
import shlex
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from submitit.core.submission import submitit_main

from helpers.fake_tools import new_calls
from sift_mm.cli.cluster import Slurm
from sift_mm.cli.experiments import Experiment, run_experiments
from sift_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('standins')

# Commands of a cluster: a job waits in a folder for a process to run it.
SLURM = {
    'sbatch': """
import os, shutil, sys
shutil.copy(sys.argv[1], f'queue/{os.getpid()}.part')
os.rename(f'queue/{os.getpid()}.part', f'queue/{os.getpid()}.sh')
print('Submitted batch job', os.getpid())
""",
    'srun': '',
    'sacct': """
import os, sys
print('JobID|State|NodeList')
for word in sys.argv[1:]:
    if word.isdigit():
        ended = os.path.exists(f'queue/{word}.ended')
        print(f'{word}|{"COMPLETED" if ended else "RUNNING"}|here')
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


def work(script):
    """Run what a job's script does, in a fork that has the libraries."""
    (line,) = (x for x in script.read_text().splitlines() if 'srun ' in x)
    number = script.stem
    words = shlex.split(line.replace('%j', number).replace('%t', '0'))
    out = os.open(words[words.index('--output') + 1], os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    names = ('NTASKS', 'JOB_NUM_NODES', 'NODEID', 'PROCID', 'LOCALID')
    values = zip(names, '11000', strict=True)
    os.environ.update({f'SLURM_{name}': value for name, value in values})
    os.environ.update(SLURM_JOB_ID=number, SUBMITIT_EXECUTOR='slurm')
    assert words[-2] == 'submitit.core._submit'
    sys.argv = ['', words[-1]]
    submitit_main()


def run_queue(stop):
    """Run the jobs that wait until an event is set."""
    jobs = {}
    while jobs or not stop.is_set():
        for script in Path('queue').glob('*.sh'):
            script = script.rename(script.with_suffix('.started'))
            pid = os.fork()
            if not pid:
                try:
                    work(script)
                finally:
                    os._exit(0)
            jobs[pid] = script.with_suffix('.ended')
        for pid in [*jobs]:
            if os.waitpid(pid, os.WNOHANG)[0]:
                jobs.pop(pid).touch()
        time.sleep(0.02)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Put stand-ins of Slurm on the path, and run its jobs."""
    for name, text in SLURM.items():
        (tmp_path / 'bin' / name).parent.mkdir(exist_ok=True)
        (tmp_path / 'bin' / name).write_text(f'#!{sys.executable}{text}')
        (tmp_path / 'bin' / name).chmod(0o755)
    Path('queue').mkdir()
    monkeypatch.setenv('PATH', str(tmp_path / 'bin'), prepend=os.pathsep)
    stop = threading.Event()
    with ThreadPoolExecutor() as pool:
        pool.submit(run_queue, stop)
        yield
        stop.set()


def test_jobs_outlive_a_killed_sweep_which_follows_them(slurm, capsys):
    Path('net_2e.py').write_text('train_cfg = dict(max_epochs=2)')
    Path('misbehave.py').write_text(WAIT)
    plan = [Experiment(Path('runs'), name, 'net_2e.py') for name in 'ab']
    launcher = Slurm(dict(partition='gpu', time=90), threads=2)
    forked = os.fork()
    if not forked:
        run_experiments(plan, None, launcher=launcher)
    try:
        end = time.monotonic() + 60
        while not Path('runs/a/waits').exists():
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        os.kill(forked, signal.SIGKILL)
        os.waitpid(forked, 0)
    scripts = [p.read_text() for p in Path('queue').glob('*.started')]
    assert len(scripts) == 2
    for option in ('partition=gpu', 'time=90', 'cpus-per-task=2'):
        assert all(f'#SBATCH --{option}\n' in text for text in scripts)
    capsys.readouterr()

    Path('go').touch()
    # The job of b has ended: it gets another one.
    with pytest.raises(UserError, match='^1 runs failed. b/train failed'):
        run_experiments(plan, None, launcher=launcher)
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
    run_experiments(plan[:1], launcher=launcher)
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
