"""Reasoning over a story in long noise: people walk, carry things and leave them.

The story is simulated, so the answer follows from its order and from nothing else; later facts undo
earlier ones. Source: bAbI tasks 1 to 3 and 7 (Weston et al. 2015), told in noise as BABILong does
(Kuratov et al. 2024).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from megacontext.eval.long import vocabulary
from megacontext.eval.long.example import Example, ExampleRequest
from megacontext.eval.long.filler import filler
from megacontext.eval.long.haystack import place, scattered_depths

_COUNTS = ("none", "one", "two", "three")
FactKind = Literal["person", "thing", "thing_before", "count"]


@dataclass
class _Story:
    """A small world. Each line of `lines` is one fact; facts are referred to by their number."""

    rng: random.Random
    people: list[str]
    things: list[str]
    lines: list[str] = field(default_factory=list)
    where: dict[str, str] = field(default_factory=dict)
    holder: dict[str, str] = field(default_factory=dict)
    # Places a thing has been in, each with the facts that prove it.
    trail: dict[str, list[tuple[str, tuple[int, ...]]]] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)
    touched: dict[str, list[int]] = field(default_factory=dict)

    def tell(self, steps: int) -> None:
        for _ in range(steps):
            action = self.rng.choices(("move", "take", "drop"), (5, 3, 1))[0]
            getattr(self, f"_{action}")()

    def _move(self) -> None:
        person = self.rng.choice(self.people)
        room = self.rng.choice([p for p in vocabulary.PLACES if p != self.where.get(person)])
        verb = self.rng.choice(("went to", "walked to", "moved to", "travelled to"))
        self.where[person] = room
        self.moved[person] = len(self.lines)
        self.lines.append(f"{person} {verb} the {room}.")
        for thing, holder in self.holder.items():
            if holder == person:
                self._been(thing, room)

    def _take(self) -> None:
        free = [t for t in self.things if t not in self.holder]
        able = [p for p in self.people if p in self.where]
        if not free or not able:
            return
        person, thing = self.rng.choice(able), self.rng.choice(free)
        if self.trail.get(thing) and self.trail[thing][-1][0] != self.where[person]:
            return  # a thing is taken where it lies
        self.holder[thing] = person
        self.taken[thing] = len(self.lines)
        self.touched.setdefault(person, []).append(len(self.lines))
        self.lines.append(f"{person} picked up the {thing}.")
        self._been(thing, self.where[person])

    def _drop(self) -> None:
        if not self.holder:
            return
        thing = self.rng.choice(list(self.holder))
        person = self.holder.pop(thing)
        self.touched.setdefault(person, []).append(len(self.lines))
        self.lines.append(f"{person} put down the {thing}.")

    def _been(self, thing: str, room: str) -> None:
        trail = self.trail.setdefault(thing, [])
        if not trail or trail[-1][0] != room:
            trail.append((room, (self.taken[thing], self.moved[self.holder[thing]])))


@dataclass(frozen=True)
class FactsTask:
    """One question about the end of a story of `steps` facts."""

    name: str
    kind: FactKind
    steps: int = 14
    haystack: str = "essays"
    category: str = "reasoning"

    def make(self, request: ExampleRequest) -> Example:
        rng = request.rng(self.name)
        while True:
            people = rng.sample(vocabulary.PEOPLE, 3)
            story = _Story(rng, people, rng.sample(vocabulary.THINGS, 3))
            story.tell(self.steps)
            asked = self._ask(story, rng)
            if asked is not None:
                break
        question, answer, proof, prefix = asked
        room = request.length_tokens - sum(request.count_tokens(f) + 1 for f in story.lines)
        units = filler(self.haystack).take(rng, max(room, 1), request.count_tokens)
        placed = place(units, story.lines, scattered_depths(rng, len(story.lines)), " ")
        return Example(
            task=self.name,
            index=request.index,
            length_tokens=request.length_tokens,
            sources=placed.source("story"),
            question=question,
            answers=(answer,),
            scorer="first_named",
            gold=placed.gold(sorted(set(proof))),
            options=_COUNTS if self.kind == "count" else tuple(vocabulary.PLACES),
            answer_prefix=prefix,
            max_new_tokens=8,
        )

    def _ask(
        self, story: _Story, rng: random.Random
    ) -> tuple[str, str, tuple[int, ...], str] | None:
        if self.kind == "person":
            known = sorted(story.where)
            if not known:
                return None
            person = rng.choice(known)
            question = f"In the story, in which room is {person} at the end?"
            return question, story.where[person], (story.moved[person],), f"{person} is in the"
        if self.kind == "count":
            person = rng.choice(story.people)
            held = [t for t, holder in story.holder.items() if holder == person]
            proof = tuple(story.touched.get(person, ()))
            if not proof:
                return None
            count = _COUNTS[len(held)]
            question = (
                f"In the story, how many things does {person} carry at the end: none, one, two or "
                "three?"
            )
            return question, count, proof, f"The number of things that {person} carries is"
        need = 2 if self.kind == "thing_before" else 1
        known = sorted(t for t, trail in story.trail.items() if len(trail) >= need + (need == 1))
        if not known:
            return None
        thing = rng.choice(known)
        trail = story.trail[thing]
        if self.kind == "thing":
            proof = trail[-1][1]
            return (
                f"In the story, in which room is the {thing} at the end?",
                trail[-1][0],
                proof,
                (f"The {thing} is in the"),
            )
        proof = trail[-1][1] + trail[-2][1]
        return (
            f"In the story, in which room was the {thing} before it came to the {trail[-1][0]}?",
            trail[-2][0],
            proof,
            f"Before the {trail[-1][0]}, the {thing} was in the",
        )


FACT_TASKS = (
    FactsTask("facts_person", "person", steps=8),
    FactsTask("facts_thing", "thing"),
    FactsTask("facts_thing_before", "thing_before", steps=18),
    FactsTask("facts_count", "count"),
)
