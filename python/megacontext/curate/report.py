"""What every source takes and how much it is used."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from datetime import datetime

from megacontext.runtime import SourceInfo, read_counts, source_infos
from megacontext_ext import Store

# A token's id, and its share of its block's character start.
_TOKEN_BYTES = 4 + 8 / 32
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class SourceReport:
    """One source. Bytes are of its rows, before checksums and the index; `state` is "live",
    "archived" or "deleted"; `age_days` counts from its time, or from its ingestion."""

    source: str
    partition: int
    state: str
    tokens: int
    token_bytes: int
    row_bytes: dict[str, int] = field(hash=False)
    age_days: float
    shown_blocks: int
    shown_times: int
    tags: tuple[str, ...]
    path: str | None
    trust: float | None

    @property
    def total_bytes(self) -> int:
        return self.token_bytes + sum(self.row_bytes.values())


def report(store: Store, now_ms: int | None = None) -> list[SourceReport]:
    """Every source that was not erased, by partition. Cost: a look at each source's counts."""
    now = int(time.time() * 1000) if now_ms is None else now_ms
    families = [(family.name, family.row_bytes) for family in store.row_families()]
    found = []
    for info in source_infos(store):
        counts = read_counts(store, info.partition)
        rows = {name: store.row_count(name, info.partition) * size for name, size in families}
        found.append(
            SourceReport(
                source=info.source,
                partition=info.partition,
                state=state_of(store, info),
                tokens=info.tokens,
                token_bytes=round(info.tokens * _TOKEN_BYTES),
                row_bytes={name: size for name, size in rows.items() if size},
                age_days=round(max(now - _began_ms(info), 0) / _DAY_MS, 3),
                shown_blocks=int((counts > 0).sum()),
                shown_times=int(counts.sum()),
                tags=tuple(sorted({*info.tags, *(t for span in info.spans for t in span.tags)})),
                path=info.path,
                trust=info.trust,
            )
        )
    return found


def state_of(store: Store, info: SourceInfo) -> str:
    """ "live", "archived" or "deleted". Hidden without a label is archived: the label came late."""
    if not info.hidden:
        return "live"
    label = json.loads(store.partition(info.partition).metadata_json).get("curation", "")
    return label or "archived"


def _began_ms(info: SourceInfo) -> float:
    if info.time is None:
        return info.created_ms
    try:
        return datetime.fromisoformat(info.time).timestamp() * 1000
    except ValueError:  # a time in words: nothing to count from
        return info.created_ms
