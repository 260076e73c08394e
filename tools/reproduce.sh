#!/usr/bin/env bash
# Reproduces one figure of a committed report from a fresh clone, and says whether it lies within its interval.
#   tools/reproduce.sh FOLDER TASK LENGTH [METHOD] [EXAMPLES]
#   tools/reproduce.sh benchmarks/results/2026-11-25-long-smollm2 niah_multikey_1 64k megacontext
# Sets up and builds on first use (some minutes). Exit 0: within; 1: outside; 2: no such figure.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?usage: tools/reproduce.sh FOLDER TASK LENGTH [METHOD] [EXAMPLES]}
task=${2:?a task of the report, like niah_multikey_1}
length=${3:?a length of the report, like 64k}
make -s build >&2
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/megacontext eval long reproduce "$folder" --task "$task" --length "$length" \
  --method "${4:-megacontext}" --examples "${5:-0}"
