"""Scores for exported tasks, called by other harnesses by name."""

from __future__ import annotations

from typing import Any

from megacontext.eval.long.example import Example, Source
from megacontext.eval.long.scorers import score


def score_of(document: dict[str, Any], prediction: str) -> float:
    """0 to 1: `prediction` for one line of an exported task, by the task's own scorer."""
    example = Example(
        task=document["task"],
        index=int(document["index"]),
        length_tokens=int(document["length_tokens"]),
        sources=(Source("history", document["history"]),),
        question=document["question"],
        answers=tuple(document["answers"]),
        scorer=document["scorer"],
        options=tuple(document["options"]),
    )
    return score(example, prediction)


def process_results(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """What lm-evaluation-harness calls for one document: its metric `score`."""
    return {"score": score_of(document, results[0])}
