"""An adapter is found by its base, and only if it was measured to help."""

from __future__ import annotations

import json
from pathlib import Path

from megacontext.gists.adapter import AdapterRanks, GistAdapter
from megacontext.gists.base import BaseShape, random_base
from megacontext.gists.catalog import find_adapter

SHAPE = BaseShape(2, 16, 2, 1, 8, 24, 33, 1e4, 1e-5)


def ship(folder: Path, fingerprint: str, recovery: float) -> None:
    folder.mkdir()
    GistAdapter(SHAPE, AdapterRanks(1, 1, 1, 1, 1, 1, 1)).save(folder / "adapter.safetensors")
    metrics = {"gap_recovery_8to1": {"value": recovery}}
    card = {"base_fingerprint": fingerprint, "metrics": metrics}
    (folder / "card.json").write_text(json.dumps(card))


def test_found_by_fingerprint_if_recovery_is_positive(tmp_path: Path) -> None:
    base, other = random_base(SHAPE, 0), random_base(SHAPE, 1)
    ship(tmp_path / "good", base.fingerprint(), 0.5)
    ship(tmp_path / "bad", other.fingerprint(), -0.1)
    found = find_adapter(base, tmp_path)
    assert found is not None
    assert found.recovery(4) == 0.5
    assert found.recovery(1) is None
    assert found.load().shape == SHAPE
    assert find_adapter(other, tmp_path) is None
    assert find_adapter(random_base(SHAPE, 2), tmp_path) is None
