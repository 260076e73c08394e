"""Runs methods over tasks, keeps every answer, and takes up where it stopped.

One answer is one line of `cells/<task>-<length>/<method>.jsonl`, under a key made of everything
that could change it: example, method with its settings, budget, model, version of the harness. A
line that is there is not computed again; a torn last line is dropped. Answers do not depend on the
number of workers or on their order.

The first example of every task and length is answered before the second of any, so that a run
which is cut off by its minutes holds as many examples of each as it can.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from megacontext.eval.long.example import Example, ExampleRequest, Task
from megacontext.eval.long.loaders import is_local, local_task
from megacontext.eval.long.manifest import write_manifest
from megacontext.eval.long.methods import (
    METHODS,
    NotApplicable,
    Reader,
    Reply,
    method,
    why_not_here,
)
from megacontext.eval.long.recipe import recipe
from megacontext.eval.long.scorers import score
from megacontext.eval.long.tasks import task
from megacontext.models import load
from megacontext_ext.errors import InvalidArgument, Unsupported

# Raised when prompts, scorers or baselines change, so that old answers are not mixed with new ones.
HARNESS_VERSION = 2

Row = dict[str, Any]


@dataclass(frozen=True)
class RunConfig:
    """What is run. Every field but `out`, `workers` and `threads` is part of the answers' keys."""

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    lengths: tuple[int, ...]
    out: Path
    examples: int = 8
    seed: int = 0
    budget_places: int = 2048
    model: str = "smollm2"
    dtype: str = "auto"
    workers: int = 1
    # Threads of torch in each worker.
    threads: int = 1

    def __post_init__(self) -> None:
        for name in self.tasks:
            _ = local_task(name) if is_local(name) else task(name)
        for name in self.methods:
            if name not in METHODS:
                raise InvalidArgument(
                    f"[run] methods must be among {', '.join(METHODS)}, got {name!r}"
                )
            # As an answer "not applicable" would be kept for ever.
            if reason := why_not_here(name):
                raise Unsupported(f"[run] {name} cannot run here: {reason}")
        if not self.tasks or not self.methods or min(self.examples, self.workers) < 1:
            raise InvalidArgument(
                f"[run] must have tasks, methods, examples and workers, got {len(self.tasks)}, "
                f"{len(self.methods)}, {self.examples}, {self.workers}"
            )


@dataclass(frozen=True, slots=True)
class Unit:
    """One example and the methods that have not answered it yet."""

    task: str
    length: int
    index: int
    methods: tuple[str, ...]


# Task, length (0: as it comes), index, method.
Place = tuple[str, int, int, str]


def run(
    config: RunConfig,
    say: Callable[[str], None] | None = None,
    *,
    minutes: float | None = None,
    only: Collection[Place] | None = None,
) -> list[Row]:
    """All rows of `config`, those kept from before included, in the order of the configuration.

    After `minutes` no answer is begun any more, and what is missing then is left out: the next run
    goes on. With `only`, no other answers are computed.
    """
    until = None if minutes is None else time.time() + 60.0 * minutes
    config.out.mkdir(parents=True, exist_ok=True)
    session = _Session(config, until)
    write_manifest(config.out, _described(config, session), session.identity)
    kept = read_rows(config.out)
    session.kept = kept
    # Which answers are there is known from how their examples are made, without making them.
    made = {row["recipe"]: row for row in kept.values() if "recipe" in row}
    plan = [(name, n, i, session.recipes(name, n, i)) for name, n, i in _places(config)]
    units = []
    for name, length, index, recipes in plan:
        missing = tuple(
            m
            for m in config.methods
            if recipes[m] not in made and (only is None or (name, length, index, m) in only)
        )
        if missing:
            units.append(Unit(name, length, index, missing))
    progress = _Progress(sum(len(unit.methods) for unit in units))
    for rows in _answers(config, session, units):
        for row in rows:
            made[row["recipe"]] = row
            if row["key"] not in kept:
                _append(config.out, row)
                progress.tell(row, say)
            else:
                progress.total -= 1
    plan.sort(key=lambda part: _order(config, part[0], part[1], part[2]))
    wanted = [recipes[m] for *_, recipes in plan for m in config.methods]
    return [made[key] for key in wanted if key in made]


def answer_count(config: RunConfig) -> int:
    """How many answers `config` asks for."""
    return sum(1 for _ in _places(config)) * len(config.methods)


@dataclass
class _Progress:
    """How many answers are done of how many, and about how long the rest takes."""

    total: int
    done: int = 0

    def __post_init__(self) -> None:
        self._began = time.perf_counter()

    def tell(self, row: Row, say: Callable[[str], None] | None) -> None:
        self.done += 1
        took = time.perf_counter() - self._began
        left = took / self.done * (self.total - self.done) / 60.0
        if say is not None:
            say(f"{self.done}/{self.total} {_line(row)}; about {left:,.0f} min left")


def read_rows(out: Path) -> dict[str, Row]:
    """Every kept answer by its key. A torn last line of an interrupted run is cut off."""
    rows: dict[str, Row] = {}
    for path in sorted(out.glob("cells/*/*.jsonl")):
        whole = path.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            path.write_bytes(whole[:end])
        for line in whole[:end].splitlines():
            row = json.loads(line)
            rows[row["key"]] = row
    return rows


