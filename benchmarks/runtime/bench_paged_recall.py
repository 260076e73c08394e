"""Recall of a paged memory while its history grows: read once, asked again and again.

The history is retrieval examples of the long-context suite one behind another (nine tasks in turn),
each as long as the model's own window can well hold. When enough of them have been read, the memory
is asked about each, in asides that leave no trace; so the same questions come back at every length,
and all other examples are distractors. The plain model answers the same questions with the one
example that each is about in its window.

Reading is kept in the store and answers in `answers.jsonl`: an interrupted run goes on.

    python -m benchmarks.runtime.bench_paged_recall --store FOLDER --out FOLDER --parts 18,72,252
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Bench, Case
from benchmarks.runtime.bench_paged_decode import own_kib
from megacontext.config import K
from megacontext.eval.long.example import SOURCE_GAP, Example, ExampleRequest
from megacontext.eval.long.methods.paged import PagedMethod
from megacontext.eval.long.methods.reader import Reader
from megacontext.eval.long.methods.window import FullContext
from megacontext.eval.long.scorers import score
from megacontext.eval.long.tasks.needles import NEEDLE_TASKS
from megacontext.eval.statistics import bootstrap_interval, paired_comparison
from megacontext.models import TokenArray, load
from megacontext.paged import attach
from megacontext.paged.memory import PagedMemory, ReadProgress

TESTS = ["tests/python/paged/test_aside.py"]
OURS, PLAIN = "paged", "its own window"
SKIPPED = 5  # examples of a task in a row whose key stands in another part


def stems(example: Example) -> set[str]:
    """What leads to the answers in the text: the gold without its values."""
    gold = example.gold_texts
    for answer in example.answers:
        gold = [line.split(answer)[0] for line in gold]
    return set(gold)


def parts_of(count: int, tokens: int, reader: Reader) -> list[Example]:
    """`count` examples of `tokens` tokens, tasks in turn, such that no question's key stands in
    another's text."""
    parts: list[Example] = []
    keys: list[set[str]] = []
    for number in range(count):
        task = NEEDLE_TASKS[number % len(NEEDLE_TASKS)]
        for again in range(SKIPPED):
            index = number // len(NEEDLE_TASKS) * SKIPPED + again
            part = task.make(ExampleRequest(tokens, index, 0, reader.count_tokens))
            own = stems(part)
            met = any(stem in other.history for stem in own for other in parts)
            if not met and not any(k in part.history for theirs in keys for k in theirs):
                break
        else:
            raise RuntimeError(f"{SKIPPED} examples of {task.name} in a row share a key")
        parts.append(part)
        keys.append(own)
    return parts


@dataclass(frozen=True)
class Answer:
    """One question, asked when `read` parts had been read (0: in the model's own window)."""

    read: int
    part: int
    task: str
    score: float
    text: str
    ttft_s: float
    places: int
    gold_in_focus: float | None = None


