"""The methods by name, each at its best reasonable settings within the same budget of places."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megacontext.eval.long.methods.agents import PagingAgent, RecursiveSummary
from megacontext.eval.long.methods.embedder import no_embedder
from megacontext.eval.long.methods.memory import MemoryMethod
from megacontext.eval.long.methods.paged import PagedMethod
from megacontext.eval.long.methods.presses import Press, no_kvpress
from megacontext.eval.long.methods.reader import Method, NotApplicable, Reader, Reply
from megacontext.eval.long.methods.retrieval import Neighbours, Retrieval
from megacontext.eval.long.methods.window import (
    Ceiling,
    FullContext,
    NoContext,
    SinksWindow,
    Truncation,
)
from megacontext_ext.errors import NotFound

__all__ = ["METHODS", "Method", "NotApplicable", "Reader", "Reply", "method", "why_not_here"]

# A method from a reader and a folder it may write in.
MethodMaker = Callable[[Reader, Path], Method]

METHODS: dict[str, MethodMaker] = {
    "full": lambda reader, _: FullContext(reader),
    "ceiling": lambda reader, _: Ceiling(reader),
    "no_context": lambda reader, _: NoContext(reader),
    "megacontext": lambda reader, folder: MemoryMethod(reader, folder),
    "paged": lambda reader, folder: PagedMethod(reader, folder),
    "truncation": lambda reader, _: Truncation(reader),
    "sinks_window": lambda reader, _: SinksWindow(reader),
    "rag_bm25": lambda reader, _: Retrieval(reader, "bm25", "rag_bm25"),
    "rag_bm25_filled": lambda reader, _: Retrieval(reader, "bm25", "rag_bm25_filled", top=0),
    "rag_sketch": lambda reader, _: Retrieval(reader, "sketch", "rag_sketch"),
    "rag_hybrid": lambda reader, _: Retrieval(reader, "hybrid", "rag_hybrid"),
    "rag_dense": lambda reader, _: Retrieval(reader, "dense", "rag_dense"),
    "rag_dense_hybrid": lambda reader, _: Retrieval(reader, "dense_hybrid", "rag_dense_hybrid"),
    "neighbours": lambda reader, _: Neighbours(reader),
    "summary": lambda reader, _: RecursiveSummary(reader),
    "paging_agent": lambda reader, _: PagingAgent(reader),
    "press_knorm": lambda reader, _: Press(reader, "KnormPress", "press_knorm"),
    "press_snapkv": lambda reader, _: Press(reader, "SnapKVPress", "press_snapkv"),
    "press_expected": lambda reader, _: Press(reader, "ExpectedAttentionPress", "press_expected"),
}


def method(name: str, reader: Reader, workspace: Path) -> Method:
    """The method called `name`. Raises NotFound with all names."""
    if name not in METHODS:
        raise NotFound(f"[method] name must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name](reader, workspace)


def why_not_here(name: str) -> str:
    """Why the method called `name` cannot run on this machine (a package is missing); empty when
    it can."""
    if name.startswith("press_"):
        return no_kvpress()
    return no_embedder() if name.startswith("rag_dense") else ""
