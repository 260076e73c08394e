"""Runs methods over tasks, keeps every answer, and takes up where it stopped.

One answer is one line of `cells/<task>-<length>/<method>.jsonl`, under a key made of everything
that could change it: example, method with its settings, budget, model, version of the harness. A
line that is there is not computed again; a torn last line is dropped. Answers do not depend on the
number of workers or on their order.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from megacontext.eval.long.example import Example, ExampleRequest, Task
from megacontext.eval.long.loaders import is_local, local_task
from megacontext.eval.long.manifest import write_manifest
from megacontext.eval.long.methods import METHODS, NotApplicable, Reader, Reply, method
from megacontext.eval.long.scorers import score
from megacontext.eval.long.tasks import task
from megacontext.models import load
from megacontext_ext.errors import InvalidArgument

# Raised when prompts, scorers or baselines change, so that old answers are not mixed with new ones.
HARNESS_VERSION = 1

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


def run(config: RunConfig, say: Callable[[str], None] | None = None) -> list[Row]:
    """All rows of `config`, those kept from before included, in the order of the configuration."""
    config.out.mkdir(parents=True, exist_ok=True)
    session = _Session(config)
    write_manifest(config.out, _described(config, session), session.identity)
    kept = read_rows(config.out)
    plan = [(*place, session.keys(*place)) for place in _places(config)]
    units = [
        Unit(name, length, index, missing)
        for name, length, index, keys in plan
        if (missing := tuple(m for m in config.methods if keys[m] not in kept))
    ]
    total, done = sum(len(unit.methods) for unit in units), 0
    for rows in _answers(config, session, units):
        for row in rows:
            _append(config.out, row)
            kept[row["key"]] = row
            done += 1
            if say is not None:
                say(f"{done}/{total} {_line(row)}")
    return [kept[keys[m]] for _, _, _, keys in plan for m in config.methods]


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

    def __init__(self, config: RunConfig) -> None:
        torch.set_num_threads(config.threads)
        base = load(config.model, dtype=config.dtype)  # type: ignore[arg-type]
        self.config = config
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
        frame = self.reader.frame
        parts = {
            "example": example.digest,
            "method": method_name,
            "settings": self.methods[method_name].about,
            "budget_places": self.config.budget_places,
            "frame": [frame.system, frame.lead, frame.ask],
            "model": self.identity,
            "harness": HARNESS_VERSION,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def keys(self, name: str, length: int, index: int) -> dict[str, str]:
        """The key of every method's answer to one example."""
        example = self.example(name, length, index)
        return {m: self.key(example, m) for m in self.config.methods}

    def rows(self, unit: Unit) -> list[Row]:
        example = self.example(unit.task, unit.length, unit.index)
        return [self._row(unit, example, name) for name in unit.methods]

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
    """Task, length (0: as it comes) and index of every example."""
    for length in config.lengths:
        for name in config.tasks:
            if not is_local(name):
                yield from ((name, length, index) for index in range(config.examples))
    for name in config.tasks:
        if is_local(name):
            count = min(config.examples, len(local_task(name).examples))
            yield from ((name, 0, index) for index in range(count))


def _answers(config: RunConfig, session: _Session, units: list[Unit]) -> Iterator[list[Row]]:
    if config.workers == 1 or len(units) < 2:
        yield from map(session.rows, units)
        return
    with ProcessPoolExecutor(
        config.workers, get_context("spawn"), initializer=_open_worker, initargs=(config,)
    ) as pool:
        yield from pool.map(_work, units)


_worker: _Session | None = None


def _open_worker(config: RunConfig) -> None:
    global _worker
    _worker = _Session(config)


def _work(unit: Unit) -> list[Row]:
    assert _worker is not None
    return _worker.rows(unit)


def _append(out: Path, row: Row) -> None:
    name = row["task"].rpartition("/")[2].replace(":", "_")
    folder = out / "cells" / f"{name}-{row['length']}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{row['method']}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")


def _described(config: RunConfig, session: _Session) -> dict[str, Any]:
    fields = asdict(config) | {"out": config.out.name, "harness_version": HARNESS_VERSION}
    return fields | {"methods": {name: m.about for name, m in session.methods.items()}}


def _line(row: Row) -> str:
    what = f"{row['score']:.2f}" if row["status"] == "answered" else row["reason"]
    return f"{row['task']} {row['length']} #{row['index']} {row['method']}: {what}"
