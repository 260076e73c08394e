#!/usr/bin/env bash
# One built operator library under several versions of torch: it must load and pass a smoke set.
#
#   tools/check_torch_versions.sh install          the oldest supported and the newest, into build/torch
#   tools/check_torch_versions.sh [FOLDER...]
#
# Each FOLDER holds a torch package (pip install --no-deps --target FOLDER torch==...); everything else
# comes from the environment of PYTHON (default .venv/bin/python), whose own torch is always tried.
# Without folders those of MC_TORCH_FOLDERS (separated by colons), or else of build/torch. A CUDA build of torch asks for several GB of CUDA libraries; where there is no
# GPU, empty libraries of those names, made here, are enough to load it. Fails if one version fails.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
find_library='from megacontext_ext.ops import _load; print(_load.library_path())'
library=${MC_OPS_LIBRARY:-$("$python" -c "$find_library")}
here=build/torch

# About 1 GB each. pip writes nothing where it fails: a version that was there stays.
install() {
  local oldest
  oldest=$(sed -n 's/^ *"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml)
  "$python" -m pip install --quiet --no-deps --upgrade --target "$here/oldest" "torch==$oldest.*"
  "$python" -m pip install --quiet --no-deps --upgrade --target "$here/newest" torch
}

if [ "${1:-}" = install ]; then
  install
  exit
fi
folders=("$@")
if [ $# = 0 ] && [ -n "${MC_TORCH_FOLDERS:-}" ]; then
  IFS=: read -r -a folders <<<"$MC_TORCH_FOLDERS"
elif [ $# = 0 ]; then
  for folder in "$here"/*/; do [ ! -d "$folder/torch" ] || folders+=("$PWD/${folder%/}"); done
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

needed() { readelf -d "$1"/torch/lib/*.so | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort -u; }

# stand_ins FOLDER OUT: for each CUDA library that this torch names, one whose functions all fail.
stand_ins() {
  mkdir -p "$2"
  nm -D --undefined-only "$1"/torch/lib/*.so | awk '{print $2}' | sed 's/@.*//' |
    grep -E '^_*(cu|nccl|nvrtc|nvshmem|nvJitLink|nvml)\w*$' | sort -u |
    sed 's/.*/int &(void) { return 100; }/' >"$2/failing.c"
  needed "$1" | { grep -E '^lib(cu|nccl|nvrtc|nvshmem)' || true; } | while read -r name; do
    [ -e "$1/torch/lib/$name" ] && continue
    version=$name
    [ "${name#libnvshmem}" = "$name" ] || version=NVSHMEM
    echo "$version { global: *; };" >"$2/versions.map"
    gcc -shared -fPIC -w -o "$2/$name" "$2/failing.c" "-Wl,-soname,$name" \
      "-Wl,--version-script=$2/versions.map"
  done
}

echo "library: $(sha256sum "$library" | cut -c1-16), $(stat -c %s "$library") bytes"
failed=0
for folder in "" "${folders[@]}"; do
  [ -z "$folder" ] || [ -n "${MC_REAL_CUDA:-}" ] || stand_ins "$folder" "$work/$(basename "$folder")"
  MC_OPS_LIBRARY=$library PYTHONPATH="$folder${folder:+:}$PWD" \
    LD_LIBRARY_PATH="$work/$(basename "$folder"):${LD_LIBRARY_PATH:-}" \
    "$python" -P tools/smoke_ops.py || { echo "FAILED: ${folder:-torch of $python}"; failed=1; }
done
exit $failed
