#!/usr/bin/env bash
# Trains in several processes on this machine, or on one of several.
#   tools/dist_train.sh CONFIG GPUS [options of train.py]
# Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT, PYTHON. Without a GPU the
# processes run on the CPU.
. "$(dirname "$0")/launch.sh"
need 2 "$@"
on_this_machine "$2" train.py "$1" --launcher pytorch "${@:3}"
