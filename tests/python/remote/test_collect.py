"""What no commit names goes away, nothing else does, and an erased source leaves every store."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext.config import RemoteConfig
from megacontext.remote import Fenced, Reader, Writer, open_remote, promote
from megacontext.remote.collect import collect
from megacontext.remote.record import CONTENT_FOLDERS
from megacontext_ext import Store
from megacontext_ext.errors import InvalidArgument
from tests.python.remote.support import require_counts_up


def content_keys(remote) -> set[str]:
    return {info.key for folder in CONTENT_FOLDERS for info in remote.stores[0].list(folder)}


def test_only_unnamed_old_objects_go(remote, machine):
    one, two = machine("one"), machine("two")
    writer = None
    for _ in range(5):
        total = one.append(400)
        writer = Writer.resume(remote, one.path)
        writer.push()
    before = content_keys(remote)
    assert before > remote.latest().keys
    young = collect(remote)
    assert (young.removed_objects, young.young_objects) == (0, len(before - remote.latest().keys))
    would = collect(remote, grace_s=0, dry_run=True)
    assert content_keys(remote) == before
    done = collect(remote, grace_s=0, writer=writer)
    assert done.removed_objects == would.removed_objects == len(before - remote.latest().keys)
    assert content_keys(remote) == remote.latest().keys
    with Reader(remote, two.cache()) as reader:
        require_counts_up(reader.store(), total)
    one.append(100)
    assert writer.push().published


def test_without_grace_only_the_writer_may(remote, machine):
    one, two = machine("one"), machine("two")
    one.append(100)
    old = Writer.resume(remote, one.path)
    old.push()
    with pytest.raises(InvalidArgument, match="must be at least 3600"):
        collect(remote, grace_s=10)
    promote(remote, two.path, two.cache())
    with pytest.raises(Fenced, match=r"\[gc\].*epoch 1 of .* is over"):
        collect(remote, grace_s=0, writer=old)


def test_an_erased_source_leaves_the_object_store(remote, machine):
    """Erase, purge, push, collect: no object has a byte of it, nor its name, and the rest stays."""
    one, two = machine("one"), machine("two")
    secret = np.full(64, 0x5EC2E7, np.uint32)
    total = one.append(500)
    with Store.open(one.path) as store:
        part = store.add_partition("secret-name.txt")
        store.append_tokens(part, secret)
        store.checkpoint()
    writer = Writer.resume(remote, one.path)
    writer.push()
    marks = (secret.tobytes(), b"secret-name")
    assert all(any(mark in content for content in everything(remote)) for mark in marks)

    with Store.open(one.path) as store:
        store.erase_partition(part)
        store.purge()
    assert writer.push().published
    assert collect(remote, grace_s=0, writer=writer).removed_objects >= 3
    assert not any(mark in content for content in everything(remote) for mark in marks)
    with Reader(remote, two.cache()) as reader:
        store = reader.store()
        require_counts_up(store, total)
        assert [each.source for each in store.partitions()] == ["log"]


def everything(remote) -> list[bytes]:
    """Every object of the place, commits included."""
    store = remote.stores[0]
    keys = [info.key for folder in (*CONTENT_FOLDERS, "commits") for info in store.list(folder)]
    single = [key for key in ("commit.json", "format.json") if store.head(key)]
    return [store.get(key) for key in (*keys, *single)]


def test_numbered_commits_are_pruned_and_a_sleeper_is_told(machine, tmp_path):
    one, two = machine("one"), machine("two")
    config = RemoteConfig(retries=0, kept_commits=2)
    remote = open_remote(f"file://{tmp_path}/place", config=config)
    one.append(100)
    sleeper = Writer.resume(remote, one.path)
    sleeper.push()
    newer = promote(remote, two.path, two.cache())
    for _ in range(4):
        two.append(100)
        newer.push()
    assert collect(remote).removed_commits == 5
    assert len(list(remote.stores[0].list("commits"))) == 2
    one.append(10)
    with pytest.raises(Fenced, match="epoch 2"):
        sleeper.push()
    # Even when it had looked before it slept: its number is free again, but not the newest.
    asleep = remote.log(remote.stores[0])
    latest = asleep.latest()
    stale = latest.next()
    older = type(latest)(**{**{f: getattr(latest, f) for f in latest.__slots__}, "generation": 1})
    asleep.latest = lambda: older  # type: ignore[method-assign]
    object.__setattr__(stale, "generation", 2)
    object.__setattr__(stale, "parent", older.commit_id)
    answers = iter([older])
    fresh = open_remote(f"file://{tmp_path}/place", config=config)
    log = fresh.log(fresh.stores[0])
    real = log.latest
    log.latest = lambda: next(answers, None) or real()  # type: ignore[method-assign]
    from megacontext.remote.commits import Superseded

    with pytest.raises(Superseded, match="generation 2 of epoch 2 must follow the newest"):
        log.publish(stale)
