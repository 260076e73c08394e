"""Who chooses what is in focus: the step's queries, a question, the caller; and the log of it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megacontext.models.kv_cache import CACHE_ARGUMENT
from megacontext.paged import PagedConfig, attach, page_keys
from megacontext.paged.focus import order_blocks
from megacontext.paged.page_keys import PageKeys, scored_layers, turned
from megacontext.paged.rotary import LayerRotary
from megacontext.paged.stream import FocusLimits
from megacontext_ext.errors import InvalidArgument

LIMITS = FocusLimits(budget_places=256, recent_tokens=64)


def tiny(vocab: int = 97) -> LlamaForCausalLM:
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).eval()


def tokens(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 97, (1, count), generator=torch.Generator().manual_seed(seed))


def settings(**given) -> PagedConfig:
    return PagedConfig(**{"limits": LIMITS, "read_tokens": 64, "gists": "off", **given})


def test_the_block_whose_keys_answer_a_query_has_the_greatest_share():
    generator = torch.Generator().manual_seed(4)
    keys = PageKeys((3, 2, 64))
    content = torch.randn(300, 3, 2, 64, generator=generator)
    queries = torch.randn(3, 5, 4, 64, generator=generator)
    # Head 1 belongs to KV head 0, head 3 to KV head 1.
    content[217, 1, 1] = 2 * queries[1, :, 3].mean(0)
    content[33, 2, 0] = 2 * queries[2, :, 1].mean(0)
    content = content.bfloat16().float()  # as they are kept
    keys.add(content[:40])
    keys.add(content[40:])
    scores = keys.score(queries, 1.0)
    assert scores.shape == (300,)
    assert float(scores.sum()) == pytest.approx(1.0, abs=1e-3)
    plain = torch.zeros(300)
    for layer in range(3):
        for head in range(4):
            shares = queries[layer, :, head] @ content[:, layer, head // 2].T
            plain += shares.softmax(-1).sum(0) / (3 * 4 * 5)
    torch.testing.assert_close(scores, plain, rtol=1e-4, atol=1e-6)
    assert {217, 33} <= set(scores.topk(8).indices.tolist())


def test_keys_lie_in_chunks_and_score_as_in_one_piece(monkeypatch, tmp_path):
    generator = torch.Generator().manual_seed(5)
    content = torch.randn(150, 2, 2, 64, generator=generator).bfloat16()
    queries = torch.randn(2, 3, 4, 64, generator=generator)
    found = []
    for chunk, folder in ((2048, None), (64, None), (64, tmp_path)):
        monkeypatch.setattr(page_keys, "_CHUNK", chunk)
        keys = PageKeys((2, 2, 64), folder)
        for part in content.split(47):
            keys.add(part)
        assert torch.equal(keys.keys, content)
        found.append(keys.score(queries, 0.1))
    torch.testing.assert_close(found[1], found[0])
    assert torch.equal(found[2], found[1])
    assert not list(tmp_path.iterdir()), "the file has no name"


def test_keys_that_the_disk_has_no_room_for_are_refused(tmp_path):
    """The limit on file sizes stands for the disk."""
    script = f"""
import pathlib, resource, signal, torch
from megacontext.paged.page_keys import PageKeys
from megacontext_ext.errors import StoreFailed
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
try:
    PageKeys((2, 2, 64), pathlib.Path({str(tmp_path)!r})).add(torch.ones(3, 2, 2, 64))
