"""Experiments as jobs of a Slurm cluster, by submitit."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sift_mm.cli.experiments import (
    TOOLS,
    Experiment,
    command_line,
    environment,
)
from sift_mm.cli.progress import Job
from sift_mm.errors import UserError
from sift_mm.names import check_names

# submitit's own limit is five minutes.
MINUTES = 24 * 60
# Seconds after which a job that the cluster does not know is taken for gone.
FORGOTTEN = 300


@dataclass(frozen=True)
class Work:
    """Missing commands of an experiment, as a job runs them.

    Args:
        experiment (Experiment): The experiment.
        threads (int, optional): Threads of PyTorch.
        tools (Mapping): Commands of the process that submits.
    """

    experiment: Experiment
    threads: int | None = None
    tools: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: dict(TOOLS)
    )

    def __call__(self) -> str:
        """Run the commands; return a sentence if one fails, else ''."""
        TOOLS.update(self.tools)
        try:
            for tool, words in self.experiment.commands():
                log = self.experiment.log(tool)
                with log.open('a') as stream:
                    done = subprocess.run(
                        command_line(tool, words),
                        stdin=subprocess.DEVNULL,
                        stdout=stream,
                        stderr=subprocess.STDOUT,
                        env=environment(self.threads),
                    )
                if done.returncode:
                    name = f'{self.experiment.name}/{tool}'
                    return f'{name} failed; its log is {log}.'
        except UserError as error:
            return str(error)
        return ''

    def checkpoint(self) -> Any:
        """Return the same work: submitit queues it again at a time limit."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class ClusterJob(Job):
    """Experiment as a job of the cluster.

    Args:
        experiment (Experiment): The experiment.
        job (Any): submitit's job.
    """

    def __init__(self, experiment: Experiment, job: Any) -> None:
        super().__init__(experiment.name)
        self.experiment = experiment
        self.job = job
        self._sizes = {tool: _size(experiment.log(tool)) for tool in TOOLS}
        self.news.append(f'{experiment.name} is job {job.job_id}')

    def advance(self) -> bool:
        """Read progress; return whether the job has ended well.

        Raises:
            UserError: If it failed, or the cluster ended it.
        """
        for tool, before in [*self._sizes.items()]:
            log = self.experiment.log(tool)
            if _size(log) != before:
                del self._sizes[tool]
                self.begin(tool, log, before if _size(log) > before else 0)
        self.read_log()
        if not self.job.done():
            if not self.title:
                self.step = f'job {self.job.job_id}: {self.job.state}'
            return False
        try:
            sentence = self.job.result()
        except (RuntimeError, OSError) as error:
            raise UserError(
                f'{self.name}: job {self.job.job_id} ended without a result '
                f'({str(error).splitlines()[0]}); its output is '
                f'{self.job.paths.stdout}.'
            ) from error
        if sentence:
            raise UserError(sentence)
        return True


class Slurm:
    """Launcher of jobs on a Slurm cluster.

    Work dirs have to be on a file system that all machines share.

    Args:
        options (Mapping[str, Any]): Arguments of submitit's SlurmExecutor,
            such as ``partition`` and ``time`` in minutes.
        threads (int, optional): Threads of PyTorch in each.

    Raises:
        UserError: If submitit or Slurm is missing, or an argument is unknown.
    """

    def __init__(
        self, options: Mapping[str, Any], threads: int | None = None
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError(
                '--launcher slurm needs submitit: pip install submitit.'
            ) from error
        self._submitit = submitit
        if submitit.SlurmExecutor.affinity() < 0:
            raise UserError(
                '--launcher slurm: there is no srun on this machine; start '
                'the sweep on a login node of the cluster.'
            )
        known = submitit.SlurmExecutor._valid_parameters()
        check_names('--slurm: submitit has no parameter', options, known)
        cores = {} if threads is None else dict(cpus_per_task=threads)
        self._options = {
            **dict(time=MINUTES, stderr_to_stdout=True),
            **cores,
            **options,
        }
        self._threads = threads

    def start(self, experiment: Experiment) -> ClusterJob:
        """Start an experiment as a job, or follow the job that it has.

        Raises:
            UserError: If Slurm does not take the job.
        """
        folder = experiment.root / 'slurm' / experiment.name.replace('/', '-')
        number = folder / 'job.txt'
        if number.exists():
            job: Any = self._submitit.SlurmJob(folder, number.read_text())
            age = time.time() - number.stat().st_mtime
            ended = job.done(force_check=True)
            if not ended and (job.state != 'UNKNOWN' or age < FORGOTTEN):
                return ClusterJob(experiment, job)
        executor = self._submitit.SlurmExecutor(folder)
        name = f'{experiment.root.name}/{experiment.name}'
        executor.update_parameters(**dict(job_name=name) | self._options)
        try:
            job = executor.submit(Work(experiment, self._threads))
        except (RuntimeError, OSError) as error:
            raise UserError(
                f'sbatch does not take {experiment.name}: '
                f'{str(error).strip().splitlines()[-1]}'
            ) from error
        number.write_text(job.job_id)
        return ClusterJob(experiment, job)

    def stop(self, jobs: Sequence[ClusterJob]) -> None:
        """Leave the jobs on the cluster, and say so."""
        if jobs:
            numbers = ' '.join(job.job.job_id for job in jobs)
            print(
                f'{len(jobs)} jobs go on: the same command line follows them '
                f'again, and scancel {numbers} ends them.',
                flush=True,
            )


def _size(path: Path) -> int:
    """Return the size of a file, 0 without one."""
    return os.path.getsize(path) if path.exists() else 0
