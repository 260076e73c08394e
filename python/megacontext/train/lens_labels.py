"""Counterfactual labels for lenses, made once and kept.

    python -m megacontext.train.lens_labels --out labels --split train --groups 20

Questions about one document form a group and share a pool of windows: the gold window of each, and
what the untrained lens confuses with it. Every window is read once, every question behind every
window. Each group is one safetensors file with its provenance; groups that are there are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from megacontext.config import LensConfig
from megacontext.eval.lens.gains import GainMeter, Window
from megacontext.eval.lens.histories import StreamHistory, open_history
from megacontext.eval.lens.streams import SPLITS, StreamQuestion, make_stream
from megacontext.lens import UntrainedLens
from megacontext.lens.counterfactual import AskedTokens
from megacontext.models import load
from megacontext_ext.errors import InvalidArgument


@dataclass(frozen=True)
class LabelPlan:
    """What is labelled. Stored with every file: labels of another plan are not mixed in."""

    split: str
    seed: int = 0
    questions: int = 6
    continuations: int = 1
    # Windows that the untrained lens offers to each question, beside the gold one.
    rivals: int = 2
    spread_blocks: int = 2
    continuation_tokens: int = 16


@dataclass(frozen=True)
class GroupLabels:
    """Gains of one group: `gain_nats` float64 [windows, questions], NaN where a window overlaps
    what is to be predicted."""

    questions: list[StreamQuestion]
    windows: NDArray[np.int64]
    gain_nats: NDArray[np.float64]
    none_nats: NDArray[np.float64]


class Labeller:
    """Makes the labels of one stream. One thread."""

    def __init__(self, plan: LabelPlan, held: StreamHistory) -> None:
        self.plan, self.held = plan, held
        self.lens = UntrainedLens(
            LensConfig(spread_blocks=plan.spread_blocks, candidate_passages=plan.rivals + 2)
        )
        self.meter = GainMeter(held)

    def groups(self) -> dict[str, list[StreamQuestion]]:
        """Questions by document, in an order that depends on the seed alone."""
        found: dict[str, list[StreamQuestion]] = defaultdict(list)
        for question in self.held.stream.questions:
            found[question.group].append(question)
        chance = random.Random(f"labels|{self.plan.split}|{self.plan.seed}")
        names = sorted(found)
        chosen: dict[str, list[StreamQuestion]] = {}
        rounds = 1 + max(len(each) for each in found.values()) // self.plan.questions
        for each in found.values():
            chance.shuffle(each)
        for number in range(rounds):
            chance.shuffle(names)
            for name in names:
                start = number * self.plan.questions
                if part := found[name][start : start + self.plan.questions]:
                    chosen[f"{name}#{number}"] = part
        return chosen

    def label(self, questions: Sequence[StreamQuestion]) -> GroupLabels:
        """Gains of the group's pool. Cost: a read of each window, and of each pair's question."""
        asked = list(questions)
        windows = self._pool(asked)
        tokens = [self.meter.asked(question) for question in asked]
        for number in range(self.plan.continuations):
            made = self._continuation(windows, number)
            asked.append(made[0])
            tokens.append(made[1])
        nothing, gain = self.meter.measure(tokens, windows)
        for column, question in enumerate(asked):
            if question.kind == "continuation":
                own = self.held.gold_blocks(question)[0]
                for row, window in enumerate(windows):
                    if window[0] == own[0] and window[1] <= own[1] + 2 and own[1] < window[2]:
                        gain[row, column] = np.nan
        return GroupLabels(asked, np.array(windows, np.int64), gain, nothing)

    def _pool(self, asked: Sequence[StreamQuestion]) -> list[Window]:
        counts = self.held.history.block_counts()
        pool: list[Window] = []

        def offer(partition: int, centre: int) -> None:
            spread = self.plan.spread_blocks
            start = max(0, centre - spread)
            window = (partition, start, min(counts[partition], centre + spread + 1))
            if all(partition != p or abs(start - s) > 1 for p, s, _ in pool):
                pool.append(window)

        for question in asked:
            for partition, block in self.held.gold_blocks(question):
                offer(partition, block)
        for question in asked:
            scores = self.lens.score(self.held.history, self.held.question(question))
            for passage in scores.passages[: self.plan.rivals]:
                offer(passage.partition, (passage.start_block + passage.end_block - 1) // 2)
        return pool

    def _continuation(
        self, windows: Sequence[Window], number: int
    ) -> tuple[StreamQuestion, AskedTokens]:
        """Text that goes on near one of the windows: a question that asks nothing."""
        history, tokenizer = self.held.history, self.held.base.tokenizer
        partition, start, _ = windows[number % len(windows)]
        own = min(start + 6, max(history.block_counts()[partition] - 3, 0))
        tokens = history.tokens(partition, own, own + 2)
        lead, rest = tokens[:32], tokens[32 : 32 + self.plan.continuation_tokens]
        if len(rest) == 0:
            lead, rest = tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :]
        text = tokenizer.decode(lead)
        known = {each.id: each.source for each in self.held.store.partitions()}
        at = int(self.held.store.block_char_starts(partition, own, own + 1)[0])
        asked = StreamQuestion(
            "continuation", text, tokenizer.decode(rest), ((known[partition], at),), "continuation"
        )
        gap = tokenizer.encode("\n\n")
        return asked, AskedTokens(np.concatenate([gap, lead]), rest)


def write_labels(path: Path, labels: GroupLabels, provenance: dict[str, str]) -> None:
    """One file, whole or absent."""
    meta = {
        **provenance,
        "questions": json.dumps([asdict(question) for question in labels.questions]),
    }
    arrays = {
        "windows": labels.windows,
        "gain_nats": labels.gain_nats,
        "none_nats": labels.none_nats,
    }
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(save(arrays, metadata=meta))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_labels(path: Path, provenance: dict[str, str] | None = None) -> GroupLabels:
    """What `write_labels` wrote. Raises: InvalidArgument for labels of another base or plan."""
    with safe_open(path, framework="numpy") as file:
        meta = file.metadata()
        for name, value in (provenance or {}).items():
            if meta.get(name) != value:
                raise InvalidArgument(
                    f"{path}: {name}: expected {value}, got {meta.get(name)}; make labels elsewhere"
                )
        questions = [_question(each) for each in json.loads(meta["questions"])]
        return GroupLabels(
            questions,
            file.get_tensor("windows"),
            file.get_tensor("gain_nats"),
            file.get_tensor("none_nats"),
        )


def label_path(folder: Path, split: str, group: str) -> Path:
    digest = hashlib.sha256(group.encode()).hexdigest()[:12]
    return folder / split / f"{digest}.safetensors"


def make_labels(labeller: Labeller, folder: Path, group_count: int) -> list[Path]:
    """Labels of the first `group_count` groups; those that are there are checked, not made."""
    facts = labeller.held.base.facts
    provenance = {
        "base": facts.identity,
        "tokenizer": labeller.held.base.tokenizer.hash,
        "plan": json.dumps(asdict(labeller.plan), sort_keys=True),
    }
    paths = []
    for group, questions in list(labeller.groups().items())[:group_count]:
        path = label_path(folder, labeller.plan.split, group)
        path.parent.mkdir(parents=True, exist_ok=True)
        paths.append(path)
        if path.exists():
            read_labels(path, provenance)
            continue
        began = time.perf_counter()
        labels = labeller.label(questions)
        write_labels(path, labels, {**provenance, "group": group})
        print(
            f"{group}: {labels.gain_nats.size} labels, {time.perf_counter() - began:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    return paths


def _question(values: dict[str, Any]) -> StreamQuestion:
    gold = tuple((str(name), int(at)) for name, at in values["gold"])
    return StreamQuestion(**{**values, "gold": gold, "same": ()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=SPLITS, required=True)
    parser.add_argument("--groups", type=int, default=20)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()
    base = load(given.model, dtype=given.dtype)
    held = open_history(make_stream(given.split), given.out / "histories", base)
    make_labels(Labeller(LabelPlan(given.split), held), given.out, given.groups)


if __name__ == "__main__":
    main()