@dataclass
class Recall:
    """A run: what is read, who answers, and where answers are kept."""

    reader: Reader
    parts: list[Example]
    out: Path

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.method = PagedMethod(self.reader, self.out)
        before, _ = self.reader.around(self.parts[0])
        pieces = [before, *(self.reader.encode(p.history + SOURCE_GAP) for p in self.parts)]
        self.tokens: TokenArray = np.concatenate(pieces)
        self.ends = np.cumsum([len(piece) for piece in pieces])
        self.answers = [Answer(**row) for row in lines(self.out / "answers.jsonl")]
        self._done = {(a.read, a.part) for a in self.answers}

    def ask_plain(self, asked: Sequence[int]) -> None:
        """The plain model's answers, each with one part in its window."""
        window = FullContext(self.reader)
        for number in asked:
            if (0, number) not in self._done:
                part = self.parts[number]
                self._keep(0, number, window.answer(part))

    def ask(self, memory: PagedMemory, read: int, asked: Sequence[int]) -> None:
        for number in asked:
            if (read, number) not in self._done:
                reply = self.method.ask(memory, self.parts[number])
                self._keep(read, number, reply, self._gold_in_focus(memory, number))

    def read(self, memory: PagedMemory, read: int, until: float) -> bool:
        """Reads on until `read` parts are there; False when time is up first."""
        end = int(self.ends[read])
        began, at = time.monotonic(), memory.token_count

        def told(progress: ReadProgress) -> None:
            seconds = time.monotonic() - began
            speed = f"{progress.done / max(seconds, 1e-9):.0f} a second"
            print(f"\r{at + progress.done:,} of {end:,} tokens, {speed}", end="", flush=True)
            if time.monotonic() > until:
                raise TimeoutError

        try:
            memory.read(row(self.tokens[:end]), progress=told, resume=True)
        except TimeoutError:
            return False
        finally:
            print()
            memory.commit()
        done = {"read": read, "tokens": end, "new": end - at, "own_mib": own_kib() / 1024}
        append(self.out / "reading.jsonl", done | {"seconds": time.monotonic() - began})
        return True

    def _keep(self, read: int, number: int, reply: Any, seen: float | None = None) -> None:
        part = self.parts[number]
        kept = Answer(read, number, part.task, score(part, reply.text), reply.text,
                      reply.ttft_s, reply.places, seen)  # fmt: skip
        self.answers.append(kept)
        append(self.out / "answers.jsonl", asdict(kept))
        print(f"  {read:4d} parts read, {part.task:16s} {kept.score:.2f}", flush=True)

    def _gold_in_focus(self, memory: PagedMemory, number: int) -> float:
        """Share of the blocks with gold that the question's choice brings into focus."""
        places = self.method.history_places
        with memory.aside():
            wanted = set(memory.focus_on(self.parts[number].question)[: places // K])
        gold = self.gold_blocks(number)
        return len(gold & wanted) / len(gold)

    def gold_blocks(self, number: int) -> set[int]:
        """The blocks that hold the gold of a part."""
        part, join = self.parts[number], self.reader.base.tokenizer.token_bytes.join
        first = int(self.ends[number])
        tokens = self.tokens[first : int(self.ends[number + 1])].tolist()
        ends = np.cumsum([len(join([token])) for token in tokens])
        gold: set[int] = set()
        for span in part.gold:
            at = part.source_starts[span.source]
            low, high = (len(part.history[: at + n].encode()) for n in (span.start, span.end))
            held = np.searchsorted(ends, (low, high - 1), side="right") + first
            gold |= set(range(int(held[0]) // K, int(held[1]) // K + 1))
        return gold


def row(tokens: TokenArray) -> torch.Tensor:
    return torch.from_numpy(tokens.astype(np.int64))[None]


def lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def append(path: Path, values: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(values) + "\n")


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` numbers: the first ones of each task, then evenly."""
    first = list(range(min(count, 2 * len(NEEDLE_TASKS), most)))
    rest = range(len(first), count)
    more = min(most - len(first), len(rest))
    return first + [rest[at * len(rest) // more] for at in range(more)] if more else first


def summary(run: Recall) -> dict[str, Any]:
    """Scores by length beside the same questions in the model's own window."""
    plain = {a.part: a.score for a in run.answers if a.read == 0}
    found: dict[str, Any] = {}
    for read in sorted({a.read for a in run.answers} - {0}):
        here = [a for a in run.answers if a.read == read and a.part in plain]
        ours = [a.score for a in here]
        theirs = [plain[a.part] for a in here]
        gain = paired_comparison(ours, theirs)
        found[f"{int(run.ends[read]):,} tokens"] = {
            OURS: str(bootstrap_interval(ours)),
            PLAIN: str(bootstrap_interval(theirs)),
            "difference": f"{gain.difference} p={gain.p_value:.4f}",
            "share kept": float(np.mean(ours) / max(np.mean(theirs), 1e-9)),
            "gold in focus": float(np.mean([a.gold_in_focus or 0.0 for a in here])),
            "median s to the first token": float(np.median([a.ttft_s for a in here])),
            "by task": {
                task: [
                    float(np.mean([a.score for a in here if a.task == task])),
                    float(np.mean([plain[a.part] for a in here if a.task == task])),
                    sum(a.task == task for a in here),
                ]
                for task in sorted({a.task for a in here})
            },
        }
    return found


def measure(
    run: Recall, store: Path, counts: Sequence[int], most: int, until: float
) -> dict[str, Any]:
    """Reads and asks at every count of parts, as far as time goes."""
    base: Any = run.reader.base
    config = run.method.config
    with attach(base.model, config, store=store, tokenizer=base.tokenizer) as memory:
        for read in counts:
            if int(run.ends[read]) < memory.token_count:
                continue  # an earlier run read on: what was not asked then cannot be asked now
            if not run.read(memory, read, until):
                break
            run.ask(memory, read, spread(read, most))
    run.ask_plain(sorted({a.part for a in run.answers if a.read}))
    return summary(run)


def run(bench: Bench) -> None:
    tokens, counts = (256, (1, 2)) if bench.smoke else (2048, (9, 18))
    reader = Reader(load("smollm2"), 1024 if bench.smoke else 2048)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        recall = Recall(reader, parts_of(counts[-1], tokens, reader), Path(folder) / "out")
        measure(recall, Path(folder) / "store", counts, 2 if bench.smoke else 18, float("inf"))
    case = Case("read and asked", {"tokens": int(recall.ends[-1])})
    bench.record(case, "megacontext", [time.perf_counter() - began])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--parts", default="18,72,252", help="ask after so many")
    parser.add_argument("--part-tokens", type=int, default=4096)
    parser.add_argument("--questions", type=int, default=108, help="most at one length")
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop reading after")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    counts = [int(n) for n in options.parts.split(",")]
    reader = Reader(load(options.model), options.budget)
    recall = Recall(reader, parts_of(counts[-1], options.part_tokens, reader), options.out)
    until = time.monotonic() + 60 * options.minutes
    found = measure(recall, options.store, counts, options.questions, until)
    (options.out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
