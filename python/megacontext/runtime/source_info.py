"""What is known of a source and its spans: path, tags, time, trust, and how to ask for it.

It lies in the metadata of the partition: what `ingest` was given as `metadata` under "tags"
(words), "time" (ISO 8601), "trust" (0 to 1) and "spans" (token ranges with tags and notes), beside
the path.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from megacontext.runtime.ingest import SourceState
from megacontext_ext import Store
from megacontext_ext.errors import InvalidArgument, NotFound


@dataclass(frozen=True, slots=True)
class SpanNote:
    """Something said of tokens [start, end) of a source."""

    start: int
    end: int
    tags: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """One source. `hidden` ones are archived or deleted, out of search and focus."""

    source: str
    partition: int
    kind: str
    path: str | None
    tokens: int
    created_ms: int
    hidden: bool
    tags: tuple[str, ...]
    time: str | None
    trust: float | None
    spans: tuple[SpanNote, ...]
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SourceQuery:
    """Which sources: all that is given must hold."""

    tag: str | None = None  # of the source or one of its spans
    path: str | None = None  # glob over the path, or the name where there is none
    trust_at_least: float | None = None  # a source without trust does not qualify
    since: str | None = None  # ISO 8601, of its time
    hidden: bool = False  # only hidden ones, instead of only shown ones

    def holds(self, info: SourceInfo) -> bool:
        tags = {*info.tags, *(tag for span in info.spans for tag in span.tags)}
        return (
            info.hidden == self.hidden
            and (self.tag is None or self.tag in tags)
            and (self.path is None or fnmatchcase(info.path or info.source, self.path))
            and (self.trust_at_least is None or (info.trust or 0.0) >= self.trust_at_least)
            and (self.since is None or (info.time is not None and info.time >= self.since))
        )


def source_infos(store: Store) -> Iterator[SourceInfo]:
    """Every source that was not erased, by partition."""
    for partition in store.partitions():
        fields = json.loads(partition.metadata_json)
        state, user = SourceState.from_json(partition.metadata_json), fields.get("user", {})
        yield SourceInfo(
            source=partition.source,
            partition=partition.id,
            kind=fields.get("kind", "unknown"),
            path=state.path,
            tokens=partition.token_count,
            created_ms=partition.created_ms,
            hidden=partition.hidden,
            tags=tuple(user.get("tags", ())),
            time=user.get("time"),
            trust=user.get("trust"),
            spans=tuple(
                SpanNote(s["start"], s["end"], tuple(s["tags"]), s["note"])
                for s in user.get("spans", ())
            ),
            metadata=user,
        )


def source_info(store: Store, source: str) -> SourceInfo:
    """One source by name. Raises: NotFound."""
    for info in source_infos(store):
        if info.source == source:
            return info
    raise NotFound(f"[source_info] source must be known, got {source!r}")


def update_metadata(store: Store, source: str, **changes: Any) -> SourceInfo:
    """Set fields of the source's metadata ("tags", "time", "trust", any other); None removes one.
    Durable on return. Raises: NotFound, InvalidArgument for values that cannot be asked for."""
    _require_valid(changes)
    known = store.find_partition(source)
    if known is None:
        raise NotFound(f"[update_metadata] source must be known, got {source!r}")
    state = SourceState.from_json(known.metadata_json)
    user = {**state.user, **changes}
    user = {name: value for name, value in user.items() if value is not None}
    store.set_metadata(known.id, replace(state, user=user).to_json())
    store.commit()
    return source_info(store, source)


def annotate(store: Store, source: str, span: SpanNote) -> SourceInfo:
    """Say something of a span. Raises: NotFound, InvalidArgument for a span outside the source."""
    info = source_info(store, source)
    if not 0 <= span.start < span.end <= info.tokens:
        raise InvalidArgument(
            f"[annotate] span must lie in [0, {info.tokens}), got [{span.start}, {span.end})"
        )
    return update_metadata(store, source, spans=spans_as_json([*info.spans, span]))


def spans_as_json(spans: Iterable[SpanNote]) -> list[dict[str, Any]]:
    return [{"start": s.start, "end": s.end, "tags": list(s.tags), "note": s.note} for s in spans]


def _require_valid(changes: dict[str, Any]) -> None:
    tags, trust = changes.get("tags"), changes.get("trust")
    words = isinstance(tags, Sequence) and not isinstance(tags, str)
    if tags is not None and not (words and all(isinstance(tag, str) for tag in tags)):
        raise InvalidArgument(f"[metadata] tags must be a list of words, got {tags!r}")
    if trust is not None and not 0.0 <= float(trust) <= 1.0:
        raise InvalidArgument(f"[metadata] trust must lie in [0, 1], got {trust}")
