#!/usr/bin/env bash
# Tests in several processes on this machine, or on one of several.
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
# Environment: as of dist_train.sh.
. "$(dirname "$0")/launch.sh"
need 3 "$@"
on_this_machine "$3" test.py "$1" "$2" --launcher pytorch "${@:4}"
