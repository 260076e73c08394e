"""One built operator library under the oldest supported torch, the pinned one and the newest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
INSTALL = "tools/check_torch_versions.sh install"


def run_check(*folders: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "tools/check_torch_versions.sh"), *map(str, folders)]
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])


def oldest_supported() -> tuple[int, ...]:
    found = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert found
    return version(found[1])


def installed_folders() -> list[Path]:
    """Folders with a torch beside the one that runs this test."""
    named = os.environ.get("MC_TORCH_FOLDERS", "")
    folders = [Path(name) for name in named.split(":") if name] or sorted(
        ROOT.glob("build/torch/*")
    )
    return [folder for folder in folders if (folder / "torch").is_dir()]


@pytest.mark.slow
def test_one_library_serves_the_oldest_the_pinned_and_the_newest_torch() -> None:
    folders = installed_folders()
    if len(folders) < 2:
        pytest.skip(f"{len(folders)} of 2 other versions of torch are here; `{INSTALL}` (2 GB)")
    done = run_check(*folders)
    assert done.returncode == 0, done.stdout + done.stderr
    served = {version(found) for found in re.findall(r"^torch (\S+): every", done.stdout, re.M)}
    assert len(served) >= 3, done.stdout
    assert version(torch.__version__) in served
    assert min(served)[:2] == oldest_supported()
    assert max(served) > version(torch.__version__), "the newest here is the pinned one"


@pytest.mark.slow
def test_a_torch_that_does_not_serve_fails_the_check(tmp_path: Path) -> None:
    package = tmp_path / "torch/__init__.py"
    package.parent.mkdir()
    package.write_text('raise ImportError("planted")\n')
    done = run_check(tmp_path, MC_REAL_CUDA="1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"torch {torch.__version__}: every operator" in done.stdout
    assert f"FAILED: {tmp_path}" in done.stdout
    assert "planted" in done.stderr
