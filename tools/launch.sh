# What dist_*.sh and slurm_*.sh share; they source it.
# shellcheck shell=bash

# need N ARGUMENTS...: ends with the usage, a script's third line, below N.
need() {
    if [ $# -le "$1" ]; then
        sed -n '3s/^# */Usage: /p' "$0" >&2
        exit 2
    fi
}

# on_this_machine PROCESSES TOOL ARGUMENTS...
on_this_machine() {
    exec "${PYTHON:-python}" -m torch.distributed.run \
        --nnodes="${NNODES:-1}" \
        --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" \
        --master_port="${PORT:-29500}" \
        --nproc_per_node="$1" \
        "$(dirname "$0")/$2" "${@:3}"
}

# in_slurm PARTITION JOB_NAME TOOL ARGUMENTS...
in_slurm() {
    GPUS=${GPUS:-8}
    GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
    # SRUN_ARGS is unquoted: it holds several arguments.
    # shellcheck disable=SC2086
    exec srun -p "$1" \
        --job-name="$2" \
        --gres="gpu:$GPUS_PER_NODE" \
        --ntasks="$GPUS" \
        --ntasks-per-node="$GPUS_PER_NODE" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 \
        ${SRUN_ARGS:-} \
        "${PYTHON:-python}" -u "$(dirname "$0")/$3" "${@:4}"
}
