"""Memory of many conversations: facts said once, changed later, corrected, and said by others.

A history is a row of dated sessions between a user and an assistant. Between the facts the user
asks about encyclopaedia subjects and the assistant answers with the real paragraph, so that most of
the text is not about the user. Source: the question types of LongMemEval (Wu et al. 2024).
"""

from __future__ import annotations

import datetime
import random
from dataclasses import dataclass
from typing import Literal

from megacontext.eval.long import vocabulary
from megacontext.eval.long.example import Example, ExampleRequest, GoldSpan, Source
from megacontext.eval.long.filler import filler

DialogueKind = Literal["once", "update", "correction", "speaker", "when"]


@dataclass(frozen=True, slots=True)
class _Subject:
    """One thing a user may say about their life, with ways of saying it and of changing it."""

    asked: str
    prefix: str
    said: str
    changed: str
    corrected: str
    friend: str
    values: tuple[str, ...]


_SUBJECTS = (
    _Subject(
        asked="In which city do I live now?",
        prefix="You live in",
        said="By the way, I live in {value}, so the weather here is nothing special.",
        changed="News from me: I have moved, and my home is in {value} now.",
        corrected="I have to correct myself about my home: I live in {value}.",
        friend="My friend {friend} lives in {value} and keeps inviting me.",
        values=tuple(vocabulary.CITIES),
    ),
    _Subject(
        asked="What is the name of my dog?",
        prefix="The name of your dog is",
        said="I was out with my dog {value} all morning, so I am tired.",
        changed="We have a new dog since last week. My dog is called {value} now.",
        corrected="I mistyped the name of my dog before: my dog is called {value}.",
        friend="My friend {friend} has a dog called {value}, a big one.",
        values=("Biscuit", "Pepper", "Rufus", "Maple", "Gizmo", "Waffles", "Nimbus", "Clover"),
    ),
    _Subject(
        asked="What is my job now?",
        prefix="Your job is",
        said="I work as a {value}, so my days start early.",
        changed="I have changed jobs. I work as a {value} now.",
        corrected="I was joking about my job. I work as a {value}.",
        friend="My friend {friend} works as a {value} and never has time.",
        values=("baker", "surveyor", "nurse", "locksmith", "translator", "beekeeper", "welder"),
    ),
    _Subject(
        asked="Which instrument am I learning now?",
        prefix="You are learning the",
        said="I am learning the {value} and the neighbours are patient.",
        changed="I have given up my old instrument. I am learning the {value} now.",
        corrected="I wrote the wrong instrument before: I am learning the {value}.",
        friend="My friend {friend} is learning the {value} with a good teacher.",
        values=("cello", "oboe", "trombone", "mandolin", "accordion", "harp", "bassoon"),
    ),
)


@dataclass(frozen=True)
class DialogueTask:
    """`once`: said in one session; `update`: changed later; `correction`: taken back in the same
    session; `speaker`: a friend's value is told too; `when`: the date of the session."""

    name: str
    kind: DialogueKind
    category: str = "dialogue"

    def make(self, request: ExampleRequest) -> Example:
        rng = request.rng(self.name)
        subject = rng.choice(_SUBJECTS)
        values = rng.sample(subject.values, 3)
        friend = rng.choice(vocabulary.PEOPLE)
        sessions, days = self._sessions(rng, request)
        depth = request.spread_depth(self.name)
        first = min(len(sessions) - 1, int(depth * len(sessions)))
        gold_session, answer, statements = first, values[0], {first: [subject.said]}
        if self.kind == "update":
            gold_session = min(len(sessions) - 1, first + max(1, (len(sessions) - first) // 2))
            if gold_session == first:
                first = max(0, first - 1)
            statements = {first: [subject.said], gold_session: []}
            statements[gold_session].append(subject.changed)
            answer = values[1]
        elif self.kind == "correction":
            statements = {first: [subject.said, subject.corrected]}
            answer = values[1]
        elif self.kind == "speaker":
            other = rng.randrange(len(sessions))
            statements = {first: [subject.said]}
            statements.setdefault(other, []).append(subject.friend)
        gold_text = ""
        for session, templates in statements.items():
            for template in templates:
                value = values[2] if template == subject.friend else values[0]
                if template in (subject.changed, subject.corrected):
                    value = values[1]
                line = "User: " + template.format(value=value, friend=friend)
                at = rng.randrange(1, len(sessions[session]) + 1)
                if template == subject.corrected:
                    at = len(sessions[session])
                elif template == subject.said and self.kind == "correction":
                    at = 1
                sessions[session].insert(at, line)
                sessions[session].insert(at + 1, "Assistant: I see, thank you for telling me.")
                if value == answer or (self.kind == "when" and template == subject.said):
                    gold_text = line
        return self._example(request, subject, (sessions, days), (gold_session, gold_text), answer)

    def _example(
        self,
        request: ExampleRequest,
        subject: _Subject,
        told: tuple[list[list[str]], list[datetime.date]],
        gold: tuple[int, str],
        answer: str,
    ) -> Example:
        sessions, days = told
        texts = ["\n".join(lines) for lines in sessions]
        session, line = gold
        start = texts[session].index(line)
        spans = [GoldSpan(session, start, start + len(line))]
        if self.kind == "when":
            head = sessions[session][0]
            spans.insert(0, GoldSpan(session, 0, len(head)))
            statement = line.removeprefix("User: ")
            question = f'On which date did I tell you this: "{statement}"?'
            answers, options = (_written(days[session]),), tuple(_written(day) for day in days)
            prefix = "You told me this on"
        else:
            question, answers, options = subject.asked, (answer,), subject.values
            prefix = subject.prefix
        return Example(
            task=self.name,
            index=request.index,
            length_tokens=request.length_tokens,
            sources=tuple(
                Source(f"session {number} {day.isoformat()}", text)
                for number, (day, text) in enumerate(zip(days, texts, strict=True), 1)
            ),
            question=question,
            answers=answers,
            scorer="first_named",
            gold=tuple(spans),
            answer_prefix=prefix,
            max_new_tokens=16,
            options=options,
        )

    def _sessions(
        self, rng: random.Random, request: ExampleRequest
    ) -> tuple[list[list[str]], list[datetime.date]]:
        """Lines of each session, the date first; and the dates, in order, all different."""
        room = int(request.length_tokens * 0.9) - 120
        units = filler("wikipedia").take(rng, max(room, 300), request.count_tokens)
        day = datetime.date(2022, 1, 3) + datetime.timedelta(days=rng.randrange(60))
        sessions, days, at = [], [], 0
        while at < len(units):
            turns = rng.randint(2, 6)
            lines = [f"Session of {_written(day)}"]
            for unit in units[at : at + turns]:
                title, _, text = unit.partition("\n")
                opening = rng.choice(("Tell me about", "What do you know about", "Who or what is"))
                lines += [f"User: {opening} {title}?", f"Assistant: {text}"]
            sessions.append(lines)
            days.append(day)
            at += turns
            day += datetime.timedelta(days=rng.randint(1, 5))
        return sessions, days


def _written(day: datetime.date) -> str:
    return f"{day.day} {day:%B} {day.year}"


DIALOGUE_TASKS = tuple(
    DialogueTask(f"dialogue_{kind}", kind)
    for kind in ("once", "update", "correction", "speaker", "when")
)
