"""Memory without end for frozen language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from megacontext_ext import __version__

if TYPE_CHECKING:
    from megacontext.config import FrameConfig, GenerationConfig, LensConfig, RuntimeConfig
    from megacontext.memory import Chat, Memory, WorkingContextView, open
    from megacontext.paged import PagedConfig, PagedMemory, attach
    from megacontext.runtime import Answer, IngestReport, SourceSpan

# Public name -> the module that has it; loaded when first used, for torch takes a second.
_HOMES = {
    "Answer": "megacontext.runtime",
    "Chat": "megacontext.memory",
    "FrameConfig": "megacontext.config",
    "GenerationConfig": "megacontext.config",
    "IngestReport": "megacontext.runtime",
    "LensConfig": "megacontext.config",
    "Memory": "megacontext.memory",
    "PagedConfig": "megacontext.paged",
    "PagedMemory": "megacontext.paged",
    "RuntimeConfig": "megacontext.config",
    "SourceSpan": "megacontext.runtime",
    "WorkingContextView": "megacontext.memory",
    "attach": "megacontext.paged",
    "open": "megacontext.memory",
}

__all__ = [
    "Answer",
    "Chat",
    "FrameConfig",
    "GenerationConfig",
    "IngestReport",
    "LensConfig",
    "Memory",
    "PagedConfig",
    "PagedMemory",
    "RuntimeConfig",
    "SourceSpan",
    "WorkingContextView",
    "__version__",
    "attach",
    "open",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'megacontext' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
