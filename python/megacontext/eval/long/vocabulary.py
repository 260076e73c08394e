"""Names and words that tasks draw from. Made up or everyday, so that no model knows an answer."""

from __future__ import annotations

import random
from collections.abc import Callable


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES = _words("""
    amber ancient arctic autumn bitter blazing brave brisk bronze calm careful cedar cheerful
    clever cobalt coral cosmic crimson crystal daring dusty eager early electric emerald
    fading fearless fierce frosty gentle gilded golden graceful hidden hollow humble icy
    indigo ivory jade jolly keen lively lonely lucky lunar marble mellow midnight misty modest
    mossy noble obsidian olive opal pale patient pearl placid polar proud quiet radiant rapid
    restless rosy rugged rustic sacred sandy scarlet secret serene shady silent silver simple
    sleepy smoky solar solemn spry stormy sturdy subtle sunny swift tender thorny tidy timid
    velvet vivid wandering wild witty
""")
NOUNS = _words("""
    acorn anchor anvil arrow badger banner barley basin beacon beetle birch bison blossom
    boulder bramble bridge brook candle canyon castle cavern cedar chapel cliff clover comet
    compass copper cottage crane creek dagger dolphin dune eagle ember falcon feather fern
    forest fountain fox garnet glacier granite grove hammer harbor harvest hawk heron hollow
    hornet island ivy jaguar kettle kite lagoon lantern lark laurel ledge lemur lily lizard
    lotus lynx magnet maple marsh meadow mirror moth nectar needle oasis ocean orchard otter
    owl panther parrot pebble pelican pine planet plum pond poppy prairie quarry quartz rabbit
    raven reef ridge river robin saddle sparrow spruce stone swan thicket thistle tiger timber
    torch tulip tunnel turtle valley violet walnut walrus warbler willow window wolf wren
""")
PEOPLE = _words("""
    Alice Boris Carmen Dmitri Elena Farid Greta Hassan Ingrid Jamal Keiko Lorenzo Mirela Nadia
    Otto Priya Quentin Rosa Stefan Tamara Umberto Vera Wanda Ximena Yusuf Zelda
""")
SURNAMES = _words("""
    Abernathy Bellweather Castellane Dunmore Estrella Fairbourne Grimaldi Hollander Iverson
    Jankowski Kestrel Lindqvist Montrose Nakagawa Oyelaran Pemberton Quillfeather Rosenthal
    Szabados Thorvald Underhill Vasquez Wetherby Xanthos Yarrow Zielinski
""")
PLACES = _words("""
    kitchen garden office bedroom hallway bathroom cellar attic library garage
""")
THINGS = _words("""
    football apple milk lantern umbrella notebook hammer violin teapot camera
""")
CITIES = _words("""
    Lisbon Tallinn Kyoto Nairobi Quito Bergen Halifax Valparaiso Ghent Ljubljana Tbilisi
    Hobart Marrakesh Kilkenny Uppsala Trieste Cusco Galway Aarhus Porto Leiden Bruges Salzburg
    Turku
""")
_SYLLABLES = _words("""
    ba be bi bo da de di do ka ke ki ko la le li lo ma me mi mo na ne no ra re ri ro
""")


def key_name(rng: random.Random) -> str:
    """A two-word key, e.g. `brisk-otter`; about 10,000 of them."""
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"


def long_key_name(rng: random.Random) -> str:
    """A three-word key; about a million of them."""
    return f"{key_name(rng)}-{rng.choice(NOUNS)}"


def number_value(rng: random.Random) -> str:
    """Seven digits."""
    return str(rng.randrange(1_000_000, 10_000_000))


def uuid_value(rng: random.Random) -> str:
    """A version 4 UUID."""
    bits = rng.getrandbits(128) & ~(0xF << 76) & ~(0x3 << 62) | (0x4 << 76) | (0x2 << 62)
    text = f"{bits:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def variable_name(rng: random.Random) -> str:
    """Five capital letters."""
    return "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=5))


def invented_word(rng: random.Random, syllables: int = 3) -> str:
    """A pronounceable word that is in no dictionary."""
    return "".join(rng.choices(_SYLLABLES, k=syllables))


def distinct(rng: random.Random, draw: Callable[[random.Random], str], count: int) -> list[str]:
    """`count` different draws; the caller knows that `draw` has many more."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw(rng)] = None
    return list(found)
