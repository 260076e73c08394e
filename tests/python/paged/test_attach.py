"""A paged memory over tiny models of the real architectures: exact when the budget covers all."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from megacontext.models.kv_cache import CACHE_ARGUMENT
from megacontext.paged import PagedConfig, attach
from megacontext.paged.stream import FocusLimits, Stream
from megacontext_ext.errors import InvalidArgument, OverBudget, Unsupported

SIZES = {
    "vocab_size": 97,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    # One layer of three has no positions.
    "smollm3": lambda: SmolLM3ForCausalLM(
        SmolLM3Config(**SIZES, no_rope_layers=[1, 0, 1], pad_token_id=0)
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=40)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, sliding_window=40, query_pre_attn_scalar=64)
    ),
}
# Rotation in float32 tables against the model's own: the same numbers, another order of sums.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def family(name: str):
    torch.manual_seed(11)
    return FAMILIES[name]().eval()


def tokens(count: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(3, 97, (batch, count), generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_attach_within_the_budget_equals_the_plain_model(name):
    model, ids = family(name), tokens(150)
    plain = model(ids).logits
    with attach(model) as memory:
        got = model(ids, **{CACHE_ARGUMENT: memory.cache}).logits
        assert memory.token_count == 150
    torch.testing.assert_close(got, plain, **TOLERANCE)
    assert torch.equal(model(ids).logits, plain), "detaching must restore the model bit for bit"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("steps", [(150,), (1, 31, 64, 54), (33, 32, 85)])
@torch.inference_mode()
def test_reading_in_steps_equals_one_pass(name, steps):
    model, ids = family(name), tokens(151)
    plain = model(ids).logits[:, -1]
    with attach(model) as memory:
        start = 0
        for count in steps:
            memory.cache.begin_call()
            model(ids[:, start : start + count], **{CACHE_ARGUMENT: memory.cache})
            start += count
        last = model(ids[:, 150:], **{CACHE_ARGUMENT: memory.cache}).logits[:, -1]
    torch.testing.assert_close(last, plain, **TOLERANCE)


@torch.inference_mode()
def test_generate_continues_the_memory_as_if_the_text_were_one():
    model, ids = family("llama"), tokens(90)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(ids, **options)[0, 90:]
    with attach(model) as memory:
        memory.read(ids[:, :60])
        got = model.generate(ids[:, 60:], **options)[0, 30:]
        # The last token is drawn but not yet read.
        assert memory.token_count == 90 + 11
    assert got.tolist() == plain.tolist()


@torch.inference_mode()
def test_left_padded_batches_are_independent_memories():
    model = family("llama")
    long, short = tokens(70), tokens(45)
    ids = torch.zeros(2, 70, dtype=torch.long)
    mask = torch.zeros(2, 70, dtype=torch.long)
    ids[0], mask[0] = long, 1
    ids[1, 25:], mask[1, 25:] = short, 1
    with attach(model) as memory:
        got = model(ids, attention_mask=mask, **{CACHE_ARGUMENT: memory.cache}).logits
        assert [s.token_count for s in memory.streams] == [70, 45]
    torch.testing.assert_close(got[0], model(long).logits[0], **TOLERANCE)
    torch.testing.assert_close(got[1, 25:], model(short).logits[0], **TOLERANCE)


@torch.inference_mode()
def test_focus_changes_what_is_read_and_recomputes_nothing():
    model, ids = family("llama"), tokens(400)
    limits = FocusLimits(budget_places=160, recent_tokens=32)
    with attach(model, PagedConfig(limits=limits, read_tokens=32)) as memory:
        memory.read(ids)
        passes = []
        handle = model.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
        memory.focus([5, 7])
        assert passes == []
        assert {0, 5, 7} <= set(memory.in_focus())
        assert len(memory.in_focus()) * 32 <= 160
        seen = model(ids[:, :1], **{CACHE_ARGUMENT: memory.cache}).logits
        handle.remove()
        memory.exclude([5])
        assert 5 not in memory.in_focus()
    with attach(model, PagedConfig(limits=limits, read_tokens=32)) as memory:
        memory.read(ids)
        memory.focus([2, 3])
        other = model(ids[:, :1], **{CACHE_ARGUMENT: memory.cache}).logits
    assert not torch.allclose(seen, other)


@torch.inference_mode()
def test_a_stream_beyond_the_trained_range_stays_finite_and_flat():
    model = family("llama")
    limits = FocusLimits(budget_places=192, recent_tokens=64)
    with attach(model, PagedConfig(limits=limits, read_tokens=64)) as memory:
        memory.read(tokens(1000))
        logits = model(tokens(3), **{CACHE_ARGUMENT: memory.cache}).logits
        assert memory.token_count == 1003
        assert len(memory.in_focus()) <= 6
    assert torch.isfinite(logits).all()


def test_bad_calls_are_refused_with_numbers():
    model = family("llama")
    with pytest.raises(InvalidArgument, match=r"budget_places must be >= 96.*got 64"):
        FocusLimits(budget_places=64)
    with attach(model, PagedConfig(limits=FocusLimits(budget_places=96))) as memory:
        with pytest.raises(OverBudget, match=r"200 new tokens.*224 places, the budget is 96"):
            model(tokens(200), **{CACHE_ARGUMENT: memory.cache})
        assert memory.token_count == 0
        with pytest.raises(InvalidArgument, match="attached to this model already"), attach(model):
            pass
        model(tokens(10), **{CACHE_ARGUMENT: memory.cache})
        with pytest.raises(InvalidArgument, match=r"blocks must be in \[0, 1\), got 4"):
            memory.focus([4])
        with pytest.raises(InvalidArgument, match="has 1 streams, the batch has 2"):
            model(tokens(4, batch=2), **{CACHE_ARGUMENT: memory.cache})
    with (
        pytest.raises(InvalidArgument, match="pool may hold 2 pages"),
        attach(model, PagedConfig(pages_max=2)) as memory,
    ):
        model(tokens(100), **{CACHE_ARGUMENT: memory.cache})


def test_models_that_cannot_be_paged_are_refused_and_left_alone():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=128, n_layer=2, n_head=2)).eval()
    before = model(tokens(5)).logits
    with pytest.raises(Unsupported, match="no rotary positions"), attach(model):
        pass
    assert torch.equal(model(tokens(5)).logits, before)
    narrow = LlamaForCausalLM(LlamaConfig(**{**SIZES, "head_dim": 32}))
    with pytest.raises(Unsupported, match=r"\(64, 128, 256\), got 32"), attach(narrow):
        pass


def test_in_focus_never_exceeds_the_budget_and_keeps_the_new_tokens():
    limits = FocusLimits(budget_places=256, recent_tokens=96)
    for count in (0, 1, 31, 32, 33, 500, 5000):
        stream = Stream(token_count=count, wanted=[3, 9, 60])
        for new in (1, 7, 32, 100):
            blocks = stream.in_focus(limits, new)
            assert len(blocks) * 32 <= 256
            assert blocks == sorted(set(blocks))
            assert (count + new - 1) // 32 in blocks