except StoreFailed as error:
    print("told:", error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "has no 1048576 bytes for mean keys" in done.stdout, done.stderr


def test_a_turned_query_meets_unrotated_keys_as_a_rotated_one_meets_rotated_keys():
    frequencies = 1.0 / 10000 ** (torch.arange(0, 64, 2).double() / 64)
    rotary = LayerRotary(frequencies, 1.0)
    q, k = torch.randn(2, 3, 64), torch.randn(2, 3, 64)

    def placed(x: torch.Tensor, position: float) -> torch.Tensor:
        return turned(x, rotary, position)

    expected = (placed(q, 700.0) * placed(k, 188.0)).sum(-1)
    torch.testing.assert_close(
        (turned(q, rotary, 512.0) * k).sum(-1), expected, rtol=1e-3, atol=1e-3
    )


def test_order_keeps_what_is_wanted_until_it_is_clearly_beaten():
    scores = torch.tensor([0.10, 0.30, 0.11, 0.0, 0.20])
    assert list(order_blocks(scores, [], 2, 0.25)) == [1, 4]
    assert list(order_blocks(scores, [0], 3, 0.25)) == [1, 4, 0]
    assert list(order_blocks(scores, [0], 3, 0.05)) == [1, 4, 2]
    assert list(order_blocks(scores, [3, 9], 5, 0.25)) == [1, 4, 2, 0]
    assert order_blocks(scores, [], 2, 0.0)[1] == pytest.approx(0.30)


def test_scored_layers_are_distinct_and_inside():
    for layers in (1, 2, 3, 6, 12, 30):
        chosen = scored_layers(layers)
        assert len(set(chosen)) == len(chosen) >= 1
        assert all(layers // 3 <= layer < layers for layer in chosen)


@torch.inference_mode()
def test_step_focus_stays_within_the_budget_costs_no_pass_and_survives_restart(tmp_path):
    model = tiny()
    config = settings(focus="step", hysteresis=0.0, refocus_tokens=4, pages_max=12)
    with attach(model, config, store=tmp_path / "s") as memory:
        memory.read(tokens(700))
        passes = []
        handle = model.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
        for number in range(9):
            memory.cache.begin_call()
            model(tokens(1, number), **{CACHE_ARGUMENT: memory.cache})
            assert len(memory.in_focus()) * 32 <= LIMITS.budget_places
        handle.remove()
        assert len(passes) == 9
        assert {action.reason for action in memory.actions} == {"step"}
        kinds = [action.kind for action in memory.actions]
        assert {"expand", "collapse"} <= set(kinds)
        wanted = memory.streams[0].wanted
        kept = memory._chooser._keys[0]
        before = kept.keys.clone()
        assert len(before) == 709 // 32
    with attach(model, config, store=tmp_path / "s") as memory:
        kept = memory._chooser._keys[0]
        assert torch.equal(kept.keys, before)
        assert wanted


@torch.inference_mode()
def test_the_caller_sees_what_was_done_and_why():
    model = tiny()
    with attach(model, settings()) as memory:
        memory.read(tokens(700))
        memory.focus([3, 9])
        memory.focus([9, 4])
        memory.pin([1])
        memory.exclude([2])
        told = [(a.kind, a.block, a.reason, a.token) for a in memory.actions]
    assert told == [
        ("expand", 3, "caller", 700),
        ("expand", 9, "caller", 700),
        ("expand", 4, "caller", 700),
        ("collapse", 3, "caller", 700),
        ("pin", 1, "caller", 700),
        ("exclude", 2, "caller", 700),
    ]


@pytest.mark.smollm2
@torch.inference_mode()
def test_a_question_brings_the_block_with_its_words_into_focus(tmp_path, smollm2):
    tokenizer = smollm2().tokenizer
    filler = "The weather was mild and the road went on between fields. " * 60
    needle = "The violet cabinet in Ostrava holds seventeen brass keys. "
    ids = np.asarray(tokenizer.encode(filler + needle + filler), np.int64)
    where = len(tokenizer.encode(filler)) // 32
    model = tiny(vocab=smollm2().facts.vocabulary_tokens)
    with attach(model, settings(), store=tmp_path / "s", tokenizer=tokenizer) as memory:
        memory.read(torch.from_numpy(ids))
        passes = []
        handle = model.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
        wanted = memory.focus_on("How many brass keys are in the violet cabinet?")
        handle.remove()
        assert passes == []
        assert wanted[0] in range(where - 1, where + 4)
        assert {where, where + 1} <= set(memory.in_focus())
        assert memory.actions[0].reason.startswith("question: How many brass")
    with attach(model, settings(), store=tmp_path / "s", tokenizer=tokenizer) as memory:
        assert memory.focus_on("violet cabinet")[0] in range(where - 1, where + 4)


@torch.inference_mode()
def test_a_question_needs_a_store_and_a_tokenizer():
    with attach(tiny(), settings()) as memory:
        memory.read(tokens(40))
        with pytest.raises(InvalidArgument, match="focus_on needs attach"):
            memory.focus_on("what?")
