"""Which gists may be shown to the model: only those that are recorded to help this base.

A gist record says which row family of the store holds the gists of one LOD, for which base they
were made, and how much of the gap between deleting a span and reading it they recover. A gist whose
recorded recovery on this base is not positive harms the model more than deletion does, so it takes
no place.

Records are JSON files named *.gist.json in a folder, one record each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megacontext.config import K
from megacontext_ext import Store
from megacontext_ext.errors import Corruption, InvalidArgument

LOD_COUNT = 8


@dataclass(frozen=True, slots=True)
class GistRecord:
    """One row family of gists and its measured worth.

    `base` is BaseFacts.identity; `places` the vectors of one node of `lod`, which lie side by side
    in one row of the family (width places * D); `gap_recovery` (NLL_drop - NLL_gist) / (NLL_drop -
    NLL_full), and `gap_recovery_low` the lower end of its 95% interval.
    """

    base: str
    lod: int
    family: str
    places: int
    gap_recovery: float
    gap_recovery_low: float

    def __post_init__(self) -> None:
        if not (1 <= self.lod <= LOD_COUNT and 1 <= self.places <= K):
            raise InvalidArgument(
                f"[gist record] must have lod in [1, {LOD_COUNT}] and places in [1, {K}], got "
                f"lod={self.lod}, places={self.places}"
            )

    @property
    def helps(self) -> bool:
        return self.gap_recovery_low > 0.0


def read_records(folder: Path) -> list[GistRecord]:
    """Records of a folder, by name; a folder that does not exist has none."""
    records = []
    for path in sorted(folder.glob("*.gist.json")):
        try:
            records.append(GistRecord(**json.loads(path.read_text())))
        except (TypeError, json.JSONDecodeError) as error:
            raise Corruption(f"{path}:0: expected a gist record, got {error}") from error
    return records


class ShownGists:
    """The best record by LOD for one base, and its rows."""

    def __init__(self, records: Iterable[GistRecord], base_identity: str) -> None:
        self._by_lod: dict[int, GistRecord] = {}
        for record in records:
            best = self._by_lod.get(record.lod)
            better = best is None or record.gap_recovery > best.gap_recovery
            if record.base == base_identity and record.helps and better:
                self._by_lod[record.lod] = record

    def places(self, store: Store) -> Sequence[int]:
        """Places a node of each LOD from 1 takes; 0 where its gist is not shown.

        A LOD is shown only when every full node of it has its rows.
        """
        return tuple(
            record.places if (record := self._by_lod.get(lod)) and _is_filled(store, record) else 0
            for lod in range(1, LOD_COUNT + 1)
        )

    def rows(self, store: Store, lod: int, partition: int, start: int, end: int) -> Tensor:
        """[places, D] float32: rows of the nodes of `lod` that cover tokens [start, end)."""
        record = self._by_lod[lod]
        span = K**lod
        first, last = start // span, end // span
        rows = store.read_rows(record.family, partition, first, last, dtype="f32")
        return torch.from_numpy(rows).reshape(len(rows) * record.places, -1)


def _is_filled(store: Store, record: GistRecord) -> bool:
    if all(family.name != record.family for family in store.row_families()):
        return False
    return all(
        store.row_count(record.family, partition.id) >= partition.token_count // K**record.lod
        for partition in store.partitions()
    )
