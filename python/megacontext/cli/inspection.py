"""Tables and pictures of a memory for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from megacontext.cli.output import console, notes, say, show_json
from megacontext.runtime import SourceSpan
from megacontext_ext import Store

# Of a long name the end says most.
_SOURCE_CHARS = 28


def inspect_store(path: Path, as_json: bool) -> None:
    """Sources, row families and statistics; needs no model."""
    with Store.open(str(path), read_only=True) as store:
        sources = [
            {**asdict(partition), "metadata": json.loads(partition.metadata_json)}
            for partition in store.partitions()
        ]
        for source in sources:
            del source["metadata_json"]
        identity = dict(store.identity)
        found = {
            "path": str(path),
            "identity": identity,
            "sources": sources,
            "row_families": [asdict(family) for family in store.row_families()],
            "stats": store.stats(),
        }
    if as_json:
        show_json(found)
        return
    table = Table("source", "kind", "tokens", "characters", "state", title=str(path))
    for source in sources:
        metadata = source["metadata"]
        state = "complete" if metadata.get("complete") else "interrupted"
        table.add_row(
            str(source["source"]),
            str(metadata.get("kind", "")),
            f"{source['token_count']:,}",
            f"{metadata.get('characters', 0):,}",
            state,
        )
    console.print(table)
    made_for = ", ".join(f"{name} {value[:40]}" for name, value in identity.items())
    total = sum(source["token_count"] for source in sources)
    console.print(f"{total:,} tokens; made for {made_for}", highlight=False)


def inspect_working_context(
    path: Path, question: str, model: str, budget: int, picture: Path | None, as_json: bool
) -> None:
    """What would be in focus for a question."""
    from megacontext import memory as memories
    from megacontext.config import RuntimeConfig

    config = RuntimeConfig(budget_places=budget)
    with memories.open(path, model, read_only=True, config=config, say=say) as opened:
        view = opened.working_context(question)
        if as_json:
            show_json(view.to_json())
        else:
            console.print(view.describe(), highlight=False)
            console.print(view.bar())
        if picture is not None:
            view.save_png(picture)
            notes.print(f"picture: {picture}", highlight=False)


def sources_table(spans: Sequence[SourceSpan]) -> Table:
    """Where the answer was read from, best first."""
    table = Table("score", "source", "characters", box=None, padding=(0, 1), expand=True)
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for span in spans:
        table.add_row(
            f"{span.score:.2f}",
            span.source
            if len(span.source) <= _SOURCE_CHARS
            else f"...{span.source[3 - _SOURCE_CHARS :]}",
            f"{span.char_start:,}-{span.char_end:,}",
            " ".join(span.text.split()),
        )
    return table
