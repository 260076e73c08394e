"""A paged memory with a store: nothing that is read back differs from what was never let go."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megacontext.gists.adapter import AdapterRanks, GistAdapter
from megacontext.gists.base import base_from_model
from megacontext.models.kv_cache import CACHE_ARGUMENT
from megacontext.paged import PagedConfig, attach
from megacontext.paged.page_codec import PageCodec
from megacontext.paged.stream import FocusLimits
from megacontext_ext import Store
from megacontext_ext.errors import Corruption, InvalidArgument, StoreLocked

LIMITS = FocusLimits(budget_places=256, recent_tokens=64)
WIDE = FocusLimits(budget_places=2048)


def tiny(seed: int = 11, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).eval().to(dtype)


def tokens(count: int, seed: int = 1, batch: int = 1) -> torch.Tensor:
    return torch.randint(3, 97, (batch, count), generator=torch.Generator().manual_seed(seed))


def step(model: LlamaForCausalLM, memory, ids: torch.Tensor) -> torch.Tensor:
    memory.cache.begin_call()
    return model(ids, **{CACHE_ARGUMENT: memory.cache}).logits


def settings(**given) -> PagedConfig:
    return PagedConfig(**{"limits": LIMITS, "read_tokens": 64, "gists": "off", **given})


def tiny_adapter(model: LlamaForCausalLM) -> GistAdapter:
    adapter = GistAdapter(base_from_model(model).shape, AdapterRanks(2, 2, 2, 2, 2, 2, 2))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return adapter


@pytest.mark.parametrize(
    ("dtype", "pages", "gists"),
    [(torch.float32, None, True), (torch.float32, "int8", False), (torch.bfloat16, None, False)],
)
@torch.inference_mode()
def test_closed_and_reopened_equals_the_uninterrupted_run(tmp_path, dtype, pages, gists):
    model, ids = tiny(dtype=dtype), tokens(512)
    adapter = tiny_adapter(model) if gists else "off"
    config = settings(pages=pages, gists=adapter, gist_rows=4)
    with attach(model, config, store=tmp_path / "whole") as memory:
        memory.read(ids)
        memory.focus([3, 9])
        whole = [step(model, memory, tokens(n, n)) for n in (5, 1, 32)]
    with attach(model, config, store=tmp_path / "parts") as memory:
        memory.read(ids[:, :320])
    with attach(model, config, store=tmp_path / "parts") as memory:
        assert memory.token_count == 320
        memory.read(ids, resume=True)
        memory.focus([3, 9])
        parts = [step(model, memory, tokens(5, 5))]
    assert Store.open(tmp_path / "parts", read_only=True).token_count(0) == 517
    with attach(model, config, store=tmp_path / "parts") as memory:
        assert memory.token_count == 517
        assert memory.streams[0].tokens.tolist() == [*ids[0].tolist(), *tokens(5, 5)[0].tolist()]
        memory.focus([3, 9])
        parts += [step(model, memory, tokens(n, n)) for n in (1, 32)]
    for got, wanted in zip(parts, whole, strict=True):
        assert torch.equal(got, wanted)


@torch.inference_mode()
def test_eviction_and_return_change_nothing(tmp_path):
    model, ids = tiny(), tokens(900)
    with attach(model, settings()) as memory:
        memory.read(ids)
        wanted = []
        for blocks in ([3, 9], [12, 13, 20], [3, 9]):
            memory.focus(blocks)
            wanted.append(step(model, memory, tokens(2, blocks[0])))
    with attach(model, settings(pages_max=9), store=tmp_path / "s") as memory:
        memory.read(ids)
        for blocks, logits in zip(([3, 9], [12, 13, 20], [3, 9]), wanted, strict=True):
            memory.focus(blocks)
            assert torch.equal(step(model, memory, tokens(2, blocks[0])), logits)
            assert memory.pool.page_count <= 9
        assert memory.traffic.evicted > 20
        assert memory.traffic.brought_in >= 7


@torch.inference_mode()
def test_reopened_within_the_budget_equals_the_plain_model(tmp_path):
    model, ids = tiny(), tokens(300)
    plain = model(ids).logits[:, -50:]
    with attach(model, settings(limits=WIDE), store=tmp_path / "s") as memory:
        memory.read(ids[:, :250])
    with attach(model, settings(limits=WIDE), store=tmp_path / "s") as memory:
        got = step(model, memory, ids[:, 250:])
    torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_int8_pages_stay_close_to_the_plain_model(tmp_path):
    model, ids = tiny(), tokens(300)
    plain = model(ids).logits[:, -1]
    with attach(model, settings(limits=WIDE, pages="int8"), store=tmp_path / "s") as memory:
        memory.read(ids[:, :299])
        got = step(model, memory, ids[:, 299:])[:, -1]
    assert not torch.equal(got, plain)
    # 127 steps to the largest of 64 numbers: half a step is 0.4 % of it.
    assert (got - plain).norm() / plain.norm() < 0.02


@torch.inference_mode()
def test_streams_of_a_batch_come_back_each_with_its_own(tmp_path):
    model, rows = tiny(), tokens(70, batch=2)
    mask = torch.ones(2, 70, dtype=torch.long)
    mask[1, :30] = 0
    with attach(model, settings(), store=tmp_path / "s") as memory:
        memory.read(rows, mask)
        wanted = step(model, memory, tokens(3, batch=2))
    with attach(model, settings(), store=tmp_path / "t") as memory:
        memory.read(rows, mask)
    with attach(model, settings(), store=tmp_path / "t") as memory:
        assert [s.token_count for s in memory.streams] == [70, 40]
        assert torch.equal(step(model, memory, tokens(3, batch=2)), wanted)


@torch.inference_mode()
def test_a_killed_reader_goes_on_from_what_reached_the_disk(tmp_path):
    script = f"""
