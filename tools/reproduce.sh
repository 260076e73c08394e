#!/usr/bin/env bash
# Answers a figure of a committed report again, and says whether it lies within its stated interval.
#   tools/reproduce.sh FOLDER [--task T,...] [--length L,...] [--method M,...] [--examples N] [--sample N]
#   tools/reproduce.sh benchmarks/results/2026-11-25-long-smollm2 --task niah_multikey_1 --method megacontext
#   tools/reproduce.sh benchmarks/results/2026-11-25-long-smollm2 --sample 5        # of all of it, minutes
# Works in a fresh clone: sets up and builds on first use (some minutes). What is left out means all.
# Exit 0: within; 1: outside; 2: no such figure, or a part of it cannot run here.
set -euo pipefail
folder=$(realpath "${1:?usage: tools/reproduce.sh FOLDER [--task T] [--length L] [--method M] [--sample N]}")
shift
cd "$(dirname "$0")/.."
# Without the C++ tests, as the demo.
make -s build BUILD_TESTS=OFF >&2
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/megacontext eval long reproduce "$folder" "$@"
