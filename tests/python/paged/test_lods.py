"""Kept rows of LOD 2 and 3: chosen among those below, read like them, on disk with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megacontext.gists.selection import KeptRows
from megacontext.models.kv_cache import CACHE_ARGUMENT
from megacontext.paged import attach, tiling
from megacontext.paged.gist_pages import GistPages
from megacontext.paged.kept import ABSENT, comparable_uses, is_unknown
from megacontext.paged.memory import PagedMemory
from megacontext.paged.page_store import PageStore
from megacontext.paged.tiling import GistPage
from megacontext_ext.errors import Corruption
from tests.python.paged.test_kept import (
    KV_HEADS,
    LAYERS,
    NARROW,
    narrowed,
    plain,
    settings,
    tiny,
    tokens,
    visible,
)
from tests.python.paged.test_store import damage


def after(model, memory: PagedMemory, count: int = 3) -> torch.Tensor:
    memory.cache.begin_call()
    return model(tokens(count, seed=6), **{CACHE_ARGUMENT: memory.cache}).logits


def content_of(memory: PagedMemory, page: GistPage) -> tuple[KeptRows, torch.Tensor]:
    """Whose the rows of a resident page are, and the rows [2, M, E] in one line."""
    stream = memory.streams[0]
    kept = stream.kept[page]
    (held,) = memory.pool.read_pages([stream.gist_pages[page]])
    return kept, held.transpose(0, 1).flatten(1, 3)[:, : len(kept.owner)]


@torch.inference_mode()
def test_a_page_has_the_rows_below_it_of_which_most_is_expected():
    model = tiny()
    with attach(model, settings()) as memory:
        memory.read(tokens(1300))
        assert memory.streams[0].coarse_pages == [1, 0]
        page = GistPage(2, 0)
        kept, rows = content_of(memory, page)
        below = {}
        for at, child in enumerate(page.children):
            theirs, line = content_of(memory, child)
            for n, (owner, token) in enumerate(zip(*theirs[:2], strict=True)):
                below[int(owner), int(token) + 256 * at] = (float(theirs.use[n]), line[:, n])
    assert len(kept.owner) == LAYERS * KV_HEADS * 32
    code = kept.owner * 1024 + kept.token
    assert (code.diff() > 0).all()
    least = dict.fromkeys(range(LAYERS * KV_HEADS), float("inf"))
    for n, (owner, token, use) in enumerate(zip(*kept, strict=True)):
        share, row = below.pop((int(owner), int(token)))
        assert torch.equal(rows[:, n], row)
        assert float(use) == pytest.approx(share)
        least[int(owner)] = min(least[int(owner)], share)
    for (owner, _), (share, _) in below.items():
        assert share <= least[owner]


@torch.inference_mode()
def test_a_step_reads_the_coarse_rows_of_what_no_finer_page_shows(monkeypatch):
    """Three LODs in little: pages of 256, 512 and 1,024 tokens."""
    monkeypatch.setattr(tiling, "FAN_OUT", (1, 2, 2))
    model, history, new = tiny(), tokens(2900), tokens(9, seed=1)
    with attach(model, settings()) as memory:
        memory.read(history)
        narrowed(memory)
        memory.exclude([41])
        logits = model(new, **{CACHE_ARGUMENT: memory.cache}).logits
        memory.forget(9)
        seen = visible(memory, 0, 9)
        _, gists = memory.streams[0].focus(NARROW, 9)
    assert {page.lod for page in gists} == {1, 2, 3}
    torch.testing.assert_close(logits, plain(model, history, new, seen), rtol=2e-4, atol=2e-4)


@torch.inference_mode()
def test_beyond_the_trained_range_coarse_rows_stand_no_farther_than_fine_ones():
    model = tiny(trained_tokens=512)
    with attach(model, settings(limits=NARROW)) as memory:
        memory.read(tokens(2700))
        logits = after(model, memory)
        assert any(page.lod == 2 for page in memory.streams[0].focus(NARROW, 1)[1])
        view = memory._gists._view
        assert float(view._places.max()) <= NARROW.budget_places + 256
    assert torch.isfinite(logits).all()


@torch.inference_mode()
def test_a_budget_that_covers_everything_reads_no_coarse_page():
    model, history, new = tiny(), tokens(1500), tokens(5, seed=1)
    with attach(model, settings()) as memory:
        memory.read(history)
        assert memory.streams[0].coarse_pages == [1, 0]
        logits = model(new, **{CACHE_ARGUMENT: memory.cache}).logits
    whole = model(torch.cat((history, new), 1)).logits[:, -5:]
    torch.testing.assert_close(logits, whole, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("read", "more"), [(1000, 1300), (1024, 1300), (2100, 200), (8100, 400)])
@torch.inference_mode()
def test_closed_and_opened_again_is_uninterrupted(tmp_path, read, more):
    model, config = tiny(), settings(limits=NARROW)
    found = []
    for name in ("whole", "parts"):
        with attach(model, config, store=tmp_path / name) as memory:
            memory.read(tokens(read))
            if name == "whole":
                memory.read(tokens(more))
                found.append(after(model, memory))
                lods = {page.lod for page in memory.streams[0].focus(NARROW, 1)[1]}
        if name == "parts":
            with attach(model, config, store=tmp_path / name) as memory:
                memory.read(tokens(more))
                found.append(after(model, memory))
    assert max(lods) == (3 if read > 8000 else 2)
    assert torch.equal(*found)


@torch.inference_mode()
def test_coarse_pages_leave_the_pool_and_come_back_the_same(tmp_path):
    model = tiny()
    found = []
    for limit in (0, 24):
        config = settings(limits=NARROW, pages_max=limit)
        with attach(model, config, store=tmp_path / str(limit)) as memory:
            memory.read(tokens(2300))
            found.append(after(model, memory))
            stream = memory.streams[0]
            assert any(page.lod == 2 for page in stream.focus(NARROW, 1)[1])
            assert stream.kept.keys() == stream.gist_pages.keys()
            if limit:
                assert memory.pool.page_count <= limit
    assert torch.equal(*found)


def as_an_earlier_version(patch: pytest.MonkeyPatch) -> None:
    """Streams with pages of LOD 1, whose rows have no use, and with no others."""
    kept_rows = PageStore._kept_rows

    def without_use(self, *given):
        return replace(kept_rows(self, *given), use=None)

    def keep_whose(self, number, stream, page):
        kind = self._store.gists[page.lod]
        kept = stream.kept[page]
        full = torch.full((2, LAYERS * KV_HEADS * 32), -1.0)
        full[0, : len(kept.owner)], full[1, : len(kept.token)] = kept.owner, kept.token
        parts = full.view(2, LAYERS, KV_HEADS, kind.parts, -1).movedim(-2, 0)
        self._store.write_side(kind.owners, number, page.number * kind.parts, parts)

    patch.setattr(PageStore, "_kept_rows", without_use)
    patch.setattr(PageStore, "read_whose", lambda *_: None)
    patch.setattr(PageStore, "fill_use", lambda *_: None)
    patch.setattr(GistPages, "condense", lambda *_: None)
    patch.setattr(GistPages, "_keep_whose", keep_whose)


@torch.inference_mode()
def test_a_stream_of_an_earlier_version_goes_on_and_gets_its_coarse_pages(tmp_path, monkeypatch):
    model, config = tiny(), settings(limits=NARROW)
    with monkeypatch.context() as patch:
        as_an_earlier_version(patch)
        with attach(model, settings(), store=tmp_path / "kv") as memory:
            memory.read(tokens(2200))
    found = []
    for _ in range(2):
        with attach(model, config, store=tmp_path / "kv") as memory:
            found.append(after(model, memory))
            memory.forget(3)
            stream = memory.streams[0]
            assert stream.coarse_pages == [2, 0]
            assert is_unknown(stream.kept[GistPage(2, 0)].use)
            assert GistPage(2, 0) in stream.focus(NARROW, 1)[1]
            memory.commit = lambda: None
    assert torch.equal(*found)
    with attach(model, config, store=tmp_path / "kv") as memory:
        memory.read(tokens(1100))
        after(model, memory)
        assert memory.streams[0].coarse_pages == [3, 0]


def test_rows_of_unknown_use_count_as_the_others_and_are_spread_evenly():
    known, more = torch.tensor([6.0, 1.0, 3.0]), torch.tensor([10.0, 20.0])
    found = comparable_uses([known, torch.full((1000,), ABSENT), more])
    assert torch.equal(found[0], known)
    assert torch.equal(found[2], more)
    assert float(found[1].sum()) == pytest.approx(20.0, rel=1e-4)
    (alone,) = comparable_uses([torch.full((1000,), ABSENT)])
    for use in (found[1], alone):
        for count in (10, 100, 500):
            gaps = use.topk(count).indices.sort().values.diff()
            assert gaps.max() <= 3 * 1000 / count


@pytest.mark.parametrize("policy", ["raise", "skip"])
@torch.inference_mode()
def test_a_damaged_coarse_page_is_named_or_those_below_it_are_read(tmp_path, policy, caplog):
    model = tiny()
    with attach(model, settings(), store=tmp_path / "s") as memory:
        memory.read(tokens(2300))
        memory.read(tokens(1))
        memory._store.drain()
        # Its rows lie in the pages below too; which tokens they are of is its own.
        family = memory._store.gists[2].owners.name
        needle = memory._store.store.read_rows(family, 0, 0, 1)[0, -64:].tobytes()
        memory._store.store.checkpoint()
    damage(tmp_path / "s", needle)
    config = settings(limits=NARROW, on_corrupt=policy)
    with attach(model, config, store=tmp_path / "s") as memory:
        if policy == "raise":
            with pytest.raises(Corruption, match=r"gist page 0 of LOD 2 of stream 0, tokens \[0, "):
                after(model, memory)
            return
        assert torch.isfinite(after(model, memory)).all()
        assert GistPage(2, 0) in memory.streams[0].lost_gists
        assert "is damaged and left out" in caplog.text


@torch.inference_mode()
def test_a_page_is_made_without_the_damaged_one_below_it(tmp_path):
    model = tiny()
    with attach(model, settings(limits=NARROW), store=tmp_path / "s") as memory:
        memory.read(tokens(1000))
        memory.streams[0].lost_gists.add(GistPage(1, 1))
        memory.read(tokens(200))
        stream = memory.streams[0]
        assert stream.coarse_pages == [1, 0]
        kept, _ = content_of(memory, GistPage(2, 0))
    assert len(kept.owner) == LAYERS * KV_HEADS * 32
    assert not ((kept.token >= 256) & (kept.token < 512)).any()
