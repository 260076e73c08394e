"""The compiled half of MegaContext, importable alone.

Two doors, each loaded when it is first used: the engine (``Store``, ``WorkingContext``, ...) and
the kernels as torch operators (``megacontext_ext.ops``). This package decides nothing: policy,
models and people are in ``megacontext``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from megacontext_ext import errors

if TYPE_CHECKING:
    from megacontext_ext import ops
    from megacontext_ext.focus import (
        Allocator,
        AllocatorConfig,
        FocusPlan,
        ScoreField,
        WorkingContext,
    )
    from megacontext_ext.metrics import Metric
    from megacontext_ext.prefetch import Prefetch
    from megacontext_ext.search import TextIndex, analyze
    from megacontext_ext.store import (
        Partition,
        Reencoded,
        RowFamily,
        Snapshot,
        Store,
        StoreOptions,
    )

__version__ = "0.1.0"

# Public name -> the module that defines it. Loaded lazily, so that the kernels need no engine and
# the engine needs no torch.
_HOMES: dict[str, str] = {
    "Allocator": "megacontext_ext.focus",
    "AllocatorConfig": "megacontext_ext.focus",
    "FocusPlan": "megacontext_ext.focus",
    "ScoreField": "megacontext_ext.focus",
    "WorkingContext": "megacontext_ext.focus",
    "Metric": "megacontext_ext.metrics",
    "Prefetch": "megacontext_ext.prefetch",
    "TextIndex": "megacontext_ext.search",
    "analyze": "megacontext_ext.search",
    "Partition": "megacontext_ext.store",
    "Reencoded": "megacontext_ext.store",
    "RowFamily": "megacontext_ext.store",
    "Snapshot": "megacontext_ext.store",
    "Store": "megacontext_ext.store",
    "StoreOptions": "megacontext_ext.store",
}

__all__ = [
    "Allocator",
    "AllocatorConfig",
    "FocusPlan",
    "Metric",
    "Partition",
    "Prefetch",
    "Reencoded",
    "RowFamily",
    "ScoreField",
    "Snapshot",
    "Store",
    "StoreOptions",
    "TextIndex",
    "WorkingContext",
    "analyze",
    "errors",
    "ops",
]


def __getattr__(name: str) -> Any:
    if name == "ops":
        return import_module("megacontext_ext.ops")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'megacontext_ext' has no attribute {name!r}")
    return getattr(import_module(home), name)
