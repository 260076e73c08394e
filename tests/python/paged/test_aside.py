"""What is asked on the side leaves a memory as it was: in answers, on disk, in focus."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from megacontext.models.kv_cache import CACHE_ARGUMENT
from megacontext.paged import PagedConfig, attach
from megacontext.paged.memory import PagedMemory
from megacontext.paged.stream import FocusLimits
from megacontext_ext import Store
from megacontext_ext.errors import InvalidArgument
from tests.python.paged.test_kept import tiny, tokens

LIMITS = FocusLimits(budget_places=384, recent_tokens=64)


def settings(**given) -> PagedConfig:
    return PagedConfig(**{"limits": LIMITS, "read_tokens": 96, **given})


def step(model: LlamaForCausalLM, memory: PagedMemory, ids: torch.Tensor) -> torch.Tensor:
    memory.cache.begin_call()
    return model(ids, **{CACHE_ARGUMENT: memory.cache}).logits


def run(model: LlamaForCausalLM, config: PagedConfig, asides: bool, **store) -> list[torch.Tensor]:
    """Logits of steps of many lengths; with asides between them that no step must notice."""
    found = []
    with attach(model, config, **store) as memory:
        for number, count in enumerate((700, 5, 1, 32, 90, 3, 333, 2)):
            if asides:
                with memory.aside():
                    memory.read(tokens(number * 37 % 150 + 40, seed=7))
                    memory.focus([0, 1])
                    memory.pin([1])
                    memory.exclude([0])
                    step(model, memory, tokens(1, seed=8))
            if count > 96:
                memory.read(tokens(count, seed=number))
            else:
                found.append(step(model, memory, tokens(count, seed=number)))
        found.append(torch.tensor(memory.streams[0].tokens.tolist()))
        found.append(torch.tensor(memory.in_focus()))
    return found


@pytest.mark.parametrize("focus", ["question", "step"])
@pytest.mark.parametrize(("gists", "pages"), [("off", None), ("kept", None), ("kept", "int8")])
@torch.inference_mode()
def test_answers_are_as_if_nothing_had_been_asked(tmp_path, focus, gists, pages):
    model = tiny()
    store = {"refocus_tokens": 4, "pages_max": 64, "pages": pages}
    config = settings(focus=focus, gists=gists, gist_rows=4, **(store if pages else {}))
    without, with_asides = (
        run(model, config, asides, **({"store": tmp_path / str(asides)} if pages else {}))
        for asides in (False, True)
    )
    for got, wanted in zip(with_asides, without, strict=True):
        assert torch.equal(got, wanted)


@torch.inference_mode()
def test_nothing_of_it_is_written_and_another_day_goes_on_without_it(tmp_path):
    model, config = tiny(), settings(gists="kept", gist_rows=4)
    with attach(model, config, store=tmp_path / "s") as memory:
        memory.read(tokens(500))
        pages = memory.pool.page_count
        with memory.aside():
            memory.read(tokens(300, seed=3))
            inside = memory.token_count
            with pytest.raises(InvalidArgument, match="nothing is kept"):
                memory.commit()
        assert (inside, memory.token_count) == (800, 500)
        assert memory.pool.page_count <= pages + 1
        wanted = step(model, memory, tokens(9))
        memory.forget(9)
    with Store.open(tmp_path / "s", read_only=True) as held:
        assert held.token_count(0) == 500
    with attach(model, config, store=tmp_path / "s") as memory:
        assert torch.equal(step(model, memory, tokens(9)), wanted)


@torch.inference_mode()
def test_a_failure_inside_ends_it_too(tmp_path):
    model = tiny()
    with attach(model, settings(gists="off")) as memory:
        memory.read(tokens(100))
        with pytest.raises(InvalidArgument, match="open already"), memory.aside(), memory.aside():
            pass

        def read_and_fail():
            with memory.aside():
                memory.read(tokens(70, seed=2))
                memory.pin([6])

        with pytest.raises(InvalidArgument, match="blocks must be in"):
            read_and_fail()
        assert memory.token_count == 100
        with memory.aside():  # and another one can begin
            memory.read(tokens(1))
            with pytest.raises(InvalidArgument, match="takes 0 to 1 tokens here, got 2"):
                memory.forget(2)
        memory.forget(4)


@torch.inference_mode()
def test_an_empty_memory_is_empty_again():
    model = tiny()
    with attach(model, settings()) as memory:
        with memory.aside():
            memory.read(tokens(400))
        assert memory.token_count == 0
        assert memory.pool.page_count == 0
        told = step(model, memory, tokens(50))
    with attach(model, settings()) as memory:
        assert torch.equal(step(model, memory, tokens(50)), told)
