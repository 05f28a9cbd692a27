#!/usr/bin/env bash
# Tests in a Slurm job, one task a GPU.
#   tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [test.py options]
# Environment: as of slurm_train.sh.
. "$(dirname "$0")/launch.sh"
need 4 "$@"
in_slurm "$1" "$2" test.py "$3" "$4" --launcher=slurm "${@:5}"
