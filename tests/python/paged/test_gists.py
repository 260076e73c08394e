"""Gist pages in a paged memory: their rows, the budget, and nothing changed where they are off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megacontext.gists.adapter import AdapterRanks, GistAdapter
from megacontext.gists.base import base_from_model
from megacontext.gists.layout import Node, plan_rows
from megacontext.gists.rows import compute_rows
from megacontext.models.kv_cache import CACHE_ARGUMENT
from megacontext.paged import PagedConfig, attach
from megacontext.paged.step import Focus, make_step
from megacontext.paged.stream import FocusLimits, Stream
from megacontext.paged.tiling import GistPage

ROOT = Path(__file__).resolve().parents[3]
LIMITS = FocusLimits(budget_places=256, recent_tokens=64)


def tiny(trained_tokens: int = 4096) -> LlamaForCausalLM:
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=trained_tokens,
    )
    return LlamaForCausalLM(config).eval()


def tiny_adapter(model: LlamaForCausalLM) -> GistAdapter:
    """Random changes, so that a row is no copy of a token's."""
    adapter = GistAdapter(base_from_model(model).shape, AdapterRanks(2, 2, 2, 2, 2, 2, 2))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return adapter


def tokens(count: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(3, 97, (batch, count), generator=torch.Generator().manual_seed(count))


def config(model: LlamaForCausalLM, rows: int, **rest) -> PagedConfig:
    return PagedConfig(
        limits=LIMITS, read_tokens=96, gists=tiny_adapter(model), gist_rows=rows, **rest
    )


@pytest.mark.parametrize("rows", [1, 2, 4])
@torch.inference_mode()
def test_rows_are_those_of_the_gist_room(rows):
    """The first blocks see all tokens before them: the plain plan over the plain cache."""
    model = tiny()
    ids = tokens(256)
    base, adapter = base_from_model(model), tiny_adapter(model)
    nodes = [Node(start, start + 32) for start in range(0, 256, 32)]
    cache = base.read(ids)[1]
    wanted = compute_rows(base, adapter, plan_rows(nodes, rows, 256), ids, cache)
    with attach(model, config(model, rows)) as memory:
        memory.read(ids)
        memory.read(tokens(1))  # rows are made before the next step
        stream, pool = memory.streams[0], memory.pool
        assert stream.gisted_blocks == 8
        assert stream.tokens.tolist() == [*ids[0].tolist(), *tokens(1)[0].tolist()]
        slots = torch.arange(8 * rows)
        pages = torch.tensor([stream.gist_pages[GistPage(1, n)] for n in (slots // 32).tolist()])
        for layer in range(3):
            got = pool.keys[layer][pages, :, slots % 32].transpose(0, 1)
            torch.testing.assert_close(got, wanted.keys[layer][0], rtol=1e-3, atol=1e-4)
            got = pool.values[layer][pages, :, slots % 32].transpose(0, 1)
            torch.testing.assert_close(got, wanted.values[layer][0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("trained", [4096, 512])
@torch.inference_mode()
def test_gists_fill_the_budget_and_never_pass_it(rows, trained):
    model = tiny(trained)
    with attach(model, config(model, rows)) as memory:
        memory.read(tokens(1100))
        memory.focus([3])
        memory.exclude([5])
        logits = model(tokens(7), **{CACHE_ARGUMENT: memory.cache}).logits
        stream = memory.streams[0]
        blocks, gists = stream.focus(LIMITS, 1)
        focus = [Focus(blocks, gists)]
        step = make_step([stream], [1], focus, trained, torch.device("cpu"))
    assert torch.isfinite(logits).all()
    assert gists
    assert 3 in blocks
    assert 5 not in blocks
    assert (len(blocks) + len(gists)) * 32 <= LIMITS.budget_places
    assert step.table.rows.numel() <= LIMITS.budget_places
    shown = step.table.rows[step.table.rows >= 0]
    assert shown.unique().numel() == shown.numel()
    # A block in focus, and an excluded one, show no gist row.
    for block in (*blocks, 5):
        if block < stream.gisted_blocks:
            slot = torch.arange(block * rows, (block + 1) * rows)
            page = torch.tensor([stream.gist_pages[GistPage(1, n)] for n in (slot // 32).tolist()])
            row = page * 32 + slot % 32
            assert not torch.isin(row, shown).any()
    assert step.key_places.max() < max(trained, LIMITS.budget_places)


@torch.inference_mode()
def test_gists_change_what_is_read_only_beyond_the_budget():
    model = tiny()
    near, far, last = tokens(200), tokens(900), tokens(5)
    for ids, same in ((near, True), (far, False)):
        found = []
        for gists in ("off", tiny_adapter(model)):
            settings = PagedConfig(limits=LIMITS, read_tokens=64, gists=gists)
            with attach(model, settings) as memory:
                memory.read(ids)
                found.append(model(last, **{CACHE_ARGUMENT: memory.cache}).logits)
        assert torch.equal(found[0], found[1]) is same
    plain = model(torch.cat((near, last), 1)).logits[:, -5:]
    with attach(model, PagedConfig(limits=LIMITS, gists=tiny_adapter(model))) as memory:
        memory.read(near)
        got = model(last, **{CACHE_ARGUMENT: memory.cache}).logits
    torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_no_adapter_no_gists_and_embeddings_end_them():
    model = tiny()
    with attach(model, PagedConfig(limits=LIMITS, read_tokens=64)) as memory:
        memory.read(tokens(300))
        assert memory.streams[0].gist_pages == {}
    with attach(model, config(model, 1)) as memory:
        memory.read(tokens(64))
        memory.cache.begin_call()
        rows = model.get_input_embeddings().weight[tokens(8)]
        model(inputs_embeds=rows, **{CACHE_ARGUMENT: memory.cache})
        memory.read(tokens(96))
        assert memory.streams[0].gisted_blocks <= 2


@torch.inference_mode()
def test_a_full_pool_stops_gists_not_reading():
    model = tiny()
    with attach(model, config(model, 4, pages_max=11)) as memory:
        memory.read(tokens(320))
        assert memory.token_count == 320
        assert len(memory.streams[0].gist_pages) == 1


def test_focus_prefers_wanted_blocks_to_gists():
    stream = Stream(token_count=3200)
    stream.gisted_blocks = 100
    stream.wanted = [40, 41, 42, 43, 44, 45]
    blocks, gists = stream.focus(LIMITS, 1)
    assert {0, 40, 41, 42, 100} <= set(blocks)
    assert len(blocks) + len(gists) <= 8
    # What is wanted and found no room comes as gists before what is merely newer.
    stream.gist_rows, stream.wanted = 4, [40, 41, 60, 61, 17]
    spared = FocusLimits(budget_places=160, recent_tokens=0, gist_pages_min=2)
    blocks, gists = stream.focus(spared, 1)
    assert (blocks, gists) == ([0, 40, 100], [GistPage(1, 5), GistPage(1, 7)])
    assert stream.focus(replace(spared, gist_pages_min=0), 1) == ([0, 40, 41, 60, 100], [])
    stream.wanted, stream.gist_rows = [], 1
    blocks, gists = stream.focus(LIMITS, 1)
    assert gists == [GistPage(1, n) for n in range(4)]
    assert len(blocks) + len(gists) == 8


def test_a_share_for_gists_where_the_queries_would_want_every_place():
    limits = FocusLimits(budget_places=2048)
    assert PagedConfig(limits, focus="step").shares.gist_pages_min == 16
    assert PagedConfig(limits).shares == limits
    chosen = FocusLimits(budget_places=2048, gist_pages_min=0)
    assert PagedConfig(chosen, focus="step").shares == chosen
    greedy = FocusLimits(budget_places=2048, gist_pages_min=1000)
    assert PagedConfig(greedy, focus="step").choice_blocks == 0
    stream = Stream(token_count=32 * 1000, gisted_blocks=992, wanted=list(range(400, 500)))
    assert len(stream.focus(PagedConfig(limits, focus="step").shares, 1)[1]) == 16
    assert stream.focus(limits, 1)[1] == []
    # No place is spared for gists that may not be shown or are not there.
    without = replace(limits, gist_pages_max=0)
    full = stream.focus(limits, 1)
    assert stream.focus(PagedConfig(without, focus="step").shares, 1) == full
    stream.lost_gists = {GistPage(1, n) for n in range(stream.gist_page_count)}
    assert stream.focus(PagedConfig(limits, focus="step").shares, 1) == full


@pytest.mark.smollm2
@pytest.mark.slow
@torch.inference_mode()
def test_the_shipped_gists_serve_the_real_base(smollm2):
    """Sanity only: finite, within the budget. What they gain is measured by bench_paged_quality."""
    base = smollm2("float32")
    text = "\n".join((ROOT / name).read_text() for name in ("LICENSE", "CONTRIBUTING.md"))
    ids = torch.from_numpy(base.tokenizer.encode(text)[:1088].astype("int64"))
    limits = FocusLimits(budget_places=256)
    nll = {}
    for gists in ("off", "auto"):
        settings = PagedConfig(limits=limits, read_tokens=128, gists=gists)
        with attach(base.model, settings) as memory:
            memory.read(ids[:1024])
            logits = base.model(ids[None, 1024:-1], **{CACHE_ARGUMENT: memory.cache}).logits[0]
            blocks, pages = memory.streams[0].focus(limits, 1)
        nll[gists] = float(torch.nn.functional.cross_entropy(logits, ids[1025:]))
        assert bool(pages) is (gists == "auto")
        assert (len(blocks) + len(pages)) * 32 <= 256
    print(f"NLL after 1,024 tokens at 256 places: {nll}")
    assert all(0 < value < 12 for value in nll.values())
