"""A paged memory beside other ways to bound a KV cache: one model, one run, time, memory, quality.

Each text is read once by every contestant; facts of the form "The secret number of Ostrava is
48213." were planted in it. Then 256 tokens that follow are scored, and each fact is asked for (the
NLL of its digits after the question, nothing generated). Every contestant but the full cache holds
or attends to `places` entries. Presses of `kvpress` choose once, at the end of the text, before any
question is known; "asked first" reads the text again for each question, with the question behind
it. A paged memory reads once, chooses for each question or step, and keeps the rest on the side.

    python -m benchmarks.runtime.bench_paged_peers --texts 3 --out FOLDER
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from benchmarks.harness import Bench, Case
from megacontext.demo.corpus import load_corpus
from megacontext.eval.statistics import bootstrap_interval
from megacontext.models import FrozenBase, load
from megacontext.models.kv_cache import CACHE_ARGUMENT
from megacontext.paged import PagedConfig, PagedMemory, attach
from megacontext.paged.stream import FocusLimits

TESTS = ["tests/python/paged/test_focus.py"]
PRESSES = ("KnormPress", "SnapKVPress", "ExpectedAttentionPress")
# The press that looks at the newest queries, which is what a question behind the text are.
ASKED_FIRST = "SnapKVPress"
# Who chooses what is in focus, which gists, and their rows a block.
PAGED = {
    "paged, first and newest": ("caller", "off", 1),
    "paged, kept rows": ("caller", "kept", 1),
    "paged, kept rows, 4 a block": ("caller", "kept", 4),
    "paged, question focus": ("question", "off", 1),
    "paged, question focus, kept rows": ("question", "kept", 1),
    "paged, step focus": ("step", "off", 1),
    "paged, step focus, kept rows": ("step", "kept", 1),
    "paged, step focus, learned gists": ("step", "learned", 1),
}
TOWNS = ("Ostrava", "Maribor", "Tampere", "Coimbra", "Aarhus", "Utrecht", "Graz", "Split")
SINKS = 4
STEP = 32
Score = dict[str, float]
# What a line of the table says, and how.
COLUMNS = {
    "read_s": "{:.1f}",
    "token_ms": "{:.1f}",
    "held_mib": "{:.1f}",
    "follows": "{:.3f}",
    "digits": "{:.2f}",
    "right": "{:.0%}",
}


class Text:
    """A history with facts in it, the text that follows, and questions."""

    def __init__(self, tokenizer: Any, body: str, seed: int, history: int, scored: int) -> None:
        rng = random.Random(seed)
        facts = [(town, f"{rng.randrange(10000, 99999)}") for town in rng.sample(TOWNS, 4)]
        plain = tokenizer.encode(body)[: history + scored]
        said = [tokenizer.encode(f"\nThe secret number of {t} is {n}.\n") for t, n in facts]
        room = history - sum(len(s) for s in said)
        cuts = sorted(rng.sample(range(history // 8, room - history // 4), len(said)))
        parts, last = [], 0
        for cut, fact in zip(cuts, said, strict=True):
            parts += [plain[last:cut], fact]
            last = cut
        ids = np.concatenate([*parts, plain[last : room + scored + 1]]).astype(np.int64)
        self.history = torch.from_numpy(ids[:history])[None]
        self.next = torch.from_numpy(ids[history:])[None]
        self.asked = []
        for town, number in facts:
            question = tokenizer.encode(f"\nThe secret number of {town} is").astype(np.int64)
            answer = tokenizer.encode(f" {number}").astype(np.int64)
            pair = (torch.from_numpy(question)[None], torch.from_numpy(answer)[None])
            self.asked.append((f"The secret number of {town}", *pair))


def nll(logits: Tensor, wanted: Tensor) -> float:
    return float(F.cross_entropy(logits.float(), wanted))


def pieces(ids: Tensor, size: int = STEP) -> Iterator[Tensor]:
    yield from ids.split(size, 1)


Ask = Callable[[Tensor], Tensor]


def scores(text: Text, fresh: Callable[[str], Ask]) -> Score:
    """NLL of what follows and of the digits. `fresh(question)` gives a reader that continues
    from the end of the history: tokens [1, T] in, logits [T, V] out."""
    ask = fresh("")
    found = [ask(part) for part in pieces(text.next[:, :-1])]

    def asked(question: str, lead: Tensor) -> Ask:
        ask = fresh(question)
        ask(lead)
        return ask

    return {"follows": nll(torch.cat(found), text.next[0, 1:])} | answers(text, asked)


def answers(text: Text, asked: Callable[[str, Tensor], Ask]) -> Score:
    """Mean NLL of the digits after each question, and the share of numbers that are all right.

    `asked(question, lead)` gives a reader that has read the words [1, T] that lead to the digits.
    """
    digits, right = [], []
    for question, lead, answer in text.asked:
        ask = asked(question, lead[:, :-1])
        logits = ask(torch.cat((lead[:, -1:], answer[:, :-1]), 1))
        digits.append(nll(logits, answer[0]))
        right.append(float((logits.argmax(-1) == answer[0]).all()))
    return {"digits": statistics.fmean(digits), "right": statistics.fmean(right)}


def cached(model: PreTrainedModel, cache: DynamicCache, seen: int) -> Callable[[str], Ask]:
    """Readers that each continue a copy of `cache`, whose tokens stood at 0 to `seen`."""

    def fresh(question: str) -> Ask:
        own, at = copy.deepcopy(cache), [seen]

        def ask(ids: Tensor) -> Tensor:
            positions = torch.arange(at[0], at[0] + ids.shape[1])[None]
            at[0] += ids.shape[1]
            return model(ids, position_ids=positions, **{CACHE_ARGUMENT: own}).logits[0]

        return ask

    return fresh


def cache_bytes(cache: DynamicCache) -> int:
    return sum(t.numel() * t.element_size() for x in cache.layers for t in (x.keys, x.values))


@contextmanager
def pressed(model: PreTrainedModel, press: Any) -> Iterator[None]:
    """A press at work. transformers renamed what its hook looks for: the cache's name, and the
    positions, which it reads only to see that this is the first pass."""
    original = press.forward_hook

    def hook(module: Any, given: Any, named: dict[str, Any], output: Any) -> Any:
        count = named["hidden_states"].shape[1]
        named = {**named, "past_key_values": named[CACHE_ARGUMENT]}
        named.setdefault("cache_position", torch.arange(count))
        return original(module, given, named, output)

    press.forward_hook = hook
    try:
        with press(model):
            yield
    finally:
        press.forward_hook = original


def windowed(full: DynamicCache, places: int) -> DynamicCache:
    """The first tokens and the newest of a cache, at their positions."""
    cache = copy.deepcopy(full)
    for layer in cache.layers:
        keep = [layer.keys[:, :, :SINKS], layer.keys[:, :, SINKS - places :]]
        layer.keys = torch.cat(keep, 2)
        keep = [layer.values[:, :, :SINKS], layer.values[:, :, SINKS - places :]]
        layer.values = torch.cat(keep, 2)
    return cache


def token_seconds(ask: Ask, count: int = 8) -> float:
    found = []
    for _ in range(count):
        began = time.perf_counter()
        ask(torch.tensor([[260]]))
        found.append(time.perf_counter() - began)
    return statistics.median(found)


@torch.inference_mode()
def by_caches(model: PreTrainedModel, text: Text, places: int) -> dict[str, Score]:
    """Full cache, window with sinks, and the presses that run here."""
    found: dict[str, Score] = {}

    def note(name: str, cache: DynamicCache, read: float) -> None:
        fresh = cached(model, cache, text.history.shape[1])
        found[name] = scores(text, fresh)
        found[name] |= {
            "read_s": read,
            "token_ms": 1e3 * token_seconds(fresh("")),
            "held_mib": cache_bytes(cache) / 2**20,
        }

    def read(press: Any = None) -> tuple[DynamicCache, float]:
        cache, began = DynamicCache(), time.perf_counter()
        call = {CACHE_ARGUMENT: cache, "use_cache": True, "logits_to_keep": 1}
        if press is None:
            model(text.history, **call)
        else:
            with pressed(model, press):
                model(text.history, **call)
        return cache, time.perf_counter() - began

    # kvpress hands its arguments on by place, which only the attention of transformers takes.
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    full, seconds = read()
    note("full cache", full, seconds)
    note("window with sinks", windowed(full, places), seconds)
    del full
    if importlib.util.find_spec("kvpress") is None:
        model.set_attn_implementation(before)
        return found
    import kvpress  # an optional peer, not installed with the tests

    for name in PRESSES:
        press = getattr(kvpress, name)(compression_ratio=1 - places / text.history.shape[1])
        try:
            cache, seconds = read(press)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            print(f"kvpress {name} does not run here: {type(error).__name__}: {error}")
            continue
        note(f"kvpress {name}", cache, seconds)
        if name == ASKED_FIRST:
            found[f"kvpress {name}, asked first"] = asked_first(model, text, press)
    model.set_attn_implementation(before)
    return found


def asked_first(model: PreTrainedModel, text: Text, press: Any) -> Score:
    """A press that knows the question, since it stands behind the text when the cache is chosen."""
    seconds, held = [], []

    def asked(_: str, lead: Tensor) -> Ask:
        cache, began = DynamicCache(), time.perf_counter()
        given = torch.cat((text.history, lead), 1)
        # Its window is the question, or what it looks for would be mostly what the text looks for.
        with pressed(model, replace(press, window_size=lead.shape[1])):
            model(given, **{CACHE_ARGUMENT: cache, "use_cache": True, "logits_to_keep": 1})
        seconds.append(time.perf_counter() - began)
        held.append(cache_bytes(cache) / 2**20)
        return cached(model, cache, given.shape[1])("")

    found = answers(text, asked)
    return found | {"read_s": statistics.fmean(seconds), "held_mib": statistics.fmean(held)}


class Asides(ExitStack):
    """A paged memory that is asked on the side: each reader begins from the same state."""

    def __init__(
        self, model: PreTrainedModel, memory: PagedMemory, wanted: dict[str, list[int]]
    ) -> None:
        super().__init__()
        self._model, self._memory, self._wanted = model, memory, wanted

    def fresh(self, question: str) -> Ask:
        """A reader for `question`; the one before ends."""
        self.close()
        self.enter_context(self._memory.aside())
        self._memory.focus(self._wanted.get(question, []))

        def ask(ids: Tensor) -> Tensor:
            self._memory.cache.begin_call()
            return self._model(ids, **{CACHE_ARGUMENT: self._memory.cache}).logits[0]

        return ask


def attended_bytes(memory: PagedMemory) -> int:
    """Of the pages, gist pages included, that the next token attends to."""
    return sum(map(len, memory.streams[0].focus(memory.config.shares, 1))) * memory.pool.page_bytes


@torch.inference_mode()
def chosen_by_question(base: FrozenBase, text: Text, config: PagedConfig) -> dict[str, list[int]]:
    """Blocks that the lens wants for each question, from the words in a store."""
    with (
        tempfile.TemporaryDirectory() as folder,
        attach(base.model, config, store=Path(folder) / "s", tokenizer=base.tokenizer) as memory,
    ):
        memory.read(text.history)
        return {question: memory.focus_on(question) for question, _, _ in text.asked}


@torch.inference_mode()
def by_paging(
    base: FrozenBase, text: Text, places: int, names: Sequence[str] = tuple(PAGED)
) -> dict[str, Score]:
    """Paged memories that read in steps with the same budget, by who chooses."""
    found, model = {}, base.model
    spared = places // 32 // 4  # a quarter of the places, where gists compete with wanted blocks
    limits = FocusLimits(places, recent_tokens=places // 4, gist_pages_min=spared)
    for name in names:
        focus, gists, rows = PAGED[name]
        config = PagedConfig(
            limits=limits,
            focus="step" if focus == "step" else "caller",
            gists=gists,  # type: ignore[arg-type]
            gist_rows=rows,  # type: ignore[arg-type]
            read_tokens=min(256, places // 2),
        )
        wanted = chosen_by_question(base, text, config) if focus == "question" else {}
        with attach(model, config) as memory:
            began = time.perf_counter()
            memory.read(text.history)
            seconds = time.perf_counter() - began
            with Asides(model, memory, wanted) as reader:
                found[name] = scores(text, reader.fresh)
                found[name] |= {
                    "read_s": seconds,
                    "token_ms": 1e3 * token_seconds(reader.fresh("")),
                    "held_mib": attended_bytes(memory) / 2**20,
                }
    return found


def bodies(texts: int, characters: int = 60_000) -> list[str]:
    """Real texts: essays and paragraphs of the demo's corpus, joined to be long enough."""
    documents = sorted(load_corpus().documents, key=lambda d: -len(d.text))
    size = len(documents[0].text)
    whole = "\n\n".join(d.text for d in documents)
    start = max(1, min(size, len(whole)) // max(texts, 1))
    return [whole[n * start : n * start + characters] for n in range(texts)]


def run(bench: Bench) -> None:
    base = load("smollm2")
    history, places = (320, 128) if bench.smoke else (4096, 1024)
    body = (
        Path(__file__).read_text() + (Path(__file__).parent / "bench_paged_decode.py").read_text()
    ) * 3
    text = Text(base.tokenizer, body, 1, history, 32)
    text.asked = text.asked[:1] if bench.smoke else text.asked
    names = list(PAGED)[4:6] if bench.smoke else list(PAGED)
    found = by_paging(base, text, places, names)
    for name, row in found.items():
        case = Case(name, {"history": history, "places": places})
        bench.record(case, "megacontext", [row["token_ms"] / 1e3])


def table(rows: list[dict[str, Score]]) -> list[str]:
    """Markdown, means over texts."""
    lines = [
        "| contestant | read, s | ms a token | MiB attended to | NLL of what follows "
        "| NLL of digits | numbers right |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in rows[0]:
        cells = [
            show.format(statistics.fmean(r[name][field] for r in rows)) if field in rows[0][name]
            else "-"
            for field, show in COLUMNS.items()
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def draw(rows: list[dict[str, Score]], path: Path) -> None:
    """A line a contestant, best at the top: digits, what follows, memory, time, with 95 % intervals
    over texts."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    from matplotlib.figure import Figure

    names = sorted(rows[0], key=lambda n: -statistics.fmean(r[n]["digits"] for r in rows))
    panels = {
        "digits": "NLL of planted digits",
        "follows": "NLL of what follows",
        "held_mib": "MiB attended to",
        "token_ms": "ms a token",
    }
    figure = Figure((11, 0.28 * len(names) + 1.0), layout="constrained")
    for axis, (field, label) in zip(
        figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True
    ):
        for line, name in enumerate(names):
            if field not in rows[0][name]:
                continue
            found = bootstrap_interval([r[name][field] for r in rows])
            colour = "tab:blue" if name.startswith("paged") else "tab:gray"
            axis.plot([found.low, found.high], [line, line], color=colour, linewidth=1)
            axis.plot(found.mean, line, "o", color=colour, markersize=5)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_xlabel(label)
        axis.grid(axis="x", alpha=0.3)
        if field == "held_mib":
            axis.set_xlim(left=0.0)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=3)
    parser.add_argument("--history", type=int, default=4096)
    parser.add_argument("--scored", type=int, default=256)
    parser.add_argument("--places", type=int, default=1024)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after the text then read")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    base = load("smollm2")
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Score]] = []
    began = time.monotonic()
    for number, body in enumerate(bodies(options.texts)):
        text = Text(base.tokenizer, body, number, options.history, options.scored)
        found = by_paging(base, text, options.places)
        rows.append({**by_caches(base.model, text, options.places), **found})
        result = {"history": options.history, "places": options.places, "texts": rows}
        (options.out / "peers.json").write_text(json.dumps(result, indent=1) + "\n")
        (options.out / "peers.md").write_text("\n".join(table(rows)) + "\n")
        draw(rows, options.out / "peers.png")
        print((options.out / "peers.md").read_text(), flush=True)
        if time.monotonic() - began > 60 * options.minutes:
            break


if __name__ == "__main__":
    main()
