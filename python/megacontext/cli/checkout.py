"""Verbs that need a source checkout: the benchmarks lie beside the package, not inside it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from megacontext_ext.errors import NotFound


def run_benchmarks(arguments: Sequence[str]) -> int:
    """`python -m benchmarks ...` from the checkout; returns its exit code."""
    root = _checkout()
    return subprocess.run([sys.executable, "-m", "benchmarks", *arguments], cwd=root).returncode


def _checkout() -> Path:
    here = [Path.cwd(), *Path.cwd().parents]
    spec = importlib.util.find_spec("megacontext")
    if spec is not None and spec.origin is not None:
        here += Path(spec.origin).parents
    for folder in here:
        if (folder / "benchmarks" / "__main__.py").is_file() and (folder / "csrc").is_dir():
            return folder
    raise NotFound(
        "[bench] benchmarks must be run inside a source checkout, none was found from "
        f"{Path.cwd()} upwards"
    )
