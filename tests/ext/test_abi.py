"""The operator library is one file for every torch and every Python: what it may ask of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
import torch

from megacontext_ext.ops import _load


def symbols(*options: str) -> list[str]:
    if shutil.which("nm") is None:
        pytest.skip("nm of binutils is not installed")
    command = ["nm", "--dynamic", "--demangle", *options, _load.library_path()]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_the_library_asks_torch_for_its_stable_interface_only():
    wanted = symbols("--undefined-only")
    assert any("aoti_torch" in line or "torch_library" in line for line in wanted)
    unstable = [line for line in wanted if re.search(r"\b(c10|at|caffe2|torch)::", line)]
    assert unstable == []


def test_the_library_asks_python_for_nothing():
    names = [line.split()[-1] for line in symbols("--undefined-only")]
    assert [name for name in names if re.match(r"_?Py[A-Z_]", name)] == []


def test_the_library_shows_the_world_no_symbol_of_ours():
    defined = [line for line in symbols("--defined-only") if " mc::" in line]
    assert defined == []


def test_loading_twice_is_harmless():
    _load.load()
    _load.load()
    assert hasattr(torch.ops.megacontext, "gist_pool")


def test_a_second_copy_of_the_library_is_not_registered_over_the_first(tmp_path):
    """Registering a namespace twice ends the process; load() must look before it loads."""
    copy = tmp_path / "_ops.so"
    shutil.copy(_load.library_path(), copy)
    script = (
        "import os, torch\n"
        "from megacontext_ext.ops import _load\n"
        "_load.load()\n"
        f"os.environ['MC_OPS_LIBRARY'] = {str(copy)!r}\n"
        "_load.load()\n"
        "print(torch.ops.megacontext.cpu_level() >= 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"