import os, torch
from tests.python.paged.test_store import attach, settings, step, tiny, tokens
with attach(tiny(), settings(commit_tokens=128), store={str(tmp_path / "s")!r}) as memory:
    memory.read(tokens(600))
    memory._store._writer.drain()
    os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[3])
    assert killed.returncode == -9
    model, ids = tiny(), tokens(600)
    with attach(model, settings()) as memory:
        memory.read(ids)
        wanted = step(model, memory, tokens(4))
    with attach(model, settings(), store=tmp_path / "s") as memory:
        assert 384 <= memory.token_count <= 600
        memory.read(ids, resume=True)
        torch.testing.assert_close(step(model, memory, tokens(4)), wanted, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_tokens_without_pages_are_read_again(tmp_path):
    model, ids = tiny(), tokens(200)
    with attach(model, settings(), store=tmp_path / "s") as memory:
        memory.read(ids)
    with Store.open(tmp_path / "s") as store:
        store.append_tokens(0, tokens(100, 2)[0].numpy().astype(np.uint32))
    with attach(model, settings(limits=WIDE), store=tmp_path / "s") as memory:
        assert memory.token_count == 300
        got = step(model, memory, tokens(4))
    plain = model(torch.cat((ids, tokens(100, 2), tokens(4)), 1)).logits[:, -4:]
    torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_progress_is_told_and_an_interruption_resumes(tmp_path):
    model, ids = tiny(), tokens(400)
    told = []

    def stop_at_192(progress):
        told.append((progress.done, progress.total))
        if progress.done == 192:
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        attach(model, settings(), store=tmp_path / "s") as memory,
    ):
        memory.read(ids, progress=stop_at_192)
    assert told == [(64, 400), (128, 400), (192, 400)]
    with attach(model, settings(), store=tmp_path / "s") as memory:
        assert memory.token_count == 192
        memory.read(ids, resume=True)
        assert memory.token_count == 400
        with pytest.raises(InvalidArgument, match="begin with the 400 that the memory has"):
            memory.read(tokens(500, 3), resume=True)


@torch.inference_mode()
def test_what_is_forgotten_was_never_read(tmp_path):
    model = tiny()
    with attach(model, settings(), store=tmp_path / "s") as memory:
        memory.read(tokens(130))
        wanted = step(model, memory, tokens(4))
        memory.forget(4)
        step(model, memory, tokens(9, 2))
        memory.forget(9)
        assert torch.equal(step(model, memory, tokens(4)), wanted)
        with pytest.raises(InvalidArgument, match="takes 0 to 6 tokens here, got 7"):
            memory.forget(7)


