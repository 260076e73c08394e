"""What `megacontext doctor` looks at: this machine, this installation, one memory."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from megacontext.cli.output import console
from megacontext.config import cache_folder
from megacontext.models import KNOWN_MODELS
from megacontext.models.convert import verify
from megacontext_ext import Store, __version__
from megacontext_ext.errors import MegaContextError

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "safetensors", "gguf", "matplotlib")


def examine(memory: Path | None) -> dict[str, Any]:
    """Facts by topic; `problems` lists what is wrong, in words."""
    problems: list[str] = []
    found: dict[str, Any] = {
        "megacontext": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu": {
            "cores": os.cpu_count(),
            "level": torch.backends.cpu.get_cpu_capability(),
            "bfloat16": bool(torch.cpu._is_avx512_bf16_supported()),
        },
        "cuda": {
            "available": torch.cuda.is_available(),
            "torch_built_for": torch.version.cuda,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "kernels": _kernels(problems),
        "cache": str(cache_folder()),
        "models": {name: _model_state(name, problems) for name in KNOWN_MODELS},
    }
    if memory is not None:
        found["memory"] = _memory(memory, problems)
    found["problems"] = problems
    return found


def print_examination(found: dict[str, Any]) -> None:
    """The facts as a table, problems last."""
    table = Table(show_header=False, box=None)
    for topic, value in found.items():
        if topic == "problems":
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{name} {each}" for name, each in value.items())
        table.add_row(topic, str(value))
    console.print(table)
    for problem in found["problems"]:
        console.print(f"[bold red]problem[/bold red] {problem}", highlight=False)
    if not found["problems"]:
        console.print("[green]no problems found[/green]")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _kernels(problems: list[str]) -> dict[str, Any]:
    try:
        from megacontext_ext import ops

        return {"loaded": True, "cpu_level": ops.cpu_level()}
    except (ImportError, OSError, RuntimeError) as error:
        problems.append(f"kernels do not load: {error}")
        return {"loaded": False}


def _model_state(name: str, problems: list[str]) -> str:
    model = KNOWN_MODELS[name]
    if importlib.util.find_spec(model.module) is None:
        return f"not installed ({model.install})"
    for folder in (cache_folder() / "models").glob(f"{Path(model.gguf).stem}-v*"):
        if folder.is_dir():
            try:
                verify(folder)
            except (MegaContextError, OSError, ValueError) as error:
                problems.append(str(error))
                return "converted, damaged"
            return "converted"
    return "installed, converted at first use"


def _memory(path: Path, problems: list[str]) -> dict[str, Any]:
    """Open read-only and check every page, row and posting."""
    try:
        with Store.open(str(path), read_only=True) as store:
            store.check()
            return {"path": str(path), "healthy": True, **store.stats()}
    except MegaContextError as error:
        problems.append(f"{type(error).__name__}: {error}")
        return {"path": str(path), "healthy": False}
