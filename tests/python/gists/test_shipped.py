"""The shipped adapter: found by the real base, as its card says, and better than leaving out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from megacontext.eval import gist_methods as methods
from megacontext.eval.gist_methods import Window
from megacontext.gists.base import base_from_model
from megacontext.gists.catalog import find_adapter, shipped_adapters
from megacontext.gists.layout import SpanLayout

ROOT = Path(__file__).resolve().parents[3]
TEXTS = ("CONTRIBUTING.md", "LICENSE")
LAYOUT = SpanLayout(prefix=64, span=256, suffix=192, rows=1)


def test_cards_belong_to_their_files() -> None:
    found = shipped_adapters()
    assert found
    for shipped in found:
        body = shipped.path.read_bytes()
        assert len(body) < 20_000_000
        assert hashlib.sha256(body).hexdigest() == shipped.card["adapter_sha256"]
        for rows in (1, 2, 4):
            metric = shipped.card["metrics"][f"gap_recovery_{32 // rows}to1"]
            assert shipped.recovery(rows) == metric["value"]
            assert metric["interval"][0] <= metric["value"] <= metric["interval"][1]
            assert metric["n"] > 0
        assert 0 <= shipped.card["metrics"]["worse_than_drop"]["value"] < 0.1


@pytest.mark.smollm2
@torch.no_grad()
def test_rows_beat_leaving_the_span_out(smollm2) -> None:
    loaded = smollm2("float32")
    base = base_from_model(loaded.model)
    shipped = find_adapter(base)
    assert shipped is not None
    adapter = shipped.load()
    width = LAYOUT.tokens + 1
    ids = [loaded.tokenizer.encode((ROOT / name).read_text())[:width] for name in TEXTS]
    window = Window(base, torch.tensor(np.stack(ids).astype(np.int64)), LAYOUT)
    full, drop, rows = (
        window.nll(method(window, LAYOUT.span // 32))
        for method in (methods.full, methods.drop, methods.gist_rows(adapter))
    )
    recovered = 1 - float((rows - full).sum() / (drop - full).sum())
    print(f"full {full.tolist()} drop {drop.tolist()} 32:1 {rows.tolist()}: {recovered:.3f}")
    assert (rows < drop).all()
    assert recovered > 0.15
