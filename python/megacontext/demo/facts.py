"""Facts planted into the documents at seeded depths: pass keys, key-value pairs, twins.

A twin is a fact beside a second one of the same form about something else, elsewhere in the text: a
method that finds the form and not the subject answers with the wrong one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from megacontext.demo.corpus import Document, TextQuestion

_PLACES = [
    "Falken Tower",
    "Ostergate Vault",
    "Merrow Lighthouse",
    "Brinkholm Archive",
    "Tallow Bridge",
    "Quillon Depot",
    "Saltmarsh Station",
    "Hollin Observatory",
]
_DEVICES = [
    "Varnell pump",
    "Ibex turbine",
    "Corvane sextant",
    "Lumley press",
    "Ostrava kiln",
    "Dunmore radio",
    "Pelham loom",
    "Arctus drill",
]
_SHIPS = [
    "Astrid",
    "Ingrid",
    "Morwenna",
    "Cassiope",
    "Halcyon",
    "Petrel",
    "Sigrun",
    "Thalassa",
    "Evangeline",
    "Lorelei",
    "Nereid",
    "Solveig",
    "Tamsin",
    "Undine",
    "Vesper",
    "Ysolde",
]
_FIRST = [
    "Henrik",
    "Oskar",
    "Maren",
    "Tobias",
    "Liv",
    "Anselm",
    "Greta",
    "Bastian",
    "Ronja",
    "Emil",
    "Sunniva",
    "Caspar",
    "Dagny",
    "Viggo",
    "Ebba",
    "Leander",
]
_LAST = [
    "Dahlgaard",
    "Lundqvist",
    "Wintersby",
    "Aldermoor",
    "Brandvold",
    "Castellane",
    "Fenwright",
    "Grimsdal",
    "Hartvigsen",
    "Iversholt",
    "Kestrelby",
    "Marlowe",
    "Nordraak",
    "Oldcastle",
    "Pemberwick",
    "Rosenvinge",
]


def plant(documents: Sequence[Document], count_of_each: int, seed: int) -> list[TextQuestion]:
    """Put facts into `documents` (which change) and return the questions about them."""
    chance = random.Random(seed)
    made = [
        *_pass_keys(chance, count_of_each),
        *_pairs(chance, count_of_each),
        *_twins(chance, count_of_each),
    ]
    chance.shuffle(made)
    questions = []
    for kind, facts, question, answer in made:
        spans = [_insert(chance, documents, fact) for fact in facts]
        questions.append(TextQuestion(kind, question, (answer,), spans[0]))
    return questions


Planted = tuple[str, tuple[str, ...], str, str]


def _pass_keys(chance: random.Random, count: int) -> list[Planted]:
    made: list[Planted] = []
    for place in chance.sample(_PLACES, count):
        key = str(chance.randrange(10_000, 100_000))
        fact = f"The pass key of {place} is {key}. Remember it."
        made.append(("pass key", (fact,), f"What is the pass key of {place}?", key))
    return made


def _pairs(chance: random.Random, count: int) -> list[Planted]:
    made: list[Planted] = []
    for device in chance.sample(_DEVICES, count):
        number = str(chance.randrange(1000, 10_000))
        fact = f"The serial number of the {device} is {number}."
        made.append(("key-value", (fact,), f"What is the serial number of the {device}?", number))
    return made


def _twins(chance: random.Random, count: int) -> list[Planted]:
    ships = chance.sample(_SHIPS, 2 * count)
    people = [
        f"{first} {last}"
        for first, last in zip(
            chance.sample(_FIRST, 2 * count), chance.sample(_LAST, 2 * count), strict=True
        )
    ]
    made: list[Planted] = []
    for at in range(0, 2 * count, 2):
        facts = tuple(
            f"The captain of the ship {ship} is {person}."
            for ship, person in zip(ships[at : at + 2], people[at : at + 2], strict=True)
        )
        question = f"Who is the captain of the ship {ships[at]}?"
        made.append(("twin", facts, question, people[at].split()[1]))
    return made


def _insert(chance: random.Random, documents: Sequence[Document], fact: str) -> str:
    """Append `fact` to a paragraph at a random depth of the whole; returns that paragraph."""
    at = chance.randrange(sum(len(document.text) for document in documents))
    places = [(d, p) for d, each in enumerate(documents) for p in range(len(each.paragraphs))]
    for document, place in places:
        at -= len(documents[document].paragraphs[place]) + len("\n\n")
        if at < 0:
            break
    paragraphs = documents[document].paragraphs
    paragraphs[place] = f"{paragraphs[place]} {fact}"
    return _end_of(paragraphs[place])


def _end_of(paragraph: str, characters: int = 700) -> str:
    """The last sentences: a paragraph of an essay can be very long."""
    return paragraph if len(paragraph) <= characters else paragraph[-characters:].split(" ", 1)[-1]
