#!/usr/bin/env bash
# Several processes of nnxconv on this machine, which share one conversion.
#
#   loopback.sh SRC DST [further options of `nnxconv convert`]
#
# The same by hand, in two terminals:
#
#   nnxconv convert SRC DST --distributed \
#     --coordinator_address 127.0.0.1:9911 --num_processes 2 --process_id 0
#   nnxconv convert SRC DST --distributed \
#     --coordinator_address 127.0.0.1:9911 --num_processes 2 --process_id 1
#
# PROCESSES (2) and PORT (9911) may be set. The exit code is that of every process.
set -euo pipefail

export JAX_COORDINATOR_ADDRESS="127.0.0.1:${PORT:-9911}"
export JAX_NUM_PROCESSES="${PROCESSES:-2}"

started=()
for ((number = 0; number < JAX_NUM_PROCESSES; number++)); do
  JAX_PROCESS_ID="$number" nnxconv convert "$@" --distributed &
  started+=("$!")
done

status=0
for process in "${started[@]}"; do
  wait "$process" || status=$?
done
exit "$status"
