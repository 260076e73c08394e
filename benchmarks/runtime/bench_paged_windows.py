"""Several small windows over one memory, and focus in two stages, beside one window.

- windows: H readers of the same pages, each with the first block, its own newest tokens and its own
  share of the wanted blocks. Attended places are equal in total; the model runs once per window
  (a batch of H), and what the windows predict is merged. Shares go by turns of the ranking, or each
  window has the best blocks of its part of the timeline. Merged three ways: mean of the logits,
  which is the mean of the hidden states after the last norm since the head is linear; mixture of
  the probabilities (log-sum-exp); mixture weighted by exp(-entropy) of each window.
- staging: every R refocuses the best S of all blocks are staged; in between the step's queries
  choose among those and the blocks that came since. The history ends in the middle of R.

Each text (bench_paged_peers: facts planted in it) is read once, by one window with focus by the
step's queries; contestants go on from there. Windows that read each layer differently would cost
one forward, but a step's plan is shared by all layers: not measured.

    OMP_NUM_THREADS=1 python -m benchmarks.runtime.bench_paged_windows --texts 12 --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import Bench, Case
from benchmarks.runtime.bench_paged_peers import STEP, Ask, Text, bodies, nll, pieces, scores
from megacontext.config import K
from megacontext.eval.statistics import paired_comparison
from megacontext.models import FrozenBase, load
from megacontext.models.kv_cache import CACHE_ARGUMENT
from megacontext.paged import PagedConfig, PagedMemory, attach
from megacontext.paged.focus import StepFocus, order_blocks
from megacontext.paged.page_keys import PageKeys
from megacontext.paged.stream import FocusLimits, Stream

TESTS = ["tests/python/paged/test_focus.py"]
ONE = "one window"
FINE_TOKENS = 512  # the end of a history, read in the steps that are scored


@dataclass(frozen=True)
class Way:
    """A contestant. `share` multiplies the places, all windows together; `staged` is in shares of
    all blocks, or a number of blocks from 1 on, 0: no staging; `every` in refocuses."""

    windows: int = 1
    sharing: Literal["turns", "timeline"] = "turns"
    share: float = 1.0
    staged: float = 0.0
    every: int = 1


WAYS = {
    ONE: Way(),
    "two windows, by turns": Way(2),
    "two windows, by timeline": Way(2, "timeline"),
    "four windows, by turns": Way(4),
    "four windows, by timeline": Way(4, "timeline"),
    "one window, half the places": Way(share=0.5),
    "one window, a quarter of the places": Way(share=0.25),
    "one window, twice the places": Way(share=2.0),
    "two windows, twice the places": Way(2, share=2.0),
    "64 staged, every 4": Way(staged=64, every=4),
    "64 staged, every 16": Way(staged=64, every=16),
    "a quarter staged, every 4": Way(staged=0.25, every=4),
    "a quarter staged, every 16": Way(staged=0.25, every=16),
}


# Compared besides: what merging adds to one window, and what all the places give undivided.
PAIRS = (
    ("two windows, by timeline, by certainty", "one window, half the places"),
    ("four windows, by timeline, by certainty", "one window, a quarter of the places"),
    ("two windows, twice the places, by certainty", "one window, twice the places"),
)


class Heard(NamedTuple):
    """Queries [A, T, Hq, E] of one refocus, and how many blocks there were."""

    queries: Tensor
    blocks: int


class WindowsFocus(StepFocus):
    """Chooses once for all windows of a memory, which are its streams; with one window and no
    staging it is StepFocus. `past`: the newest refocuses of the first window."""

    def __init__(self, memory: PagedMemory, way: Way, keys: Tensor | None = None) -> None:
        # The bases measured here have no layers with a sliding window.
        kinds = ["full_attention"] * memory.layer_count
        super().__init__(memory._layout, memory.config, memory._rotary.layers, kinds)
        self.past: deque[Heard] = deque(maxlen=32)
        self._way = way
        self._room = int(way.share * memory.config.limits.budget_places) // K
        self._history = 0 if keys is None else len(keys)
        self._held: list[int] = []
        self._dealt: list[dict[int, float]] = []
        self._turn = 0  # refocuses since blocks were staged
        self._near: PageKeys | None = None
        self._near_ids = torch.zeros(0, dtype=torch.long)
        if keys is not None:
            for number in range(way.windows):
                self.take(number, keys)

    def begin(self, past: Sequence[Heard]) -> list[dict[int, float]]:
        """Starts again at the end of the history: what each window wants there."""
        for keys in self._keys.values():
            keys.block_count = self._history
        self.since, self._held, self._near = {}, [], None
        if self._way.staged:
            self._turn = self._way.every // 2
            then = past[-1 - self._turn]
            self._keys[0].block_count = then.blocks
            self._stage(self._score_all([then.queries]))
            self._keys[0].block_count = self._history
            self._add_near(self._keys[0].keys[then.blocks :], then.blocks)
        return self._deal([past[-1].queries] * self._way.windows)

    def choose(self, number: int, stream: Stream) -> dict[int, float] | None:
        if number == 0:
            asked = [self._heard.pop(n, []) for n in range(self._way.windows)]
            self._dealt = []
            if all(len(a) == len(self.layers) for a in asked) and self.block_count(0):
                self.since = dict.fromkeys(self.since, 0)
                queries = [torch.stack(a) for a in asked]
                self.past.append(Heard(queries[0], self.block_count(0)))
                self._dealt = self.refocus(queries)
        return self._dealt[number] if self._dealt else None

    def take(self, number: int, means: Tensor) -> None:
        first = self.block_count(number)
        super().take(number, means)
        if number == 0:
            self._add_near(means, first)

    def refocus(self, queries: list[Tensor]) -> list[dict[int, float]]:
        """Of each window, the blocks it wants, best first; `queries` [A, T, Hq, E] a window."""
        self._turn += 1
        if self._way.staged and (self._near is None or self._turn >= self._way.every):
            self._turn = 0
            self._stage(self._score_all(queries))
        return self._deal(queries)

    def _score_all(self, queries: list[Tensor]) -> Tensor:
        """[N] mean over windows; each has its own keys of the blocks after the history."""
        scale = self._shape[-1] ** -0.5
        return torch.stack([self._keys[n].score(q, scale) for n, q in enumerate(queries)]).mean(0)

    def _stage(self, found: Tensor) -> None:
        """Stages the best blocks by `found` [N]."""
        share = self._way.staged
        size = min(len(found), int(share if share >= 1 else share * len(found)))
        self._near_ids = torch.topk(found, size).indices.sort().values
        self._near = PageKeys(self._shape)
        by_layer = self._keys[0].keys.permute(1, 2, 0, 3)  # as they lie in memory
        self._near.add(by_layer.index_select(2, self._near_ids).permute(2, 0, 1, 3))

    def _add_near(self, means: Tensor, first: int) -> None:
        if self._near is not None and len(means):
            self._near.add(means)
            added = torch.arange(first, first + len(means))
            self._near_ids = torch.cat((self._near_ids, added))

    def _deal(self, queries: list[Tensor]) -> list[dict[int, float]]:
        windows, most = self._way.windows, 2 * self._room
        if self._near is None:
            dealt = self._shares(self._score_all(queries), most)
        else:
            found = self._near.score(queries[0], self._shape[-1] ** -0.5)
            held = torch.isin(self._near_ids, torch.tensor(self._held, dtype=torch.long))
            held_at = held.nonzero().flatten().tolist()
            best = order_blocks(found, held_at, most, self._config.hysteresis)
            blocks = self._near_ids[list(best)].tolist()
            dealt = [dict(zip(blocks, best.values(), strict=True))]
        self._held = [block for share in dealt for block in list(share)[: self._room // windows]]
        return dealt

    def _shares(self, found: Tensor, most: int) -> list[dict[int, float]]:
        """`most` blocks over all windows, by scores [N]."""
        windows, hysteresis = self._way.windows, self._config.hysteresis
        if self._way.sharing == "turns":
            ranked = list(order_blocks(found, self._held, most, hysteresis).items())
            return [dict(ranked[number::windows]) for number in range(windows)]
        part = torch.arange(len(found)) * windows // len(found)
        return [
            order_blocks(found * (part == number), self._held, most // windows, hysteresis)
            for number in range(windows)
        ]


class Reader:
    """A way's windows over a memory, made at the end of its history, where each begins; keeps what
    they predict."""

    def __init__(self, base: FrozenBase, memory: PagedMemory, read: WindowsFocus, way: Way) -> None:
        self.record: list[Tensor] = []  # [H, T, V] of each call
        self.seconds: list[float] = []  # of the thread, a call
        self._model, self._memory, self._read, self._way = base.model, memory, read, way
        self._end = memory.token_count
        self._past = list(read.past)
        self._focus = WindowsFocus(memory, way, read._keys[0].keys[: self._end // K])

    def open(self, streams: list[Stream], places: int) -> None:
        """Makes `streams` the windows, with `places` over all at share 1. They hold the same pages
        of the history and, each, their own of what follows: a window's keys depend on what it
        read."""
        own = int(self._way.share * places) // self._way.windows
        limits = FocusLimits(own, recent_tokens=own // 4)
        self._memory.config = replace(self._memory.config, limits=limits)
        self._memory.streams[:] = streams[: self._way.windows]
        self._memory._chooser = self._focus

    def fresh(self, question: str) -> Ask:
        memory, windows = self._memory, self._memory.streams
        for stream, wanted in zip(windows, self._focus.begin(self._past), strict=True):
            stream.token_count, stream.tokens = self._end, stream.tokens[: self._end]
            stream.stored_blocks = self._end // K
            stream.wanted = list(wanted)

        def ask(ids: Tensor) -> Tensor:
            memory.cache.begin_call()
            began = time.thread_time()
            given = ids.expand(len(windows), -1)
            logits = self._model(given, **{CACHE_ARGUMENT: memory.cache}).logits
            self.seconds.append(time.thread_time() - began)
            self.record.append(logits)
            return logits.mean(0)

        return ask


def mean_logits(logits: Tensor) -> Tensor:
    return logits.float().mean(0)


def mixture(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1).logsumexp(0) - math.log(len(logits))


def surest(logits: Tensor) -> Tensor:
    """Mixture with weights in proportion to exp(-entropy), window by window and token by token."""
    chances = logits.float().log_softmax(-1)
    entropy = -(chances.exp() * chances).sum(-1, keepdim=True)
    return (chances + (-entropy).log_softmax(0)).logsumexp(0)


MERGES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean of logits": mean_logits,
    "mixture": mixture,
    "by certainty": surest,
}
Row = dict[str, Any]


def details(text: Text, record: list[Tensor], merge: Callable[[Tensor], Tensor]) -> Row:
    """NLL of each 32 tokens that follow, of each question's digits, and which numbers are right.

    record: [H, T, V] of each call, in the order of `scores`: the pieces, then a lead and an answer
    for each question.
    """
    wanted = list(pieces(text.next[:, 1:]))
    follows = [nll(merge(x), w[0]) for x, w in zip(record[: len(wanted)], wanted, strict=True)]
    digits, right = [], []
    for x, (_, _, answer) in zip(record[len(wanted) + 1 :: 2], text.asked, strict=True):
        merged = merge(x)
        digits.append(nll(merged, answer[0]))
        right.append(float((merged.argmax(-1) == answer[0]).all()))
    return {"follows": follows, "digits": digits, "right": right}


@torch.inference_mode()
def measure(base: FrozenBase, text: Text, places: int, names: Sequence[str]) -> dict[str, Row]:
    """Rows by contestant and merge; the history is read once."""
    limits = FocusLimits(places, recent_tokens=places // 4)
    config = PagedConfig(limits, focus="step", gists="off", read_tokens=min(256, places // 2))
    found: dict[str, Row] = {}
    with attach(base.model, config) as memory:
        read = WindowsFocus(memory, Way())
        memory._chooser = read
        fine = min(FINE_TOKENS, text.history.shape[1] // 2)
        memory.read(text.history[:, :-fine])
        for part in pieces(text.history[:, -fine:]):
            memory.read(part)
        first = memory.streams[0]
        streams = [replace(first, pages=dict(first.pages), tokens=first.tokens[:]) for _ in "1234"]
        readers = {name: Reader(base, memory, read, WAYS[name]) for name in names}
        for name, reader in readers.items():
            reader.open(streams, places)
            scores(text, reader.fresh)
            merges = MERGES if WAYS[name].windows > 1 else {"": mean_logits}
            record, reader.record = reader.record, []
            spent = {"step_ms": token_ms(reader.seconds[: len(text.next[0]) // STEP], STEP)}
            ask, reader.seconds = reader.fresh(""), []
            for _ in range(8):
                ask(torch.tensor([[260]]))
            spent["token_ms"] = token_ms(reader.seconds, 1)
            for merge, call in merges.items():
                full = f"{name}, {merge}" if merge else name
                found[full] = details(text, record, call) | spent
            print(f"    {name}", flush=True)
    return found


def token_ms(seconds: list[float], tokens: int) -> float:
    return 1e3 * statistics.median(seconds) / tokens


@torch.inference_mode()
def choice_ms(base: FrozenBase, blocks: int, places: int, rounds: int = 33) -> dict[str, Row]:
    """Milliseconds of the thread for one choice by one token's queries, over `blocks` blocks of
    made-up keys: among the staged ones (`fine`), when staging (`whole`), and the mean over both."""
    generator = torch.Generator().manual_seed(1)
    ways = {name: way for name, way in WAYS.items() if name == ONE or way.staged}
    found = {}
    config = PagedConfig(FocusLimits(places, recent_tokens=places // 4), focus="step", gists="off")
    with attach(base.model, config) as memory:
        plain = WindowsFocus(memory, Way())
        keys = torch.randn(blocks, *plain._shape, generator=generator)
        layers, _, width = plain._shape
        heads = base.model.config.num_attention_heads
        for name, way in ways.items():
            focus = WindowsFocus(memory, way, keys)
            spent: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(rounds):
                queries = [torch.randn(layers, 1, heads, width, generator=generator)]
                began = time.thread_time()
                focus.refocus(queries)
                seconds = time.thread_time() - began
                spent[bool(way.staged) and focus._turn > 0].append(1e3 * seconds)
            whole = statistics.median(spent[False])
            fine = statistics.median(spent[True]) if spent[True] else whole
            mean = (whole + (way.every - 1) * fine) / way.every
            found[name] = {"fine": fine, "whole": whole, "mean": mean}
    return found


def run(bench: Bench) -> None:
    """One text; in the smoke size one question of it and few contestants."""
    base = load("smollm2")
    history, places = (512, 256) if bench.smoke else (4096, 512)
    body = Path(__file__).read_text() * 20
    text = Text(base.tokenizer, body, 1, history, STEP if bench.smoke else 256)
    text.asked = text.asked[:1] if bench.smoke else text.asked
    names = [ONE, "two windows, by timeline", "a quarter staged, every 4"]
    found = measure(base, text, places, names if bench.smoke else list(WAYS))
    for name, row in found.items():
        case = Case(name, {"history": history, "places": places})
        bench.record(case, "megacontext", [row["token_ms"] / 1e3])
    choice_ms(base, history // K, places, 5)


def joined(rows: list[dict[str, Row]], name: str, field: str) -> list[float]:
    return [score for row in rows for score in row[name][field]]


def against(rows: list[dict[str, Row]], name: str, field: str, other: str = ONE) -> str:
    """Difference to another over the same pieces or questions, and texts that got better."""
    if name == other:
        return "-"
    pair = paired_comparison(joined(rows, name, field), joined(rows, other, field)).difference
    better = sum(statistics.fmean(r[name][field]) < statistics.fmean(r[other][field]) for r in rows)
    return f"{pair.mean:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}], {better}/{len(rows)}"


def table(rows: list[dict[str, Row]]) -> list[str]:
    """Markdown: means, and differences with 95% intervals; below zero is better."""
    lines = [
        "| contestant | NLL of what follows | minus one window, texts better | NLL of digits "
        "| minus one window, texts better | numbers right | ms a token, by 32 | by 1 |",
        "|---|--:|---|--:|---|--:|--:|--:|",
    ]
    for name in rows[0]:
        cells = [
            f"{statistics.fmean(joined(rows, name, 'follows')):.4f}",
            against(rows, name, "follows"),
            f"{statistics.fmean(joined(rows, name, 'digits')):.3f}",
            against(rows, name, "digits"),
            f"{statistics.fmean(joined(rows, name, 'right')):.0%}",
            *(
                f"{statistics.median(r[name][f] for r in rows):.1f}"
                for f in ("step_ms", "token_ms")
            ),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def pair_table(rows: list[dict[str, Row]]) -> list[str]:
    """Markdown: merged windows beside one window of their size, or of all their places."""
    lines = ["| contestant | minus | what follows | digits |", "|---|---|---|---|"]
    for name, other in PAIRS:
        cells = [against(rows, name, field, other) for field in ("follows", "digits")]
        lines.append(f"| {name} | {other} | {' | '.join(cells)} |")
    return lines


def choice_table(choices: dict[str, dict[str, Row]]) -> list[str]:
    lines = [
        "| a choice, ms | tokens | in between | when staging | mean |",
        "|---|--:|--:|--:|--:|",
    ]
    for tokens, found in choices.items():
        for name, row in found.items():
            cells = " | ".join(f"{row[field]:.3f}" for field in ("fine", "whole", "mean"))
            lines.append(f"| {name} | {tokens} | {cells} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=12)
    parser.add_argument("--history", type=int, default=4096)
    parser.add_argument("--scored", type=int, default=512)
    parser.add_argument("--places", type=int, default=512)
    parser.add_argument("--keys", default="4096,262144", help="tokens whose keys a choice looks at")
    parser.add_argument("--minutes", type=float, default=25.0, help="stop after the text then read")
    parser.add_argument("--out", type=Path, required=True)
    torch.set_num_threads(1)
    options = parser.parse_args()
    base = load("smollm2")
    options.out.mkdir(parents=True, exist_ok=True)
    choices = {n: choice_ms(base, int(n) // K, options.places) for n in options.keys.split(",")}
    rows: list[dict[str, Row]] = []
    began = time.monotonic()
    for number, body in enumerate(bodies(options.texts, 15 * options.history)):
        text = Text(base.tokenizer, body, number, options.history, options.scored)
        rows.append(measure(base, text, options.places, list(WAYS)))
        result = {"history": options.history, "places": options.places, "scored": options.scored}
        result |= {"choices": choices, "texts": rows}
        (options.out / "windows.json").write_text(json.dumps(result) + "\n")
        lines = [*table(rows), "", *pair_table(rows), "", *choice_table(choices)]
        (options.out / "windows.md").write_text("\n".join(lines) + "\n")
        print("\n".join(lines), flush=True)
        if time.monotonic() - began > 60 * options.minutes:
            break


if __name__ == "__main__":
    main()
