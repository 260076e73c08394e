"""Questions over many documents: real ones (SQuAD, HotpotQA) and made-up ones that need two.

The real questions may be in a model's memory; the made-up ones cannot be, so the two together tell
reading from knowing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from megacontext.eval.long import vocabulary
from megacontext.eval.long.example import Example, ExampleRequest
from megacontext.eval.long.filler import AskedParagraph, filler, hotpot, squad
from megacontext.eval.long.haystack import place, scattered_depths


def _document(title: str, text: str) -> str:
    return f"Document: {title}\n{text}"


@dataclass(frozen=True)
class ParagraphQuestion:
    """A question of a public data set, its paragraphs hidden among other paragraphs."""

    name: str
    dataset: Literal["squad", "hotpot"]
    category: str = "question answering"

    def make(self, request: ExampleRequest) -> Example:
        rng = request.rng(self.name)
        asked = self._asked(rng, request.index, request.seed)
        gold = [_document(asked.title, asked.text)]
        gold += [_document(title, text) for title, text in asked.others]
        room = request.length_tokens - sum(request.count_tokens(text) + 2 for text in gold)
        units = filler("wikipedia").take(rng, max(room, 1), request.count_tokens)
        titles = {asked.title, *(title for title, _ in asked.others)}
        others = ["Document: " + unit for unit in units if unit.split("\n")[0] not in titles]
        if len(gold) == 1:
            depths = [request.spread_depth(self.name)]
        else:
            depths = scattered_depths(rng, len(gold))
            rng.shuffle(gold)
        placed = place(others, gold, depths, "\n\n")
        return Example(
            task=self.name,
            index=request.index,
            length_tokens=request.length_tokens,
            sources=placed.source("documents"),
            question=asked.question,
            answers=asked.answers,
            scorer="contains",
            gold=placed.gold(),
            answer_prefix="",
            max_new_tokens=32,
        )

    def _asked(self, rng: random.Random, index: int, seed: int) -> AskedParagraph:
        pool = squad() if self.dataset == "squad" else hotpot()
        # A walk through the pool in an order of its own: no question twice in a run, and the same
        # questions at every length.
        order = random.Random(f"{self.name}|{seed}").sample(range(len(pool)), len(pool))
        return pool[order[index % len(pool)]]


@dataclass(frozen=True)
class TwoDocuments:
    """Made-up companies and people: `chain` needs a name out of one document to read the other,
    `compare` needs a year out of each."""

    name: str
    kind: Literal["chain", "compare"]
    category: str = "question answering"

    def make(self, request: ExampleRequest) -> Example:
        rng = request.rng(self.name)
        company_count = max(4, min(200, request.length_tokens // 800))
        companies = [
            f"{word.capitalize()} {rng.choice(('Works', 'Foundry', 'Press', 'Instruments'))}"
            for word in vocabulary.distinct(rng, vocabulary.invented_word, company_count)
        ]
        founders = vocabulary.distinct(rng, _full_name, company_count)
        years = rng.sample(range(1790, 2020), company_count)
        cities = [rng.choice(vocabulary.CITIES) for _ in companies]
        profiles = [
            _document(company, f"{company} was founded in {year} by {founder}. It makes tools.")
            for company, year, founder in zip(companies, years, founders, strict=True)
        ]
        lives = [
            _document(founder, f"{founder} was born in {city} and studied engineering abroad.")
            for founder, city in zip(founders, cities, strict=True)
        ]
        needles = profiles + lives if self.kind == "chain" else profiles
        room = request.length_tokens - sum(request.count_tokens(n) + 2 for n in needles)
        units = [
            "Document: " + unit
            for unit in filler("wikipedia").take(rng, max(room, 1), request.count_tokens)
        ]
        depths = scattered_depths(rng, len(needles))
        rng.shuffle(depths)
        placed = place(units, needles, depths, "\n\n")
        if self.kind == "chain":
            question = f"In which city was the founder of {companies[0]} born?"
            answers, gold, options = (cities[0],), (0, company_count), tuple(vocabulary.CITIES)
            prefix = f"The founder of {companies[0]} was born in"
        else:
            question = f"Which was founded earlier, {companies[0]} or {companies[1]}?"
            first, second = (0, 1) if years[0] < years[1] else (1, 0)
            answers, gold = (companies[first],), (0, 1)
            options = (companies[first], companies[second])
            prefix = "The one that was founded earlier is"
        return Example(
            task=self.name,
            index=request.index,
            length_tokens=request.length_tokens,
            sources=placed.source("documents"),
            question=question,
            answers=answers,
            scorer="first_named",
            gold=placed.gold(gold),
            options=options,
            answer_prefix=prefix,
            max_new_tokens=16,
        )


def _full_name(rng: random.Random) -> str:
    return f"{rng.choice(vocabulary.PEOPLE)} {rng.choice(vocabulary.SURNAMES)}"


DOCUMENT_TASKS = (
    ParagraphQuestion("qa_squad", "squad"),
    ParagraphQuestion("qa_hotpot", "hotpot"),
    TwoDocuments("documents_chain", "chain"),
    TwoDocuments("documents_compare", "compare"),
)
