#!/usr/bin/env bash
# Kernel tests, then kernel benchmarks, on the CUDA device of this machine. Offline: it needs only
# PyTorch with CUDA, nvcc, CMake >= 3.26, ninja and pytest. Results: benchmarks/results/<date>-<device>/.
#
#   PYTHON=python3 tools/gpu_suite.sh [tests|bench|all]      OUT=DIR to write elsewhere
#   MC_OPS_LIBRARY=_ops.so (of a wheel that holds code for this device): nothing is built
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
what=${1:-all}
build=build/gpu

device=$("$python" - <<'PY'
try:
    import torch
except ImportError:
    raise SystemExit("make gpu: this Python has no torch; set PYTHON to one with a CUDA build of it")
if not torch.cuda.is_available():
    raise SystemExit(f"make gpu: torch {torch.__version__} sees no CUDA device on this machine")
major, minor = torch.cuda.get_device_capability()
# Hopper's and Blackwell's own instructions need the architecture-specific target.
print(f"{major}{minor}{'a' if major >= 9 else ''}-real")
PY
) || exit 1

if [ -z "${MC_OPS_LIBRARY:-}" ]; then
  command -v nvcc >/dev/null || { echo "make gpu: nvcc is not on the PATH" >&2; exit 1; }
  echo "gpu: building for $device"
  mkdir -p "$build"
  cmake -S . -B "$build" -G Ninja -DMC_CUDA=ON -DMC_CUDA_ARCHS="$device" -DMC_ENGINE=OFF \
    -DPython_EXECUTABLE="$(command -v "$python")" >"$build/configure.log" 2>&1 \
    || { tail -40 "$build/configure.log"; exit 1; }
  cmake --build "$build" --target _ops 2>&1 | tail -20
  MC_OPS_LIBRARY=$PWD/$build/_ops.so
fi

export MC_OPS_LIBRARY PYTHONPATH="$PWD:$PWD/python" PYTHONUNBUFFERED=1
status=0
if [ "$what" != bench ]; then
  "$python" -m pytest tests/kernels -m "not slow" -k "cuda and not cuda_emu" -p no:cacheprovider \
    --override-ini addopts="--import-mode=importlib" -q --maxfail=20 || status=$?
fi
if [ "$what" != tests ]; then
  "$python" -m benchmarks run 'kernels/*' --full --device cuda ${OUT:+--out "$OUT"} || status=$?
fi
exit $status
