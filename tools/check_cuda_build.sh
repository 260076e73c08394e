#!/usr/bin/env bash
# Compiles the CUDA kernels as a wheel would and looks at the result, without a GPU: no kernel may
# spill registers but those of KNOWN, and the library must hold code for every architecture.
#
#   tools/check_cuda_build.sh [BUILD_FOLDER]        ARCHS="80-real;90a-real;100-real;120" by default
#
# Needs nvcc, and CMake and ninja beside PYTHON or on the path; looks into the library with cuobjdump
# where there is one (CUDA toolkit, or `pip install nvidia-cuda-cuobjdump`).
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/cuda}
archs=${ARCHS:-80-real;90a-real;100-real;120}
python=${PYTHON:-.venv/bin/python}
python=$(realpath -s "$(command -v "$python")")
PATH=$(dirname "$python"):$PATH
# Float32 on CUDA is for checking, not for speed.
KNOWN='attend_f32_kernel|_f32_kernel'

mkdir -p "$build"
cmake -S . -B "$build" -G Ninja -DMC_CUDA=ON -DMC_CUDA_ARCHS="$archs" -DMC_ENGINE=OFF \
  -DPython_EXECUTABLE="$python" -DCMAKE_CUDA_FLAGS="-Xptxas=-v" >"$build/configure.log"
# Appended as it comes: objects that are up to date were written by an earlier run, cut off or not.
cmake --build "$build" --target _ops 2>&1 | tee -a "$build/ptxas.log" | { grep -E '^\[|error' || true; }

# Of a kernel that was compiled several times the last time counts.
found=$(c++filt <"$build/ptxas.log" | awk '
  /Compiling entry function/ {name = $0; spilled[name] = ""}
  /bytes spill stores/ && !/ 0 bytes spill stores/ {spilled[name] = $0}
  END {for (name in spilled) print name ": " spilled[name]}')
kernels=$(echo "$found" | wc -l)
spills=$(echo "$found" | grep 'bytes spill stores' | grep -Ev "$KNOWN" | sort || true)
echo "$kernels kernels compiled, $(echo -n "$spills" | grep -c . || true) of them spill"
[ -z "$spills" ] || echo "$spills"

library=$(find "$build" -name _ops.so | head -1)
cuobjdump=$(command -v cuobjdump || "$python" - <<'PY'
import glob, sysconfig
print(next(iter(glob.glob(sysconfig.get_paths()["purelib"] + "/nvidia/**/cuobjdump", recursive=True)), ""))
PY
)
missing=0
if [ -n "$cuobjdump" ]; then
  held=$({ "$cuobjdump" --list-elf "$library"; "$cuobjdump" --list-ptx "$library"; } | grep -o 'sm_[0-9a-z]*' | sort -u | tr '\n' ' ')
  echo "library: $(stat -c %s "$library") bytes, code for $held"
  for arch in ${archs//;/ }; do
    [[ " $held" == *" sm_${arch%-real} "* ]] || { echo "MISSING: sm_${arch%-real}"; missing=1; }
  done
else
  echo "architectures not looked at: no cuobjdump"
fi
[ -z "$spills" ] && [ $missing = 0 ]
