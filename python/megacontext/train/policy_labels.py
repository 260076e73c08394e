"""Counterfactual labels for a policy: what each next block takes off the answer, beside what is
shown already. Made once and kept, one line a question.

The greedy oracle walks through the blocks of a question's facts and the best by score; every step
is a label.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megacontext.eval.lens.command import kept_rows
from megacontext.eval.lens.gains import GainMeter
from megacontext.eval.lens.histories import StreamHistory
from megacontext.eval.lens.oracle import OracleStep, greedy_oracle
from megacontext.eval.lens.streams import StreamQuestion
from megacontext.lens import UntrainedLens
from megacontext.lens.candidates import find_candidates

RIVALS = 6
STEPS_MAX = 5
ANSWER_TOKENS = 24


def label_question(
    held: StreamHistory, meter: GainMeter, lens: UntrainedLens, asked: StreamQuestion
) -> list[dict[str, Any]]:
    """Steps of the greedy oracle, as plain values: shown, offered, gain_nats. Cost: a read of
    every block offered, a step."""
    question = held.question(asked, reads=True)
    found = find_candidates(held.history, question, lens.score(held.history, question), RIVALS)
    offered = set(zip(found.partitions.tolist(), found.blocks.tolist(), strict=True))
    offered |= {block for fact in held.grounds(asked) for each in fact for block in each}
    tokens = meter.asked(asked, ANSWER_TOKENS)
    steps = greedy_oracle(lambda sets: meter.nats_of_sets(tokens, sets), offered, STEPS_MAX)
    return [
        {"shown": s.shown, "offered": s.offered, "gain_nats": np.round(s.gain_nats, 4).tolist()}
        for s in steps
    ]


def label_path(work: Path, split: str, fingerprint: str) -> Path:
    """Labels of one split and base."""
    return work / "labels" / f"{split}-{fingerprint[:16]}-{RIVALS}x{STEPS_MAX}.jsonl"


def read_steps(rows: Sequence[dict[str, Any]]) -> list[OracleStep]:
    """What `label_question` gave, after a way through JSON."""
    return [
        OracleStep(
            tuple((int(p), int(b)) for p, b in row["shown"]),
            tuple((int(p), int(b)) for p, b in row["offered"]),
            np.array(row["gain_nats"]),
        )
        for row in rows
    ]


def kept_labels(
    held: StreamHistory, lens: UntrainedLens, asked: Sequence[StreamQuestion], work: Path,
    most: int | None = None,
) -> dict[str, list[OracleStep]]:  # fmt: skip
    """Steps by question, measured where they are not kept; at most `most` new ones."""
    meter = GainMeter(held)

    def make(question: StreamQuestion) -> dict[str, Any]:
        began = time.perf_counter()
        steps = label_question(held, meter, lens, question)
        seconds = time.perf_counter() - began
        print(f"[labels] {question.kind}: {len(steps)} steps, {seconds:.1f} s", file=sys.stderr)
        return {"question": question.question, "steps": steps}

    rows = kept_rows(
        label_path(work, held.stream.split, held.base.facts.fingerprint), asked, make, most
    )
    return {row["question"]: read_steps(row["steps"]) for row in rows}
