"""Many memories over several places: spread, remembered, drained, moved, changed at once."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from megacontext.remote import Fenced, Reader, Writer, promote
from megacontext.remote.shards import Place, ShardMap, Shards
from megacontext_ext.errors import InvalidArgument, NotFound
from tests.python.remote.support import QUICK, require_counts_up


@pytest.fixture
def shards(url, tmp_path) -> Shards:
    places = [Place((f"memory:///{tmp_path}/{i}",)) for i in range(3)]
    return Shards.begin(url, places, QUICK)


def test_names_spread_by_weight_and_a_new_place_takes_only_its_share():
    places = tuple(Place((f"memory:///{i}",), weight) for i, weight in enumerate((1.0, 1.0, 2.0)))
    names = [f"user/{i}" for i in range(4000)]
    before = ShardMap(1, places, {})
    counts = Counter(before.choose(name) for name in names)
    assert [round(4 * counts[i] / len(names)) for i in range(3)] == [1, 1, 2]
    after = ShardMap(2, (*places, Place(("memory:///3",))), {})
    moved = [name for name in names if before.choose(name) != after.choose(name)]
    assert {after.choose(name) for name in moved} == {3}
    assert 0.15 < len(moved) / len(names) < 0.25


def test_a_memory_is_found_again_by_its_name(shards, machine):
    for name in ("ann/notes", "bob/notes"):
        one = machine(name.split("/")[0])
        total = one.append(500)
        Writer.resume(shards.open(name, place_new=True), one.path).push()
        with Reader(shards.open(name), machine("reader").cache()) as reader:
            require_counts_up(reader.store(), total)
    with pytest.raises(NotFound, match="no memory 'carl' among 2"):
        shards.open("carl")


def test_what_was_placed_stays_when_places_come_and_are_drained(shards):
    before = {f"m{i}": shards.open(f"m{i}", place_new=True).url for i in range(12)}
    shards.add_place(Place(("memory:///fourth",), 5.0))
    shards.set_weight(0, 0.0)
    assert {name: shards.open(name).url for name in before} == before
    fresh = {shards.open(f"n{i}", place_new=True).url.rsplit("/", 1)[0] for i in range(12)}
    assert "memory:///fourth" in fresh
    assert shards.map().places[0].urls[0] not in fresh


def test_a_moved_memory_is_whole_and_its_old_writer_is_fenced(shards, machine):
    one, two = machine("one"), machine("two")
    total = one.append(900)
    old = Writer.resume(shards.open("m", place_new=True), one.path)
    old.push()
    to = (shards.map().placed["m"] + 1) % 3
    shards.move("m", to, machine("mover").cache())
    assert shards.map().placed["m"] == to
    one.append(10)
    with pytest.raises(Fenced):
        old.push()
    promote(shards.open("m"), two.path, two.cache())
    total = two.append(100)
    Writer.resume(shards.open("m"), two.path).push()
    with Reader(shards.open("m"), machine("reader").cache()) as reader:
        require_counts_up(reader.store(), total)


def test_many_change_the_map_at_once_and_no_change_is_lost(shards, url):
    def place(number: int) -> None:
        mine = Shards(url, QUICK)
        for i in range(3):
            mine.open(f"{number}-{i}", place_new=True)

    threads = [threading.Thread(target=place, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = shards.map()
    assert len(found.placed) == 12
    assert found.version == 13


@pytest.mark.parametrize("name", ["", "/x", "x/", "a//b", "../x"])
def test_names_that_could_leave_their_place_are_refused(name, shards):
    with pytest.raises(InvalidArgument, match="must be a relative path"):
        shards.open(name, place_new=True)


def test_a_second_map_and_an_empty_one_are_refused(shards, url):
    with pytest.raises(InvalidArgument, match="has a map already"):
        Shards.begin(url, [Place(("memory:///x",))], QUICK)
    with pytest.raises(InvalidArgument, match="places must have URLs"):
        Shards.begin("memory:///other-map", [], QUICK)
    with pytest.raises(NotFound, match="no shard map"):
        Shards("memory:///no-map-here", QUICK).map()
