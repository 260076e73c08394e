"""One memory, several machines: push, read by URL, refresh, promote, fence."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from megacontext.remote import Fenced, Reader, RemoteError, Writer, open_remote, promote
from megacontext_ext import Store
from megacontext_ext.errors import Corruption, InvalidArgument, NotFound
from tests.python.remote.support import QUICK, require_counts_up


def test_a_pushed_memory_is_read_elsewhere_and_refreshed(remote, url, machine):
    one, two = machine("one"), machine("two")
    total = one.append(5000)
    writer = Writer.resume(remote, one.path)
    report = writer.push()
    assert report.published
    assert report.epoch == 1
    with Reader(open_remote(url, config=QUICK), two.cache()) as reader:
        require_counts_up(reader.store(), total)
        assert not reader.refresh()
        more = one.append(2000)
        second = writer.push()
        assert second.uploaded_bytes < second.total_bytes
        assert reader.refresh()
        assert 0 < reader.fetched.fetched_bytes <= second.uploaded_bytes
        require_counts_up(reader.store(), more)


def test_the_same_content_is_neither_sent_nor_published_twice(remote, machine):
    one = machine("one")
    one.append(1000)
    first = Writer.resume(remote, one.path).push()
    again = Writer.resume(remote, one.path).push()
    assert not again.published
    assert (again.uploaded_objects, again.generation) == (0, first.generation)


def test_a_promoted_machine_writes_on_and_the_old_writer_is_fenced(remote, url, machine):
    one, two, three = machine("one"), machine("two"), machine("three")
    total = one.append(3000)
    old = Writer.resume(remote, one.path)
    old.push()
    new = promote(open_remote(url, config=QUICK), two.path, two.cache())
    assert new.epoch == old.epoch + 1
    total = two.append(1500)
    new.push()

    lost = one.append(700)  # what the old writer took in meanwhile
    with pytest.raises(Fenced, match=r"epoch 1 of .* is over, epoch 2 of .* writes now"):
        old.push()
    with pytest.raises(Fenced, match="push it to a new URL"):
        Writer.resume(open_remote(url, config=QUICK), one.path).push()
    with pytest.raises(InvalidArgument, match="would undo it"):
        promote(open_remote(url, config=QUICK), one.path)
    with Reader(open_remote(url, config=QUICK), three.cache()) as reader:
        require_counts_up(reader.store(), total)

    # Nothing of the old writer is lost: it goes to a place of its own.
    elsewhere = open_remote(f"memory:///elsewhere-{one.folder}", config=QUICK)
    Writer.resume(elsewhere, one.path).push()
    with Reader(elsewhere, three.cache()) as reader:
        require_counts_up(reader.store(), lost)


def test_a_machine_that_was_promoted_away_can_come_back_from_the_newest(remote, machine):
    one, two = machine("one"), machine("two")
    one.append(500)
    Writer.resume(remote, one.path).push()
    second = promote(remote, two.path, two.cache())
    two.append(500)
    second.push()
    back = machine("one-again")
    third = promote(remote, back.path, back.cache())
    assert third.epoch == 3
    with Store.open(back.path, read_only=True) as store:
        require_counts_up(store, 1000)
    with pytest.raises(Fenced, match="epoch 3"):
        second.push()


def test_of_two_that_acquire_at_once_the_later_stays_and_nothing_is_lost(remote, url, machine):
    first, copies = machine("first"), [machine("a"), machine("b")]
    total = first.append(800)
    Writer.resume(remote, first.path).push()
    outcomes: list[str] = []
    ready = threading.Barrier(2)

    def take_over(number: int) -> None:
        place = open_remote(url, config=QUICK)
        ready.wait()
        try:
            writer = promote(place, copies[number].path, copies[number].cache())
            copies[number].append(100)
            writer.push()
            outcomes.append("published")
        except (Fenced, InvalidArgument) as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=take_over, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    published = outcomes.count("published")
    assert len(outcomes) == 2
    assert published >= 1
    assert set(outcomes) <= {"published", "Fenced", "InvalidArgument"}
    with Reader(open_remote(url, config=QUICK), machine("reader").cache()) as reader:
        require_counts_up(reader.store(), total + 100 * published)


def test_another_memory_is_not_overwritten(remote, machine):
    one, other = machine("one"), machine("other")
    one.append(100)
    other.append(100)
    Writer.resume(remote, one.path).push()
    with pytest.raises(Fenced, match="was never its writer"):
        Writer.resume(remote, other.path)
    with pytest.raises(InvalidArgument, match="holds memory"):
        Writer.acquire(remote, other.path)


def test_a_place_without_a_memory_says_so(remote, machine):
    with pytest.raises(NotFound, match=r"no memory here, format\.json is missing"):
        Reader(remote, machine("one").cache()).refresh()
    with pytest.raises(NotFound, match="no memory here"):
        promote(remote, machine("one").path, machine("one").cache())


def test_a_promoted_directory_is_a_whole_store_of_its_own(remote, machine):
    one, two = machine("one"), machine("two")
    total = one.append(2000)
    Writer.resume(remote, one.path).push()
    promote(remote, two.path, two.cache())
    cached = {path.stat().st_ino for path in (two.folder / "cache" / "objects").iterdir()}
    files = [path for path in two.path.iterdir() if path.suffix == ".mcs"]
    assert files
    assert not cached & {path.stat().st_ino for path in files}
    with Store.open(two.path) as store:
        require_counts_up(store, total)


def test_records_beside_a_store_travel_along(remote, machine):
    one, two = machine("one"), machine("two")
    one.append(100)
    beside = Path(f"{one.path}.gists")
    beside.mkdir()
    (beside / "a.gist.json").write_text('{"base": "x"}')
    Writer.resume(remote, one.path).push()
    with Reader(remote, two.cache()) as reader:
        assert Path(f"{reader.path}.gists/a.gist.json").read_text() == '{"base": "x"}'


def test_a_reader_moves_on_when_objects_are_collected_on_its_way(remote, machine):
    one, two = machine("one"), machine("two")
    one.append(400)
    writer = Writer.resume(remote, one.path)
    writer.push()
    stale = remote.latest()
    for _ in range(4):
        total = one.append(400)
        writer.push()
    fresh = remote.latest()
    for blob in stale.blobs:
        if blob.key not in fresh.keys:
            remote.stores[0].delete(blob.key)
    reader = Reader(remote, two.cache())
    answers = iter([stale])
    real = remote.latest
    remote.latest = lambda: next(answers, None) or real()  # the stale answer of a slow line
    require_counts_up(reader.store(), total)
    reader.close()


@pytest.mark.parametrize("at", ["length", "content", "record"])
def test_a_rotten_object_is_never_shown(at, machine):
    one, two = machine("one"), machine("two")
    one.append(300)
    remote = open_remote(f"memory:///rot-{one.folder}", config=QUICK)
    Writer.resume(remote, one.path).push()
    store, commit = remote.stores[0], remote.latest()
    blob = next(iter(commit.of("segments")))
    content = bytearray(store.get(blob.key))
    if at == "length":
        store.put(blob.key, bytes(content[:-1]))
    elif at == "content":
        content[len(content) // 2] ^= 1
        store.put(blob.key, bytes(content))
    else:
        text = store.get("commit.json")
        store.put("commit.json", text.replace(b'"epoch": 1', b'"epoch": 7'))
    with pytest.raises((Corruption, RemoteError), match=r"SHA-256|expected"):
        Reader(remote, two.cache()).refresh()
    assert list((two.folder / "cache" / "views").iterdir()) == []


def test_a_copy_that_was_overtaken_before_it_took_the_place_is_refused(remote, machine):
    """Pulled, then the writer published more, then the copy wants to be the writer."""
    one, two = machine("one"), machine("two")
    one.append(300)
    writer = Writer.resume(remote, one.path)
    writer.push()
    real = remote.latest
    pulled = real()
    answers = iter([pulled])
    one.append(300)
    writer.push()
    remote.latest = lambda: next(answers, None) or real()
    with pytest.raises(InvalidArgument, match=r"was never in .*would undo it"):
        promote(remote, two.path, two.cache())
