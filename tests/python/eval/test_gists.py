"""The measurement measures: exact methods give exact answers, statistics known ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megacontext.eval import gist_methods as methods
from megacontext.eval.gist_report import suite_table
from megacontext.eval.gists import Suite, interval, measure, summarise
from megacontext.eval.held_out import HeldOutSpan
from megacontext.gists.adapter import AdapterRanks, GistAdapter
from megacontext.gists.base import BaseShape, random_base
from megacontext.gists.layout import SpanLayout

SHAPE = BaseShape(2, 32, 4, 2, 8, 48, 61, 1e4, 1e-5)
LAYOUT = SpanLayout(32, 64, 16, 1)


@pytest.fixture
def window() -> methods.Window:
    torch.manual_seed(0)
    with torch.no_grad():
        return methods.Window(random_base(SHAPE), torch.randint(0, 61, (2, 113)), LAYOUT)


@torch.no_grad()
def test_methods_given_every_entry_are_the_plain_model(window: methods.Window) -> None:
    everything = LAYOUT.span
    for name in ("random tokens", "most recent tokens", "last token's KV of a share"):
        torch.testing.assert_close(methods.BASELINES[name](window, everything), window.full)
    torch.testing.assert_close(methods.top_attention(window, everything), window.full)
    torch.testing.assert_close(methods.mean_entries(window, everything), window.full)


@torch.no_grad()
def test_mean_embedding_of_single_tokens_is_the_plain_model(window: methods.Window) -> None:
    torch.testing.assert_close(methods.mean_embedding(window, LAYOUT.span), window.full)


@torch.no_grad()
def test_nll_is_of_the_next_token(window: methods.Window) -> None:
    logits = window.base.logits(window.full).log_softmax(-1)
    targets = window.ids[:, 97:113]
    expected = -logits.gather(2, targets[..., None]).mean((1, 2))
    torch.testing.assert_close(window.nll(window.full), expected)


@torch.no_grad()
def test_repeat_attention_is_a_share_of_the_queries(window: methods.Window) -> None:
    mass = methods.repeat_attention(window)[0]
    assert mass.shape == (2, 2, 64)
    assert (mass >= 0).all()
    assert (mass.sum(-1) < 64 * 2).all()


def test_measure_covers_every_method(window: methods.Window) -> None:
    base = window.base
    spans = [HeldOutSpan("s", "d", str(i), np.arange(113) % 61) for i in range(3)]
    adapter = GistAdapter(SHAPE, AdapterRanks(1, 1, 1, 1, 1, 1, 1))
    suite = Suite("lod1", LAYOUT, (2, 8), ("most recent tokens",))
    nll = measure(base, suite, spans, adapter, batch=2)
    assert set(nll) == {
        "full", "drop", "most recent tokens @ 2", "most recent tokens @ 8",
        "gist rows, untrained @ 2", "gist rows, untrained @ 8", "gist rows @ 2", "gist rows @ 8",
        "one gist row a block + top attention @ 2", "one gist row a block + top attention @ 8",
    }  # fmt: skip
    assert all(len(v) == 3 for v in nll.values())


def test_summary_of_known_numbers() -> None:
    spans = [HeldOutSpan("s", d, t, np.zeros(1)) for d, t in (("x", "a"), ("x", "b"), ("y", "c"))]
    nll = {"full": [1.0, 2.0, 3.0], "drop": [1.4, 2.4, 3.2], "half": [1.2, 2.2, 3.1],
           "bad": [1.5, 2.4, 3.0]}  # fmt: skip
    summary = summarise(nll, spans)
    half, bad = summary["methods"]["half"], summary["methods"]["bad"]
    assert half["recovery"] == pytest.approx(0.5)
    assert half["interval"] == pytest.approx([0.5, 0.5])
    assert bad["worse_than_drop"] == pytest.approx(1 / 3)
    assert bad["recovery"] == pytest.approx(0.1)
    assert summary["methods"]["drop"]["recovery"] == pytest.approx(0.0)
    assert bad["by_domain"]["y"]["recovery"] == pytest.approx(1.0)
    assert "| half | +0.1667 | 50.0 %" in "\n".join(suite_table(summary))


def test_interval_resamples_passages_not_windows() -> None:
    rng = np.random.default_rng(0)
    loss, gap = rng.normal(0.5, 0.2, 60), np.ones(60)
    wide = interval(np.repeat(loss[:6], 10), gap, np.repeat(np.arange(6), 10).astype(str))
    narrow = interval(loss, gap, np.arange(60).astype(str))
    assert wide[1] - wide[0] > narrow[1] - narrow[0]


@torch.no_grad()
def test_a_row_a_block_and_keys_is_the_rows_alone_where_no_entry_is_left(
    window: methods.Window,
) -> None:
    adapter = GistAdapter(SHAPE, AdapterRanks(), seed=3)
    blocks = LAYOUT.span // 32
    mixed, rows = methods.row_and_keys(adapter), methods.gist_rows(adapter)
    torch.testing.assert_close(mixed(window, blocks), rows(window, blocks))
    # Every key beside the rows: nearer to the full context than the rows alone.
    every = (mixed(window, blocks + LAYOUT.span) - window.full).norm()
    assert every < (rows(window, blocks) - window.full).norm()
    keys = methods.top_keys(window, 5).keys[0]
    assert keys.shape[2] == 5
