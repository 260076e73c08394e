#!/usr/bin/env bash
# Trains KV gists on an offline CUDA machine from files that arrive in parts.
#
#   tools/gpu_train.sh pack OUT BASE_GGUF CONFIG_JSON SHARDS   here: writes OUT/one, two, three
#   tools/gpu_train.sh receive OUT/one                         there, call 1: keep the first part
#   tools/gpu_train.sh probe                                   there, call 1: speed, batch size
#   tools/gpu_train.sh train OUT/two                           there, call 2: first slice
#   tools/gpu_train.sh finish OUT/three                        there, call 3: last slice, measure
#
#   BASE=DIR SHARDS=DIR tools/gpu_train.sh                     all of it on this machine
#
# Each of one, two, three stays under 64 MB. What was received stays in $GPU_HOME between calls.
# MINUTES is the slice, BUDGET the whole run in minutes, OUT the folder whose files come back.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/python" PYTHONUNBUFFERED=1
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
PYTHON=${PYTHON:-python3}
GPU_HOME=${GPU_HOME:-$PWD/build/gpu}
OUT=${OUT:-$GPU_HOME/out}
CONFIG=${CONFIG:-configs/train/kv_gists_smollm2.yaml}
MINUTES=${MINUTES:-8.2}
BUDGET=${BUDGET:-15.2}
mkdir -p "$GPU_HOME/base" "$GPU_HOME/shards" "$OUT"

receive() {
    local kind
    for kind in base shards; do
        if compgen -G "$1/$kind/*" > /dev/null; then cp "$1/$kind"/* "$GPU_HOME/$kind/"; fi
    done
    ls -l "$GPU_HOME/base" "$GPU_HOME/shards"
}

unpack() {
    if [ ! -f "$GPU_HOME/model/model.safetensors" ]; then
        "$PYTHON" -m megacontext.train.packed_base unpack \
            --parts "$GPU_HOME/base" --out "$GPU_HOME/model"
    fi
}

chosen() {
    [ -f "$GPU_HOME/choice.json" ] || return 0
    "$PYTHON" - "$GPU_HOME/choice.json" <<'P'
import json, sys
choice = json.load(open(sys.argv[1]))
print("--batch", choice["batch"], *(["--compile"] if choice["compile"] else []))
P
}

train() {
    # shellcheck disable=SC2046
    "$PYTHON" -m megacontext.train.kv_gists --config "$CONFIG" --base "$GPU_HOME/model" \
        --shards "$GPU_HOME/shards" --out "$GPU_HOME/run" --export "$GPU_HOME/export" \
        --minutes "$MINUTES" --budget-minutes "$BUDGET" $(chosen) ${EXTRA:-} \
        2>&1 | tee -a "$GPU_HOME/train.log"
}

bring_back() {
    for file in "$GPU_HOME"/run/adapter.safetensors "$GPU_HOME"/export/* "$GPU_HOME"/run/curve.jsonl "$GPU_HOME"/train.log \
        "$GPU_HOME"/choice.json "$GPU_HOME"/eval/gists.json "$GPU_HOME"/eval/gists.md; do
        if [ -f "$file" ]; then cp "$file" "$OUT/"; fi
    done
    ls -l "$OUT"
}

measure() {
    "$PYTHON" -m megacontext.eval.gists --base "$GPU_HOME/model" \
        --shard "$GPU_HOME/shards/test.u16.xz" --adapter "$GPU_HOME/export/adapter.safetensors" \
        --out "$GPU_HOME/eval" --per-domain "${SPANS:-40}" --batch 16
}

case ${1:-local} in
local)
    : "${BASE:?folder of the base}" "${SHARDS:?folder of the shards}"
    mkdir -p "$GPU_HOME/model"
    cp "$BASE"/config.json "$BASE"/model.safetensors "$GPU_HOME/model/"
    cp "$SHARDS"/* "$GPU_HOME/shards/"
    MINUTES=$BUDGET
    trap bring_back EXIT
    train
    measure
    ;;
pack)
    out=$2 gguf=$3 config=$4 shards=$5
    rm -rf "$out/one" "$out/two" "$out/three" "$out/all"
    mkdir -p "$out"/{one,two}/{base,shards} "$out/three/shards"
    "$PYTHON" -m megacontext.train.packed_base pack --gguf "$gguf" --config "$config" --out "$out/all"
    mv "$out/all/part-0.safetensors" "$out/one/base/"
    mv "$out"/all/* "$out/two/base/"
    rmdir "$out/all"
    cp "$shards"/train-0[0-2].u16.xz "$out/one/shards/"
    cp "$shards"/train-0[3-6].u16.xz "$shards"/val.* "$shards"/manifest.json "$out/two/shards/"
    cp "$shards"/train-0[7-9].u16.xz "$shards"/train-1*.u16.xz "$shards"/test.* "$out/three/shards/"
    du -sm "$out"/*
    ;;
receive) receive "$2" ;;
probe)
    "$PYTHON" -m megacontext.train.probe --config "$CONFIG" --shards "$GPU_HOME/shards" \
        --out "$GPU_HOME/choice.json" ${EXTRA:-}
    bring_back
    ;;
train)
    receive "$2"
    unpack
    trap bring_back EXIT
    train
    ;;
finish)
    EXTRA="${EXTRA:-} --batch ${BATCH:-64}"
    receive "$2"
    unpack
    trap bring_back EXIT
    train
    measure
    ;;
*)
    echo "unknown stage $1" >&2
    exit 2
    ;;
esac
