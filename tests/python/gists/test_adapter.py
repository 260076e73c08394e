"""An adapter survives its file; a foreign file is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megacontext.gists.adapter import AdapterRanks, GistAdapter
from megacontext.gists.base import BaseShape

SHAPE = BaseShape(2, 16, 2, 1, 8, 24, 33, 1e4, 1e-5)


def test_round_trip(tmp_path: Path) -> None:
    adapter = GistAdapter(SHAPE, AdapterRanks(1, 2, 3, 1, 1, 1, 1), seed=5)
    adapter.save(tmp_path / "a.safetensors", torch.float32)
    again = GistAdapter.load(tmp_path / "a.safetensors")
    assert again.shape == SHAPE
    assert again.ranks == adapter.ranks
    for (name, mine), (_, theirs) in zip(
        adapter.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), name


def test_an_untrained_adapter_changes_no_projection() -> None:
    adapter = GistAdapter(SHAPE, AdapterRanks())
    assert all(not p.any() for n, p in adapter.named_parameters() if n.startswith("out_"))


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="format: expected megacontext"):
        GistAdapter.load(tmp_path / "b.safetensors")