def damage(folder: Path, needle: bytes) -> None:
    """Flips a byte of the one segment that holds `needle`; spare log files may hold it too."""
    holds = [p for p in folder.rglob("*.mcs") if needle in p.read_bytes()]
    assert len(holds) == 1
    raw = bytearray(holds[0].read_bytes())
    raw[raw.index(needle) + 5] ^= 0x40
    holds[0].write_bytes(raw)


@pytest.mark.parametrize("policy", ["raise", "skip"])
@torch.inference_mode()
def test_a_damaged_page_is_named_or_left_out(tmp_path, policy, caplog):
    model = tiny()
    with attach(model, settings(), store=tmp_path / "s") as memory:
        memory.read(tokens(900))
        memory._store.drain()
        needle = memory._store.store.read_rows("kv-f32", 0, 7, 8)[0, 1000:1064].tobytes()
        memory._store.store.checkpoint()
    damage(tmp_path / "s", needle)
    with attach(model, settings(on_corrupt=policy), store=tmp_path / "s") as memory:
        memory.focus([6, 7])
        if policy == "raise":
            with pytest.raises(Corruption, match=r"tokens page 7 of stream 0, tokens \[224, 256\)"):
                step(model, memory, tokens(3))
            return
        logits = step(model, memory, tokens(3))
        assert 7 not in memory.in_focus()
        assert memory.streams[0].lost >= {7}
        assert "is damaged and left out" in caplog.text
    with attach(model, settings()) as memory:
        memory.read(tokens(900))
        memory.focus([6])
        memory.exclude(sorted({7} | lost_of(caplog.text)))
        assert torch.equal(step(model, memory, tokens(3)), logits)


def lost_of(text: str) -> set[int]:
    """Blocks that a log says were left out: a page of the disk may hold parts of two."""
    return {int(line.split("tokens page ")[1].split()[0]) for line in text.splitlines()
            if "tokens page " in line}  # fmt: skip


@torch.inference_mode()
def test_other_models_tokenizers_and_formats_are_refused(tmp_path):
    class Named:
        hash = "tokenizer-a"

    with attach(tiny(), settings(), store=tmp_path / "s", tokenizer=Named()) as memory:
        memory.read(tokens(40))
    Named.hash = "tokenizer-b"
    for match, model, given in (
        ("model", tiny(seed=12), {}),
        ("tokenizer", tiny(), {"tokenizer": Named()}),
        ("keeps pages as f32", tiny(), {"config": settings(pages="int8")}),
    ):
        with (
            pytest.raises(InvalidArgument, match=match),
            attach(model, given.pop("config", settings()), store=tmp_path / "s", **given),
        ):
            pass
        assert model.config._attn_implementation == "sdpa"
    with attach(tiny(), settings(), store=tmp_path / "s") as memory:
        assert memory.token_count == 40


@torch.inference_mode()
def test_a_second_memory_on_a_store_is_refused(tmp_path):
    with (
        attach(tiny(), settings(), store=tmp_path / "s"),
        pytest.raises(StoreLocked),
        attach(tiny(), settings(), store=tmp_path / "s"),
    ):
        pass


@torch.inference_mode()
def test_a_memory_limit_below_one_step_is_refused(tmp_path):
    with (
        pytest.raises(InvalidArgument, match=r"pages_max must be at least 8 .*256 places.*got 7"),
        attach(tiny(), settings(pages_max=7), store=tmp_path / "s"),
    ):
        pass
    with (
        pytest.raises(InvalidArgument, match=r"step needs 1\d pages .*limit is 9 "),
        attach(tiny(), settings(pages_max=9), store=tmp_path / "s") as memory,
    ):
        memory.read(tokens(600, batch=2))


