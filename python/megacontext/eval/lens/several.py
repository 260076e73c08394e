"""Questions that rest on several blocks, planted in encyclopaedia paragraphs beside a split's
stream: where an allocator that takes every block as if it were alone should be weakest.

    list   several values of one name, each in a place of its own: all are needed
    echo   one fact three times in other words, and one that shares few words with the question:
           the echoes add nothing to each other
    chain  the second fact shares with the question what all its rivals do; the first one names it

Wordings of the test split stand in no other.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from megacontext.eval.lens.streams import (
    TENTHS,
    Split,
    Stream,
    StreamQuestion,
    make_stream,
)
from megacontext.eval.long import vocabulary
from megacontext.eval.long.filler import filler

SEVERAL_KINDS = ("list", "echo", "chain")
_PARAGRAPHS_PER_SOURCE = 150
_LIST_VALUES = 3
# {x} is the subject, {v} and {w} values.
_LISTS = {
    "seen": (
        ("A sailor of the ship {x} is {v}.", "Who are the sailors of the ship {x}?"),
        ("One key to the gate of {x} belongs to {v}.", "To whom do the keys to {x} belong?"),
        ("Among the teachers at the school of {x} is {v}.", "Who teaches at the school of {x}?"),
        ("The play {x} has a part for {v}.", "For whom does the play {x} have parts?"),
    ),
    "test": (
        ("The mill {x} is owned in part by {v}.", "Who are the owners of the mill {x}?"),
        ("One winner of the race of {x} was {v}.", "Who were the winners of the race of {x}?"),
    ),
}
_ECHOES = {
    "seen": (
        (("The captain of the ship {x} is {v}.", "The ship {x} sails under its captain {v}.",
          "For years {v} has been captain of the ship {x}."),
         "In the hold of {x} lie crates from {w}.",
         "Who is the captain of the ship {x}, and where do its crates come from?"),
        (("The head of the school {x} is {v}.", "The school {x} chose {v} as its head.",
          "Everybody knows {v}, the head of the school {x}."),
         "Pupils of {x} spend their summers in {w}.",
         "Who is the head of the school {x}, and in which city are its pupils in summer?"),
        (("The author of the play {x} is {v}.", "The play {x} was written by its author {v}.",
          "Critics praised {v}, author of the play {x}."),
         "{x} was first seen by an audience in {w}.",
         "Who is the author of the play {x}, and in which city was it shown first?"),
    ),
    "test": (
        (("The engineer of the mill {x} is {v}.", "The mill {x} employs an engineer, {v}.",
          "Since spring {v} has been engineer of the mill {x}."),
         "Flour from {x} is sold in {w}.",
         "Who is the engineer of the mill {x}, and where is its flour sold?"),
        (("The keeper of the tower {x} is {v}.", "The tower {x} has a keeper called {v}.",
          "A medal went to {v}, keeper of the tower {x}."),
         "The bricks of {x} were shipped from {w}.",
         "Who is the keeper of the tower {x}, and from which city came its bricks?"),
    ),
}  # fmt: skip
_CHAINS = {
    "seen": (
        ("The captain of the ship {x} is {v}.", "The city in which {v} was born is {w}.",
         "In which city was the captain of the ship {x} born?"),
        ("The doctor of the village {x} is {v}.", "A house that belongs to {v} stands in {w}.",
         "Where does the house of the doctor of the village {x} stand?"),
        ("The bridge {x} was designed by {v}.", "The university that {v} went to is in {w}.",
         "Where is the university of the designer of the bridge {x}?"),
        ("The band {x} is led by {v}.", "The guitar of {v} was made in {w}.",
         "Where was the guitar of the leader of the band {x} made?"),
    ),
    "test": (
        ("The owner of the mill {x} is {v}.", "The company of {v} has its seat in {w}.",
         "Where does the company of the owner of the mill {x} have its seat?"),
        ("The garden {x} was laid out by {v}.", "The last letter of {v} was sent from {w}.",
         "From where was the last letter of the planner of the garden {x} sent?"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Asked:
    """A question before its facts have places: `facts` are to be planted, and `gold[i]` are the
    numbers of those that say the same thing."""

    kind: str
    question: str
    answer: str
    facts: tuple[str, ...]
    gold: tuple[tuple[int, ...], ...]


def make_several(
    split: Split, *, seed: int = 0, planted: int = 40, paragraphs: int = 1500
) -> Stream:
    """The stream of `make_stream`, with `planted` questions of each of SEVERAL_KINDS behind it.

    Raises: as `make_stream`.
    """
    stream = make_stream(split, seed=seed)
    chance = random.Random(f"several|{split}|{seed}")
    asked = _asked(chance, "test" if split == "test" else "seen", planted)
    units = filler("wikipedia").units
    low, high = (len(units) * tenth // 10 for tenth in TENTHS[split])
    first = chance.randrange(low, max(low, high - paragraphs) + 1)
    facts = [
        (owner, number) for owner, each in enumerate(asked) for number in range(len(each.facts))
    ]
    chance.shuffle(facts)
    at = dict(zip(sorted(chance.sample(range(paragraphs), len(facts))), facts, strict=True))
    documents, places = dict(stream.documents), {}
    for number, unit in enumerate(units[first : first + paragraphs]):
        name = f"several/{number // _PARAGRAPHS_PER_SOURCE}"
        text = documents.get(name, "")
        if number in at:
            owner, fact = at[number]
            places[owner, fact] = (name, len(text))
            text += asked[owner].facts[fact] + " "
        documents[name] = text + unit + "\n\n"
    questions = [_placed(each, owner, places) for owner, each in enumerate(asked)]
    return replace(stream, documents=documents, questions=[*stream.questions, *questions])


def _placed(
    asked: _Asked, owner: int, places: dict[tuple[int, int], tuple[str, int]]
) -> StreamQuestion:
    by_fact = [tuple(places[owner, number] for number in same) for same in asked.gold]
    return StreamQuestion(
        asked.kind, asked.question, asked.answer, tuple(each[0] for each in by_fact),
        by_fact[0][0][0], tuple(each[1:] for each in by_fact),
    )  # fmt: skip


def _asked(chance: random.Random, words: str, count: int) -> list[_Asked]:
    subjects = vocabulary.distinct(
        chance, lambda draw: vocabulary.invented_word(draw, 4).capitalize(), 3 * count
    )
    found = []
    for number, subject in enumerate(subjects):
        of_kind = number // 3
        make = (_list, _echo, _chain)[number % 3]
        found.append(make(chance, words, of_kind, subject))
    return found


def _list(chance: random.Random, words: str, number: int, subject: str) -> _Asked:
    fact, question = _LISTS[words][number % len(_LISTS[words])]
    values = vocabulary.distinct(chance, _person, _LIST_VALUES)
    facts = tuple(fact.format(x=subject, v=value) for value in values)
    gold = tuple((place,) for place in range(_LIST_VALUES))
    return _Asked("list", question.format(x=subject), ", ".join(values), facts, gold)


def _echo(chance: random.Random, words: str, number: int, subject: str) -> _Asked:
    echoes, other, question = _ECHOES[words][number % len(_ECHOES[words])]
    value, city = _person(chance), chance.choice(vocabulary.CITIES)
    facts = [echo.format(x=subject, v=value) for echo in echoes]
    facts.append(other.format(x=subject, w=city))
    gold = ((0, 1, 2), (3,))
    return _Asked("echo", question.format(x=subject), f"{value}, {city}", tuple(facts), gold)


def _chain(chance: random.Random, words: str, number: int, subject: str) -> _Asked:
    first, second, question = _CHAINS[words][number % len(_CHAINS[words])]
    # An invented last name, so that the second fact can be about nobody else.
    value = f"{_person(chance)} {vocabulary.invented_word(chance).capitalize()}"
    city = chance.choice(vocabulary.CITIES)
    facts = (first.format(x=subject, v=value), second.format(v=value, w=city))
    return _Asked("chain", question.format(x=subject), city, facts, ((0,), (1,)))


def _person(chance: random.Random) -> str:
    return f"{chance.choice(vocabulary.PEOPLE)} {chance.choice(vocabulary.SURNAMES)}"
