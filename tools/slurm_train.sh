#!/usr/bin/env bash
# Trains in a Slurm job, one task a GPU.
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [train.py options]
# Environment: GPUS (8), GPUS_PER_NODE (GPUS, at most 8), CPUS_PER_TASK (5),
# SRUN_ARGS, PYTHON.
. "$(dirname "$0")/launch.sh"
need 4 "$@"
in_slurm "$1" "$2" train.py "$3" --work-dir="$4" --launcher=slurm "${@:5}"
