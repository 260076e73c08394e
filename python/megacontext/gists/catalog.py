"""Trained adapters that ship with the package, found by the base they belong to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacontext.gists.adapter import GistAdapter
from megacontext.gists.base import FrozenBase

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class ShippedAdapter:
    """One adapter file and its card: base, data, command, metrics."""

    path: Path
    card: dict[str, Any]

    def recovery(self, rows: int) -> float | None:
        """Measured LOD-1 gap recovery with this many rows a block; None if not on the card."""
        metrics = self.card.get("metrics", {})
        found = metrics.get(f"gap_recovery_{32 // rows}to1")
        return None if found is None else float(found["value"])

    def load(self) -> GistAdapter:
        return GistAdapter.load(self.path)


def shipped_adapters(folder: Path = WEIGHTS) -> list[ShippedAdapter]:
    """All adapters below a folder, one subfolder each with card.json and adapter.safetensors."""
    cards = sorted(folder.glob("*/card.json"))
    return [
        ShippedAdapter(card.parent / "adapter.safetensors", json.loads(card.read_text()))
        for card in cards
    ]


def find_adapter(base: FrozenBase, folder: Path = WEIGHTS) -> ShippedAdapter | None:
    """The adapter trained for this base whose measured recovery is positive, or None."""
    fingerprint = base.fingerprint()
    for shipped in shipped_adapters(folder):
        if shipped.card.get("base_fingerprint") == fingerprint:
            recovery = shipped.recovery(4)
            if recovery is not None and recovery > 0:
                return shipped
    return None
