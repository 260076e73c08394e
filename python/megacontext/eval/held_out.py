"""Held-out text as fixed windows of tokens: the same for every method and every run."""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass
from pathlib import Path

import numpy as np


def read_shard(path: Path) -> np.ndarray:
    """Token ids [n] uint16 of a `.u16` or `.u16.xz` file.

    Raises:
        ValueError: an empty file or an odd number of bytes.
    """
    raw = path.read_bytes()
    if path.suffix == ".xz":
        raw = lzma.decompress(raw)
    if not raw or len(raw) % 2:
        raise ValueError(f"{path}: expected a positive even number of bytes, got {len(raw)}")
    return np.frombuffer(raw, dtype="<u2")


PASSAGE_TOKENS = 16384


@dataclass(frozen=True)
class HeldOutSpan:
    """One scored window of a held-out document."""

    source: str
    domain: str
    title: str
    ids: np.ndarray
    passage: int = 0  # Which PASSAGE_TOKENS of the document: what intervals resample.


def held_out_spans(shard: Path, width: int, per_domain: int, seed: int = 7) -> list[HeldOutSpan]:
    """Windows of a held-out shard: as many a domain, spread over its sources and documents.

    The shard's `.json` names each document's source, domain and token range. Sources of a
    domain take turns, windows of one document do not overlap.
    """
    name = shard.name.split(".")[0]
    listed = json.loads((shard.parent / f"{name}.json").read_text())["documents"]
    tokens = read_shard(shard)
    rng = np.random.default_rng(seed)
    by_source: dict[tuple[str, str], list[HeldOutSpan]] = {}
    for source, domain, title, start, end in listed:
        count = (end - 1 - start) // width
        offset = int(rng.integers(0, max(1, end - start - count * width)))
        for number in range(count):
            begin = start + offset + number * width
            passage = (begin - start) // PASSAGE_TOKENS
            span = HeldOutSpan(source, domain, title, tokens[begin : begin + width], passage)
            by_source.setdefault((domain, source), []).append(span)
    found: list[HeldOutSpan] = []
    for domain in sorted({d for d, _ in by_source}):
        queues = [
            [spans[i] for i in rng.permutation(len(spans))]
            for (d, _), spans in sorted(by_source.items())
            if d == domain
        ]
        taken = 0
        while taken < per_domain and any(queues):
            for queue in queues:
                if queue and taken < per_domain:
                    found.append(queue.pop())
                    taken += 1
    return found
