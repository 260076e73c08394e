"""Paged memory: keys and values computed once, attended to in a focused selection.

    with megacontext.attach(model) as memory:
        model.generate(**tokenizer("...", return_tensors="pt"))

See README.md of this folder.
"""

from __future__ import annotations

from megacontext.paged.attach import attach
from megacontext.paged.config import PagedConfig
from megacontext.paged.memory import PagedMemory

__all__ = ["PagedConfig", "PagedMemory", "attach"]
