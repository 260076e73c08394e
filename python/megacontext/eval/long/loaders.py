"""Public benchmarks from a user's own files: LongBench, InfiniteBench, BABILong, LongMemEval,
LoCoMo.

A task is named `<benchmark>:<path>`, e.g. `longmemeval:~/data/longmemeval_s.json`. Nothing is
downloaded. Histories come as they are; no length applies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from megacontext.eval.long.example import Example, ExampleRequest, GoldSpan, Source
from megacontext_ext.errors import Corruption, NotFound


@dataclass(frozen=True)
class LocalTask:
    """Examples out of a file, in its order."""

    name: str
    category: str
    examples: tuple[Example, ...]

    def make(self, request: ExampleRequest) -> Example:
        return self.examples[request.index]


def is_local(name: str) -> bool:
    return name.partition(":")[0] in LOADERS and ":" in name


def local_file(name: str) -> Path:
    """The file of the task `<benchmark>:<path>`. Raises: NotFound."""
    benchmark, _, where = name.partition(":")
    if benchmark not in LOADERS:
        raise NotFound(f"[load] benchmark must be one of {', '.join(LOADERS)}, got {benchmark!r}")
    path = Path(where).expanduser()
    if not path.is_file():
        raise NotFound(f"[load] {benchmark} needs a local file, {path} is missing")
    return path


@lru_cache
def local_task(name: str) -> LocalTask:
    """The task `<benchmark>:<path>`.

    Raises: NotFound for a missing file or another benchmark, Corruption for a file that is not in
    its schema, with the row and what was expected there.
    """
    path = local_file(name)
    benchmark = name.partition(":")[0]
    read, category = LOADERS[benchmark]
    examples: list[Example] = []
    for number, row in enumerate(_rows(path)):
        try:
            for example in read(row, benchmark, path):
                examples.append(_numbered(example, name, len(examples)))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise Corruption(
                f"{path}:{number}: expected a row of {benchmark}, "
                f"got {type(error).__name__} {error}"
            ) from error
    if not examples:
        raise Corruption(f"{path}:0: expected rows of {benchmark}, got none")
    return LocalTask(name, category, tuple(examples))


def _rows(path: Path) -> Iterable[Any]:
    """Rows of a JSON array, of a JSON object of rows, or of JSON lines."""
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise Corruption(f"{path}:{error.pos}: expected JSON, got {error.msg}") from error
    if isinstance(whole, dict):
        return whole.get("data", [whole])
    return whole


def _numbered(example: Example, name: str, index: int) -> Example:
    return replace(example, task=name, index=index)


_LONGBENCH_SCORERS = {
    "narrativeqa": "f1", "qasper": "f1", "multifieldqa_en": "f1", "hotpotqa": "f1",
    "2wikimqa": "f1", "musique": "f1", "triviaqa": "f1", "gov_report": "rouge_l",
    "qmsum": "rouge_l", "multi_news": "rouge_l", "samsum": "rouge_l", "trec": "contains",
    "passage_retrieval_en": "contains", "passage_count": "exact_match",
    "lcc": "edit_similarity", "repobench-p": "edit_similarity",
}  # fmt: skip


def _longbench(row: Any, benchmark: str, path: Path) -> Iterable[Example]:
    """{input, context, answers: [..], dataset, all_classes, length, _id}."""
    dataset = row["dataset"].removesuffix("_e")
    summary = dataset in ("gov_report", "qmsum", "multi_news", "samsum")
    yield _one(
        Source(str(row.get("_id", "context")), row["context"]),
        row["input"] or "Summarise the text.",
        tuple(row["answers"]),
        _LONGBENCH_SCORERS.get(dataset, "f1"),
        256 if summary else 48,
    )


def _infinitebench(row: Any, benchmark: str, path: Path) -> Iterable[Example]:
    """{id, context, input, answer: str | [..], options: [..]}; the kind is the file's name."""
    answer = row["answer"]
    answers = tuple(map(str, answer)) if isinstance(answer, list) else (str(answer),)
    options = tuple(row.get("options") or ())
    question, scorer = row["input"], "contains"
    if options:
        letters = "ABCD"
        question += "".join(f"\n{x}. {o}" for x, o in zip(letters, options, strict=False))
        answers = tuple(letters[options.index(a)] if a in options else a for a in answers)
        scorer = "choice"
    elif "sum" in path.stem:
        scorer = "rouge_l"
    elif "longbook_qa" in path.stem:
        scorer = "f1"
    yield _one(Source(str(row.get("id", "context")), row["context"]), question, answers, scorer, 48)


