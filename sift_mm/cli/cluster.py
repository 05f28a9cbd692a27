"""Experiments as jobs of a Slurm cluster, by submitit."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sift_mm.cli.experiments import Experiment, Work
from sift_mm.cli.progress import Job
from sift_mm.errors import UserError
from sift_mm.names import check_names

# submitit's own limit is five minutes.
MINUTES = 24 * 60
# Seconds after which a job that the cluster does not know is taken for gone.
FORGOTTEN = 300


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

    def start(self, experiment: Experiment) -> Job:
        """Start an experiment as a job, or follow the job that it has."""
        return Job(experiment, lambda: self._submit(experiment))

    def _submit(self, experiment: Experiment) -> Any:
        """Return submitit's job of an experiment.

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
                return job
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
        return job

    def stop(self, jobs: Sequence[Job]) -> None:
        """Leave the jobs on the cluster, and say so."""
        if jobs:
            numbers = ' '.join(job.number for job in jobs)
            print(
                f'{len(jobs)} jobs go on: the same command line follows them '
                f'again, and scancel {numbers} ends them.',
                flush=True,
            )