class _Session:
    """The loaded base with all methods: one in each worker process."""

    def __init__(self, config: RunConfig, until: float | None) -> None:
        torch.set_num_threads(config.threads)
        base = load(config.model, dtype=config.dtype)  # type: ignore[arg-type]
        self.config = config
        # Seconds of `time.time`, which all processes share; None: no end.
        self.until = until
        self.kept: dict[str, Row] = {}
        self.reader = Reader(base, config.budget_places)
        self.identity = f"{base.facts.identity}-{base.facts.dtype}".replace("torch.", "")
        self._folder = tempfile.TemporaryDirectory(prefix="megacontext-eval-")
        workspace = Path(self._folder.name)
        self.methods = {name: method(name, self.reader, workspace) for name in config.methods}

    def example(self, name: str, length: int, index: int) -> Example:
        request = ExampleRequest(
            max(length, 256), index, self.config.seed, count_tokens=self.reader.count_tokens
        )
        return _task(name).make(request)

    def key(self, example: Example, method_name: str) -> str:
        return self._key(method_name, {"example": example.digest})

    def recipes(self, name: str, length: int, index: int) -> dict[str, str]:
        """By method, the key of its answer as far as it is known before the example is made."""
        made = recipe(name, self.reader.base.tokenizer.hash)
        place = {"recipe": made, "length": length, "index": index, "seed": self.config.seed}
        return {m: self._key(m, place) for m in self.config.methods}

    def _key(self, method_name: str, example: dict[str, Any]) -> str:
        frame = self.reader.frame
        parts = {
            **example,
            "method": method_name,
            "settings": self.methods[method_name].about,
            "budget_places": self.config.budget_places,
            "frame": [frame.system, frame.lead, frame.ask],
            "model": self.identity,
            "harness": HARNESS_VERSION,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def rows(self, unit: Unit) -> Iterator[Row]:
        """Answers to `unit`, kept ones as they are, until time is up."""
        if self._is_late():
            return
        example = self.example(unit.task, unit.length, unit.index)
        recipes = self.recipes(unit.task, unit.length, unit.index)
        for name in unit.methods:
            if self._is_late():
                return
            known = self.kept.get(self.key(example, name))
            yield (known or self._row(unit, example, name)) | {"recipe": recipes[name]}

    def _is_late(self) -> bool:
        return self.until is not None and time.time() >= self.until

    def _row(self, unit: Unit, example: Example, name: str) -> Row:
        row: Row = {
            "key": self.key(example, name),
            "task": unit.task,
            "category": _task(unit.task).category,
            "length": unit.length,
            "index": unit.index,
            "depth": example.depth,
            "method": name,
            "example": example.digest[:16],
            "question": example.question,
            "expected": list(example.answers),
        }
        try:
            reply = self.methods[name].answer(example)
        except NotApplicable as reason:
            return row | {"status": "not applicable", "reason": str(reason)}
        fields = asdict(replace(reply, shown=None)) | {"gold_shown": gold_shown(example, reply)}
        fields.pop("shown")
        return row | {"status": "answered", "score": score(example, reply.text)} | fields


def gold_shown(example: Example, reply: Reply) -> float | None:
    """Share of the gold characters that the model had in front of it; None if unknown."""
    if reply.shown is None or not example.gold:
        return None
    starts = example.source_starts
    seen = total = 0
    for span in example.gold:
        low, high = starts[span.source] + span.start, starts[span.source] + span.end
        total += high - low
        seen += sum(max(0, min(high, b) - max(low, a)) for a, b in reply.shown)
    return min(1.0, seen / total)


def _task(name: str) -> Task:
    return local_task(name) if is_local(name) else task(name)


def _places(config: RunConfig) -> Iterator[tuple[str, int, int]]:
    """Task, length (0: as it comes) and index of every example, in the order of answering."""
    counts = {
        name: min(config.examples, len(local_task(name).examples))
        for name in config.tasks
        if is_local(name)
    }
    for index in range(config.examples):
        for length in config.lengths:
            yield from ((name, length, index) for name in config.tasks if name not in counts)
        yield from ((name, 0, index) for name in counts if index < counts[name])


def _order(config: RunConfig, name: str, length: int, index: int) -> tuple[int, int, int]:
    """Where an example stands in the order of the configuration; those with a length first."""
    place = config.lengths.index(length) if length else len(config.lengths)
    return place, config.tasks.index(name), index


def _answers(config: RunConfig, session: _Session, units: list[Unit]) -> Iterator[Iterable[Row]]:
    if config.workers == 1 or len(units) < 2:
        yield from map(session.rows, units)
        return
    with ProcessPoolExecutor(
        config.workers,
        get_context("spawn"),
        initializer=_open_worker,
        initargs=(config, session.until, session.kept),
    ) as pool:
        yield from pool.map(_work, units)


_worker: _Session | None = None


def _open_worker(config: RunConfig, until: float | None, kept: dict[str, Row]) -> None:
    global _worker
    _worker = _Session(config, until)
    _worker.kept = kept


def _work(unit: Unit) -> list[Row]:
    assert _worker is not None
    return list(_worker.rows(unit))


def _append(out: Path, row: Row) -> None:
    name = row["task"].rpartition("/")[2].replace(":", "_")
    folder = out / "cells" / f"{name}-{row['length']}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{row['method']}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")


def _described(config: RunConfig, session: _Session) -> dict[str, Any]:
    fields = asdict(config) | {"out": config.out.name, "harness_version": HARNESS_VERSION}
    # What "auto" came to: another machine may choose otherwise, and gives other answers then.
    fields["dtype"] = str(session.reader.base.facts.dtype).removeprefix("torch.")
    return fields | {"methods": {name: m.about for name, m in session.methods.items()}}


def _line(row: Row) -> str:
    where = f"{row['task']} {row['length']} #{row['index']} {row['method']}"
    if row["status"] != "answered":
        return f"{where}: {row['reason']}"
    return f"{where}: {row['score']:.2f} ({row['ingest_s'] + row['total_s']:.1f} s)"
