"""From entries in focus back to places in the sources."""

from __future__ import annotations

from collections.abc import Sequence

from megacontext.config import K
from megacontext.runtime.answer import SourceSpan
from megacontext.runtime.assemble import EntryRun
from megacontext.runtime.ingest import SourceState
from megacontext.runtime.parts import Parts
from megacontext.runtime.refocus import Focus


def spans_in_focus(parts: Parts, focus: Focus, runs: Sequence[EntryRun]) -> list[SourceSpan]:
    """A span for every shown run, best score first."""
    known = {partition.id: partition for partition in parts.store.partitions()}
    spans = []
    for run in runs:
        if not run.shown:
            continue
        partition = known[run.partition]
        state = SourceState.from_json(partition.metadata_json)
        char_start = _char_at(parts, run.partition, run.start, state.characters)
        char_end = _char_at(parts, run.partition, run.end, state.characters)
        tokens = parts.store.read_tokens(run.partition, run.start, run.end) if not run.lod else None
        spans.append(
            SourceSpan(
                source=partition.source,
                partition=run.partition,
                token_start=run.start,
                token_end=run.end,
                char_start=char_start,
                char_end=char_end,
                lod=run.lod,
                score=round(focus.score_of(run.partition, run.start, run.end), 4),
                text="" if tokens is None else parts.base.tokenizer.decode(tokens),
            )
        )
    return sorted(spans, key=lambda span: -span.score)


def _char_at(parts: Parts, partition: int, token: int, characters: int) -> int:
    """Character at which a token on a block border begins; the end of the text behind the last."""
    block = token // K
    if token % K or token >= parts.store.token_count(partition):
        return characters
    return int(parts.store.block_char_starts(partition, block, block + 1)[0])
