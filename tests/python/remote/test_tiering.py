"""Cold memories leave the local disk only when they are safely elsewhere, and come back whole."""

from __future__ import annotations

import os
import time

import pytest

from megacontext.remote import Fenced, Reader, RemoteError, Writer, open_remote, promote
from megacontext.remote.tiering import TierPolicy, apply_policy, ensure_local, release, released
from megacontext_ext import Store
from megacontext_ext.errors import NotFound, StoreLocked
from tests.python.remote.support import require_counts_up


def test_a_released_memory_takes_no_room_and_comes_back(remote, machine):
    one, two = machine("one"), machine("two")
    total = one.append(3000)
    size = sum(path.stat().st_size for path in one.path.glob("*.mcs"))
    assert release(remote, one.path) > size
    assert released(one.path)
    assert list(one.path.glob("*.mcs")) == []
    with pytest.raises(NotFound):
        Store.open(one.path)
    with Reader(remote, two.cache()) as reader:  # others go on reading
        require_counts_up(reader.store(), total)
    assert ensure_local(one.path, one.cache())
    assert not ensure_local(one.path, one.cache())
    more = one.append(500)
    assert Writer.resume(remote, one.path).push().epoch == 1
    with Store.open(one.path) as store:
        require_counts_up(store, more)


def test_an_open_memory_is_not_released(remote, machine):
    one = machine("one")
    one.append(100)
    with Store.open(one.path), pytest.raises(StoreLocked):
        release(remote, one.path)
    assert not released(one.path)


def test_nothing_is_removed_unless_every_object_is_proven_there(remote, machine):
    one = machine("one")
    total = one.append(1000)
    Writer.resume(remote, one.path).push()
    blob = next(iter(remote.latest().of("segments")))
    content = remote.stores[0].get(blob.key)
    remote.stores[0].put(blob.key, content[:-1])
    with pytest.raises(RemoteError, match=rf"{blob.sha256}: whole in 0 stores, must be in 1"):
        release(remote, one.path)
    with Store.open(one.path) as store:
        require_counts_up(store, total)


def test_a_memory_that_another_machine_took_does_not_come_back_silently(remote, machine):
    one, two = machine("one"), machine("two")
    one.append(300)
    release(remote, one.path)
    promote(remote, two.path, two.cache())
    with pytest.raises(Fenced, match="epoch 2"):
        ensure_local(one.path, one.cache())


def test_the_policy_releases_the_oldest_until_the_rest_fits(machine):
    memories = []
    for age, name in enumerate(("new", "middle", "old")):
        one = machine(name)
        one.append(2000)
        stamp = time.time() - 1000 * age
        os.utime(one.path / "MANIFEST", (stamp, stamp))
        memories.append((one.path, open_remote(f"memory:///tier-{one.folder}")))
    size = sum(path.stat().st_size for path in memories[0][0].iterdir() if path.suffix == ".mcs")
    freed = apply_policy(TierPolicy(hot_bytes=int(size * 1.5)), memories)
    assert set(freed) == {memories[1][0], memories[2][0]}
    assert all(count > size for count in freed.values())
    assert apply_policy(TierPolicy(hot_bytes=int(size * 1.5)), memories) == {}
    kept = apply_policy(TierPolicy(hot_bytes=0, hot_s=3600), memories)
    assert kept == {}