def _babilong(row: Any, benchmark: str, path: Path) -> Iterable[Example]:
    """{input, question, target}."""
    answers = tuple(part.strip() for part in str(row["target"]).split(","))
    scorer = "recall" if len(answers) > 1 else "contains"
    yield _one(Source("story", row["input"]), row["question"], answers, scorer, 16)


def _longmemeval(row: Any, benchmark: str, path: Path) -> Iterable[Example]:
    """{question_id, question_type, question, answer, question_date, haystack_session_ids,
    haystack_dates, haystack_sessions: [[{role, content, has_answer?}]], answer_session_ids}."""
    sources: list[Source] = []
    gold: list[GoldSpan] = []
    sessions = zip(
        row["haystack_session_ids"], row["haystack_dates"], row["haystack_sessions"], strict=True
    )
    for name, date, turns in sessions:
        text = f"Session of {date}"
        for turn in turns:
            line = f"{turn['role'].capitalize()}: {turn['content']}"
            if turn.get("has_answer"):
                gold.append(GoldSpan(len(sources), len(text) + 1, len(text) + 1 + len(line)))
            text += "\n" + line
        sources.append(Source(f"{name} {date}", text))
    yield Example(
        task=benchmark,
        index=0,
        length_tokens=0,
        sources=tuple(sources),
        question=f"Today is {row['question_date']}. {row['question']}",
        answers=(str(row["answer"]),),
        scorer="f1" if len(str(row["answer"]).split()) > 8 else "contains",
        gold=tuple(gold),
        max_new_tokens=48,
    )


def _locomo(row: Any, benchmark: str, path: Path) -> Iterable[Example]:
    """{sample_id, conversation: {speaker_a, speaker_b, session_N_date_time, session_N: [{speaker,
    dia_id, text}]}, qa: [{question, answer, evidence: [dia_id], category}]}."""
    talk = row["conversation"]
    numbers = sorted(int(m[1]) for key in talk if (m := re.fullmatch(r"session_(\d+)", key)))
    sources: list[Source] = []
    spans: dict[str, GoldSpan] = {}
    for number in numbers:
        date = talk.get(f"session_{number}_date_time", "")
        text = f"Session of {date}"
        for turn in talk[f"session_{number}"]:
            line = f"{turn['speaker']}: {turn['text']}"
            start = len(text) + 1
            spans[turn["dia_id"]] = GoldSpan(len(sources), start, start + len(line))
            text += "\n" + line
        sources.append(Source(f"session {number} {date}", text))
    for asked in row["qa"]:
        if "answer" not in asked:  # adversarial questions have no answer to score
            continue
        gold = [spans[place] for place in asked.get("evidence", ()) if place in spans]
        yield Example(
            task=benchmark,
            index=0,
            length_tokens=0,
            sources=tuple(sources),
            question=asked["question"],
            answers=(str(asked["answer"]),),
            scorer="f1",
            gold=tuple(gold),
            max_new_tokens=32,
        )


def _one(
    source: Source, question: str, answers: tuple[str, ...], scorer: str, tokens: int
) -> Example:
    return Example(
        task="",
        index=0,
        length_tokens=0,
        sources=(source,),
        question=question,
        answers=answers,
        scorer=scorer,
        max_new_tokens=tokens,
    )


Loader = Callable[[Any, str, Path], Iterable[Example]]
LOADERS: dict[str, tuple[Loader, str]] = {
    "longbench": (_longbench, "question answering"),
    "infinitebench": (_infinitebench, "retrieval"),
    "babilong": (_babilong, "reasoning"),
    "longmemeval": (_longmemeval, "dialogue"),
    "locomo": (_locomo, "dialogue"),
}
