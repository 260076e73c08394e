"""Many memories spread over several places by one small map.

A name goes to the place that wins its weighted draw (rendezvous hashing), so a new place takes over
only its share; once a memory was placed, the map remembers it, and it stays until it is moved. The
map is an object of its own, changed by the same conditional puts as commits.

    shards.json, or shards/<version>.json    {"places": [...], "placed": {name: index}}
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory

from megacontext.config import RemoteConfig
from megacontext.remote.cache import Cache
from megacontext.remote.errors import ObjectExists, RemoteError
from megacontext.remote.objects import Objects, open_objects
from megacontext.remote.place import Remote, open_remote
from megacontext.remote.probe import probe
from megacontext.remote.writer import Writer, promote
from megacontext_ext.errors import Corruption, InvalidArgument, NotFound, Unsupported

__all__ = ["Place", "ShardMap", "Shards"]

_FOLDER = "shards"
_ATTEMPTS = 16


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket or prefix and its mirrors. `weight` 0: nothing new goes here."""

    urls: tuple[str, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ShardMap:
    """One version of the map."""

    version: int
    places: tuple[Place, ...]
    placed: Mapping[str, int]

    def choose(self, name: str) -> int:
        """Where a memory of this name goes, or is."""
        if name in self.placed:
            return self.placed[name]
        draws = [_draw(name, place) for place in self.places]
        if max(draws, default=0.0) <= 0.0:
            raise InvalidArgument(f"[shards] no place of {len(self.places)} takes new memories")
        return draws.index(max(draws))

    def to_bytes(self) -> bytes:
        places = [{"urls": list(place.urls), "weight": place.weight} for place in self.places]
        body = {"format": 1, "version": self.version, "places": places, "placed": dict(self.placed)}
        return json.dumps(body, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> ShardMap:
        """Raises: Corruption, Unsupported for a newer format."""
        try:
            body = json.loads(content)
            if body["format"] > 1:
                raise Unsupported(f"{where}:0: expected map format <= 1, got {body['format']}")
            places = tuple(Place(tuple(each["urls"]), each["weight"]) for each in body["places"])
            return cls(body["version"], places, body["placed"])
        except (ValueError, KeyError, TypeError) as error:
            raise Corruption(f"{where}:0: expected a shard map, got {error!r}") from error


class Shards:
    """The map at one URL, and the memories that it spreads. Any number of processes may change it:
    each version is a numbered object that only one of them creates."""

    def __init__(self, url: str, config: RemoteConfig | None = None) -> None:
        self.config = config or RemoteConfig()
        self._objects: Objects = open_objects(url, self.config)

    @classmethod
    def begin(cls, url: str, places: list[Place], config: RemoteConfig | None = None) -> Shards:
        """A new map. Raises: InvalidArgument when there is one; Unsupported for a store that cannot
        create an object once."""
        shards = cls(url, config)
        can = probe(shards._objects)
        if not can.create or not can.lists:
            raise Unsupported(f"{url}: a map needs If-None-Match and listings, got {can.reasons}")
        _require_places(places)
        try:
            shards._create(ShardMap(1, tuple(places), {}))
        except ObjectExists as error:
            raise InvalidArgument(f"[shards] {url} has a map already") from error
        return shards

    def map(self) -> ShardMap:
        """The newest version. Raises: NotFound, Corruption, RemoteError."""
        key = max((info.key for info in self._objects.list(_FOLDER)), default=None)
        if key is None:
            raise NotFound(f"{self._objects.url}: there is no shard map here")
        return ShardMap.from_bytes(self._objects.get(key), self._objects.where(key))

    def open(self, name: str, *, place_new: bool = False) -> Remote:
        """The memory of this name.

        Args:
            place_new: a name that is not in the map is placed and recorded.

        Raises: NotFound for a name that was never placed; InvalidArgument for one that cannot be.
        """
        if not name or name.strip("/") != name or "//" in name or ".." in name:
            raise InvalidArgument(f"[shards] name must be a relative path, got {name!r}")
        found = self.map()
        if name not in found.placed:
            if not place_new:
                raise NotFound(f"{self._objects.url}: no memory {name!r} among {len(found.placed)}")
            found = self._change(
                lambda now: replace(now, placed={**now.placed, name: now.choose(name)})
            )
        return self._remote(found.places[found.placed[name]], name)

    def add_place(self, place: Place) -> int:
        """Adds a place; what was placed stays where it is. Returns its index."""
        _require_places([place])
        return len(self._change(lambda now: replace(now, places=(*now.places, place))).places) - 1

    def set_weight(self, index: int, weight: float) -> None:
        """0 drains a place: nothing new goes there."""

        def change(now: ShardMap) -> ShardMap:
            places = list(now.places)
            places[index] = replace(places[index], weight=weight)
            return replace(now, places=tuple(places))

        self._change(change)

    def move(self, name: str, to: int, cache: Cache | None = None) -> None:
        """Copies a memory to another place and points the map there. Its writer is fenced at the
        old place first, so that nothing is published there while it moves; it goes on with
        `promote` at the new one. The old copy stays until somebody removes it.

        Raises: as `promote`; InvalidArgument for a place that is not in the map.
        """
        now = self.map()
        if not 0 <= to < len(now.places):
            raise InvalidArgument(f"[shards] place must be in [0, {len(now.places)}), got {to}")
        source, target = self.open(name), self._remote(now.places[to], name)
        with TemporaryDirectory() as folder:
            path = f"{folder}/memory"
            promote(source, path, cache or Cache(config=self.config))
            Writer.acquire(target, path).push()
        self._change(lambda now: replace(now, placed={**now.placed, name: to}))

    # ---- parts ----

    def _remote(self, place: Place, name: str) -> Remote:
        return open_remote([_below(url, name) for url in place.urls], config=self.config)

    def _change(self, change) -> ShardMap:  # type: ignore[no-untyped-def]
        for _ in range(_ATTEMPTS):
            now = self.map()
            fresh = replace(change(now), version=now.version + 1)
            try:
                self._create(fresh)
                return fresh
            except ObjectExists:
                continue  # somebody else was quicker: change what they made
        raise RemoteError(
            f"{self._objects.url}: others changed the map {_ATTEMPTS} times meanwhile"
        )

    def _create(self, fresh: ShardMap) -> None:
        key = f"{_FOLDER}/{fresh.version:016d}.json"
        try:
            self._objects.create(key, fresh.to_bytes())
        except (ObjectExists, RemoteError):
            # A lost answer: was it ours that arrived?
            found = self._objects.head(key)
            if found is None or self._objects.get(key) != fresh.to_bytes():
                raise


def _require_places(places: list[Place]) -> None:
    if not places or any(not place.urls or place.weight < 0 for place in places):
        raise InvalidArgument(f"[shards] places must have URLs and weights >= 0, got {places}")


def _draw(name: str, place: Place) -> float:
    """Weighted rendezvous: -weight / ln(u) for a u in (0, 1) that only name and place decide."""
    digest = hashlib.sha256(f"{place.urls[0]}\0{name}".encode()).digest()
    uniform = (int.from_bytes(digest[:8], "big") + 0.5) / 2**64
    return -place.weight / math.log(uniform)


def _below(url: str, name: str) -> str:
    base, question, query = url.partition("?")
    return f"{base.rstrip('/')}/{name}{question}{query}"
