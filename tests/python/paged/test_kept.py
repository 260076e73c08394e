"""Kept rows in a paged memory: read as chosen, hidden where their block is, kept on disk."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.gemma3 import Gemma3ForCausalLM

from megacontext.gists.base import base_from_model
from megacontext.models.kv_cache import CACHE_ARGUMENT
from megacontext.paged import PagedConfig, attach, kept
from megacontext.paged.kept import KeptWriter, decode_kept
from megacontext.paged.memory import PagedMemory
from megacontext.paged.stream import FocusLimits
from megacontext.paged.tiling import GistPage

LAYERS, HEADS, KV_HEADS = 3, 4, 2
NARROW = FocusLimits(budget_places=256, recent_tokens=64)
WIDE = FocusLimits(budget_places=4096, recent_tokens=4096)


def tiny(trained_tokens: int = 4096) -> LlamaForCausalLM:
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=64,
        max_position_embeddings=trained_tokens,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # attention that looks at something, not nearly evenly at everything
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 6
    return model


def tokens(count: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + count)
    return torch.randint(3, 97, (batch, count), generator=generator)


def settings(rows: int = 4, limits: FocusLimits = WIDE, **rest) -> PagedConfig:
    return PagedConfig(limits=limits, read_tokens=96, gists="kept", gist_rows=rows, **rest)


def narrowed(memory: PagedMemory) -> None:
    memory.config = replace(memory.config, limits=NARROW)


def visible(memory: PagedMemory, number: int, new_tokens: int) -> torch.Tensor:
    """[L, Hkv, tokens] which tokens a step shall see, from the focus and the kept rows alone."""
    stream = memory.streams[number]
    blocks, gists = stream.focus(NARROW, new_tokens)
    seen = torch.zeros(LAYERS, KV_HEADS, stream.token_count, dtype=torch.bool)
    for block in blocks:
        seen[:, :, block * 32 : (block + 1) * 32] = True
    for page in gists:
        finer = {b for p in gists if p.lod < page.lod for b in stream.gist_blocks(p)}
        kept, theirs = stream.kept[page], stream.gist_blocks(page)
        for owner, offset in zip(kept.owner.tolist(), kept.token.tolist(), strict=True):
            token = theirs.start * 32 + offset
            if token // 32 not in stream.excluded | finer:
                seen[owner // KV_HEADS, owner % KV_HEADS, token] = True
    return seen


def plain(model: LlamaForCausalLM, history: torch.Tensor, new: torch.Tensor, seen: torch.Tensor):
    """Logits of `new` where each layer and head sees only those tokens of the history."""
    base = base_from_model(model)
    past = base.read(history)[1]
    bias = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))
    states = base.read(new, history.shape[1], past, bias=[b[None] for b in bias])[0]
    return base.logits(states)


@pytest.mark.parametrize("rows", [1, 4])
@torch.inference_mode()
def test_a_step_reads_the_focus_and_the_kept_rows_and_nothing_else(rows):
    model, history, new = tiny(), tokens(1200), tokens(9, seed=1)
    with attach(model, settings(rows)) as memory:
        memory.read(history)
        narrowed(memory)
        memory.focus([3, 20])
        memory.exclude([5])
        logits = model(new, **{CACHE_ARGUMENT: memory.cache}).logits
        memory.forget(9)
        seen = visible(memory, 0, 9)
        assert memory.streams[0].focus(NARROW, 9)[1], "no gist page was read"
    assert not seen.all(-1).any()
    assert len({tuple(s.flatten().tolist()) for s in seen.flatten(0, 1)}) > 1, "heads differ"
    torch.testing.assert_close(logits, plain(model, history, new, seen), rtol=2e-4, atol=2e-4)


@torch.inference_mode()
def test_streams_of_a_batch_do_not_see_each_other():
    model, history, new = tiny(), tokens(800, batch=2), tokens(4, batch=2, seed=1)
    with attach(model, settings()) as memory:
        memory.read(history)
        narrowed(memory)
        memory.focus([7], stream=1)
        logits = model(new, **{CACHE_ARGUMENT: memory.cache}).logits
        for number in (0, 1):
            memory.forget(4, number)
        seen = [visible(memory, number, 4) for number in (0, 1)]
    for number in (0, 1):
        wanted = plain(model, history[number : number + 1], new[number : number + 1], seen[number])
        torch.testing.assert_close(logits[number], wanted[0], rtol=2e-4, atol=2e-4)


@torch.inference_mode()
def test_decoding_token_by_token_is_reading_at_once():
    model, history, new = tiny(), tokens(1100), tokens(6, seed=2)
    found = []
    for width in (6, 1):
        with attach(model, settings()) as memory:
            memory.read(history)
            narrowed(memory)
            parts = [
                model(new[:, at : at + width], **{CACHE_ARGUMENT: memory.cache}).logits
                for at in range(0, 6, width)
            ]
            found.append(torch.cat(parts, 1))
    torch.testing.assert_close(found[0], found[1], rtol=2e-4, atol=2e-4)


@torch.inference_mode()
def test_beyond_the_trained_range_every_distance_stays_within_it():
    model, history, new = tiny(trained_tokens=512), tokens(1500), tokens(5, seed=1)
    with attach(model, settings(limits=NARROW)) as memory:
        memory.read(history)
        logits = model(new, **{CACHE_ARGUMENT: memory.cache}).logits
        view = memory._gists._view
        assert view._layers[0] is not None
        assert float(view._places.min()) >= 0
        assert float(view._places.max()) <= NARROW.budget_places + 256
    assert torch.isfinite(logits).all()


@torch.inference_mode()
def test_rows_are_those_that_the_queries_look_for():
    """A head keeps what it is expected to use most: more of it than by any even choice."""
    model, history = tiny(), tokens(300)
    with attach(model, settings()) as memory:
        heard = {}
        original = KeptWriter._use

        def remember(self, layer, *rest):
            heard[layer] = original(self, layer, *rest)
            return heard[layer]

        KeptWriter._use = remember
        try:
            memory.read(history)
        finally:
            KeptWriter._use = original
        kept = memory.streams[0].kept[GistPage(1, 0)]
    use = torch.stack([heard[layer] for layer in range(LAYERS)]).flatten(0, 1)
    assert len(kept.owner) == LAYERS * KV_HEADS * 32
    chosen = use[kept.owner, kept.token].sum()
    assert chosen >= use.topk(32, -1).values.sum() * 0.999
    assert chosen > use[:, ::8].sum()


@torch.inference_mode()
def test_sliding_layers_keep_nothing_and_behind_a_norm_the_size_of_values_says_nothing():
    torch.manual_seed(3)
    config = Gemma3TextConfig(
        vocab_size=97,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        sliding_window=64,
        max_position_embeddings=4096,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    model = Gemma3ForCausalLM(config).eval()
    found = []
    for size in (1, 30):
        with torch.no_grad():
            model.model.layers[3].self_attn.v_proj.weight *= size
        with attach(model, settings(limits=NARROW)) as memory:
            memory.read(tokens(900))
            logits = model(tokens(3), **{CACHE_ARGUMENT: memory.cache}).logits
            owners = memory.streams[0].kept[GistPage(1, 0)].owner.unique(return_counts=True)
        assert owners[0].tolist() == [1, 3]
        assert torch.isfinite(logits).all()
        found.append(owners[1])
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("read", "rows"),
    [(700, 4), (767, 4), (768, 4), (1025, 4), (1, 1), (40, 1), (300, 4), (1000, 1), (1030, 1)],
)
@torch.inference_mode()
def test_closed_and_opened_again_is_uninterrupted(tmp_path, read, rows):
    model, more, new = tiny(), tokens(400, seed=5), tokens(3, seed=6)
    found = []
    for name in ("whole", "parts"):
        config = settings(rows, limits=NARROW, pages_max=64)
        with attach(model, config, store=tmp_path / name) as memory:
            memory.read(tokens(read))
            if name == "whole":
                memory.read(more)
                found.append(model(new, **{CACHE_ARGUMENT: memory.cache}).logits)
        if name == "parts":
            with attach(model, config, store=tmp_path / name) as memory:
                assert memory.token_count == read
                memory.read(more)
                found.append(model(new, **{CACHE_ARGUMENT: memory.cache}).logits)
                assert memory.streams[0].gist_page_count == (read + 400) * rows // 1024
    assert torch.equal(*found)


@torch.inference_mode()
def test_queries_that_a_crash_took_are_asked_again(tmp_path):
    """Committed behind, then lost before the end: tokens of the unfinished page are read again."""
    model, history, new = tiny(), tokens(1000), tokens(3, seed=6)
    config = settings(limits=WIDE, commit_tokens=32)
    with attach(model, config, store=tmp_path / "kv") as memory:
        memory.read(history)
        wanted = memory.streams[0].gist_page_count
        memory._store.drain()
        memory.commit = lambda: None  # what a killed process does
    with attach(model, config, store=tmp_path / "kv") as memory:
        count = memory.token_count
        assert 900 < count <= 1000
        memory.read(history[:, count:])
        narrowed(memory)
        logits = model(new, **{CACHE_ARGUMENT: memory.cache}).logits
        memory.forget(3)
        assert memory.streams[0].gist_page_count == wanted
        seen = visible(memory, 0, 3)
    torch.testing.assert_close(logits, plain(model, history, new, seen), rtol=2e-4, atol=2e-4)


@torch.inference_mode()
def test_a_stream_read_without_gists_is_not_read_again(tmp_path, monkeypatch):
    model, history, new = tiny(), tokens(1400), tokens(3, seed=6)
    with attach(model, settings(limits=NARROW), store=tmp_path / "kv") as memory:
        memory._gists = None
        memory.read(history)
    monkeypatch.setattr(PagedMemory, "read", lambda *_: pytest.fail("it was read again"))
    with attach(model, settings(limits=NARROW), store=tmp_path / "kv") as memory:
        assert memory.token_count == 1400
        logits = model(new, **{CACHE_ARGUMENT: memory.cache}).logits
        assert memory.streams[0].kept == {}
    assert torch.isfinite(logits).all()


@torch.inference_mode()
def test_a_stream_goes_on_with_rows_that_another_measure_chose(tmp_path, monkeypatch):
    """As a version before did, whose streams are on disk."""
    model = tiny()

    def by_place(queries, keys, values, earlier, recent):
        return torch.arange(1.0, keys.shape[2] + 1).expand(keys.shape[:3])

    with monkeypatch.context() as patch:
        patch.setattr(kept, "expected_use", by_place)
        with attach(model, settings(), store=tmp_path / "kv") as memory:
            memory.read(tokens(700))
            before = memory.streams[0].kept[GistPage(1, 0)]
    with attach(model, settings(), store=tmp_path / "kv") as memory:
        after = decode_kept(*memory._store.read_whose(0, GistPage(1, 0)))
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        memory.read(tokens(600, seed=1))
        memory.read(tokens(1))  # pages are made at the beginning of a step
        assert memory.streams[0].gist_page_count == 1300 // 256


@torch.inference_mode()
def test_queries_are_not_kept_for_pages_that_never_fit(tmp_path):
    model = tiny()
    config = settings(rows=1, limits=FocusLimits(budget_places=128, recent_tokens=32))
    with attach(model, replace(config, read_tokens=32), store=tmp_path / "kv") as memory:
        memory.read(tokens(400))
        assert memory._gists is None  # 42 pages at once, four budgets have 16


@torch.inference_mode()
def test_pages_leave_the_pool_and_come_back_the_same(tmp_path):
    model, new = tiny(), tokens(3, seed=6)
    found = []
    for limit in (0, 24):
        config = settings(limits=NARROW, pages_max=limit)
        with attach(model, config, store=tmp_path / str(limit)) as memory:
            memory.read(tokens(1300))
            found.append(model(new, **{CACHE_ARGUMENT: memory.cache}).logits)
            evicted = memory.traffic.evicted
    assert evicted > 0
    assert torch.equal(*found)