@torch.inference_mode()
def test_rows_without_ids_are_refused_where_a_store_keeps_tokens(tmp_path):
    model = tiny()
    rows = model.get_input_embeddings().weight[tokens(8)]
    with attach(model, settings(), store=tmp_path / "s") as memory:
        call = {"inputs_embeds": rows, CACHE_ARGUMENT: memory.cache}
        with pytest.raises(InvalidArgument, match="must be given token ids"):
            model(**call)


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on file sizes")
@torch.inference_mode()
def test_a_full_disk_stops_with_what_was_committed(tmp_path):
    """The limit on file sizes stands for the disk: writes beyond it fail."""
    script = f"""
import resource, signal, torch
from megacontext_ext.errors import StoreFailed
from tests.python.paged.test_store import attach, settings, step, tiny, tokens
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with attach(tiny(), settings(commit_tokens=64), store={str(tmp_path / "s")!r}) as memory:
        memory.read(tokens(256))
        memory.commit()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
        memory.read(tokens(90000, 2))
except StoreFailed as error:
    print("told:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert "no longer takes pages; what was committed is kept" in done.stdout, done.stderr
    with attach(tiny(), settings(), store=tmp_path / "s") as memory:
        assert memory.token_count >= 256
        assert memory.streams[0].tokens[:256].tolist() == tokens(256)[0].tolist()


@pytest.mark.parametrize("page_format", ["f32", "bf16", "f16", "int8"])
def test_codec_gives_back_what_its_format_keeps(page_format):
    generator = torch.Generator().manual_seed(3)
    codec = PageCodec(page_format, (2, 2, 3, 32, 64))
    for count in (0, 1, 3):
        pages = torch.randn(count, 2, 2, 3, 32, 64, generator=generator)
        rows = codec.encode(pages)
        assert rows.shape == (count, codec.row_bytes)
        back = codec.decode(rows, torch.float32)
        step_size = pages.abs().amax(-1, keepdim=True) / 127 if count else pages
        allowed = {"f32": 0, "bf16": 2**-8, "f16": 2**-11, "int8": 0}[page_format]
        bound = pages.abs() * allowed + (step_size * 0.501 if page_format == "int8" else 0)
        assert (back - pages).abs().le(bound + 1e-7).all()
        # Encoding what was decoded changes nothing more.
        assert torch.equal(codec.decode(codec.encode(back), torch.float32), back)
    with pytest.raises(InvalidArgument, match="got 'int3'"):
        PageCodec("int3", (1, 2, 1, 32, 64))


@pytest.mark.parametrize("declared", ["numbers", "bytes"])
def test_pages_are_numbers_to_the_engine_and_bytes_in_older_stores(tmp_path, declared):
    codec = PageCodec("bf16", (2, 2, 1, 32, 8))
    pages = torch.randn(5, *codec.shape, generator=torch.Generator().manual_seed(3)).bfloat16()
    with Store.create(tmp_path / "s", {}) as store:
        store.append_tokens(store.add_partition("stream-0"), np.arange(5 * 32))
        if declared == "bytes":
            store.define_rows("kv-bf16", 1, "u8", codec.row_bytes)
        dtype = codec.define_rows(store, "kv-bf16")
        assert dtype == (np.uint16 if declared == "numbers" else np.uint8)
        store.put_rows("kv-bf16", 0, 0, codec.encode(pages).view(dtype))

        def read() -> torch.Tensor:
            rows = store.read_rows("kv-bf16", 0, 0, 5)
            return codec.decode(rows.view(np.uint8), torch.bfloat16)

        assert torch.equal(read(), pages)
        if declared == "bytes":
            return
        assert store.reencode("kv-bf16", "q8", group_size=8).saved_bytes > 0
        rounded = read()
        assert not torch.equal(rounded, pages)
        torch.testing.assert_close(rounded, pages, atol=0.02, rtol=0.01)
        with pytest.raises(InvalidArgument, match=r"rows of 'kv-bf16' must have"):
            PageCodec("bf16", (2, 2, 1, 32, 4)).define_rows(store, "kv-bf16")


@torch.inference_mode()
def test_a_stream_goes_on_over_pages_that_were_reencoded(tmp_path):
    model = tiny()
    with attach(model, settings(), store=tmp_path / "s") as memory:
        memory.read(tokens(900))
    shutil.copytree(tmp_path / "s", tmp_path / "cold")
    with Store.open(tmp_path / "cold") as store:
        done = store.reencode("kv-f32", "q8", group_size=64)
        assert done.bytes_after < done.bytes_before / 3
    logits = []
    for name in ("s", "cold"):
        with attach(model, settings(), store=tmp_path / name) as memory:
            memory.focus([6, 7])
            logits.append(step(model, memory, tokens(3)))
    assert not torch.equal(logits[0], logits[1])
    torch.testing.assert_close(logits[1], logits[0], atol=0.02, rtol=0.05)
