"""True erasure in one call: afterwards no object of any mirror has a byte of the source."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from megacontext.remote import (
    ErasureIncomplete,
    Fenced,
    Reader,
    Writer,
    erase,
    erase_everywhere,
    open_remote,
    promote,
)
from megacontext.remote.record import CONTENT_FOLDERS
from megacontext_ext import Store
from megacontext_ext.errors import NotFound
from tests.python.remote.servers import free_ports, s3_url
from tests.python.remote.support import QUICK, require_counts_up

SECRET = np.full(64, 0x5EC2E7, np.uint32)
MARKS = (SECRET.tobytes(), b"secret-name")


@pytest.fixture
def urls(tmp_path, seaweedfs) -> list[str]:
    """Three kinds of commit: numbered on a local folder, swaps on a server and in memory."""
    name = f"erase-{tmp_path.name}"
    return [f"file://{tmp_path}/first", seaweedfs.url(name), f"memory:///{name}"]


def everything(store) -> dict[str, bytes]:
    """Every object of a store by key, commits included."""
    keys = [info.key for folder in (*CONTENT_FOLDERS, "commits") for info in store.list(folder)]
    single = [key for key in ("commit.json", "format.json") if store.head(key)]
    return {key: store.get(key) for key in (*keys, *single)}


def traces(remote) -> set[str]:
    """Objects with a byte of the secret source, by where they are."""
    return {
        store.where(key)
        for store in remote.stores
        for key, content in everything(store).items()
        if any(mark in content for mark in MARKS)
    }


def add_secret(path) -> None:
    with Store.open(path) as store:
        part = store.add_partition("secret-name.txt")
        store.append_tokens(part, SECRET)
        store.checkpoint()


def erase_secret(path) -> None:
    with Store.open(path) as store:
        store.erase_partition(store.find_partition("secret-name.txt").id)
        store.purge()


def published(machine, remote) -> int:
    """Several generations, all but the first with the secret; the tokens of the rest."""
    total = machine.append(500)
    Writer.resume(remote, machine.path).push()
    add_secret(machine.path)
    Writer.resume(remote, machine.path).push()
    total = machine.append(300)
    Writer.resume(remote, machine.path).push()
    return total


def test_after_one_call_no_object_of_any_mirror_has_a_byte_of_it(urls, machine):
    one = machine("one")
    remote = open_remote(urls, config=QUICK)
    total = published(one, remote)
    assert {place.split("/")[0] for place in traces(remote)} == {"file:", "s3:", "memory:"}
    erase_secret(one.path)
    assert traces(remote)
    report = erase_everywhere(one.path, QUICK)
    assert report.stores == tuple(urls)
    assert report.removed_objects >= 3 * 3
    assert traces(remote) == set()
    newest = remote.latest()
    for number, store in enumerate(remote.stores):
        content = {k for k in everything(store) if k.split("/")[0] in CONTENT_FOLDERS}
        assert content == newest.keys
        with Reader(open_remote(store.url, config=QUICK), machine(f"r{number}").cache()) as reader:
            require_counts_up(reader.store(), total)
    again = erase_everywhere(one.path, QUICK)  # nothing is left to do
    assert again.removed_objects == 0
    total = one.append(100)  # and the memory goes on
    assert Writer.resume(remote, one.path).push().published
    assert list(one.path.with_name("notes.mc.remote").glob("erasing-*")) == []


def test_a_mirror_that_is_away_is_named_with_its_objects_and_cleaned_later(urls, machine):
    one = machine("one")
    published(one, open_remote(urls, config=QUICK))
    remote = open_remote(urls, config=QUICK)
    held = {place for place in traces(remote) if place.startswith("s3:")}
    assert len(held) >= 3
    (port,) = free_ports(1)
    away = open_remote([urls[0], s3_url("nobody", port), urls[2]], config=QUICK)
    away.stores[1].url = urls[1]  # the same store, as it is seen when its server is gone
    erase_secret(one.path)
    with pytest.raises(ErasureIncomplete, match="1 of 3 stores may still hold") as caught:
        erase(away, one.path)
    assert held <= set(caught.value.remaining)
    assert urls[1] in str(caught.value)
    assert traces(remote) == held  # the others are clean
    with pytest.raises(ErasureIncomplete) as caught:  # the second time as well
        erase(away, one.path)
    assert held <= set(caught.value.remaining)
    report = erase_everywhere(one.path, QUICK)
    assert set(report.stores) == set(urls)
    assert traces(remote) == set()


def test_without_the_deciding_store_nothing_is_removed_and_all_is_named(urls, machine):
    one = machine("one")
    published(one, open_remote(urls, config=QUICK))
    remote = open_remote(urls, config=QUICK)
    held = traces(remote)
    (port,) = free_ports(1)
    away = open_remote([s3_url("nobody", port), urls[1], urls[2]], config=QUICK)
    away.stores[0].url = urls[0]
    erase_secret(one.path)
    with pytest.raises(ErasureIncomplete, match="3 of 3 stores") as caught:
        erase(away, one.path)
    assert held <= set(caught.value.remaining)
    assert traces(remote) == held
    erase_everywhere(one.path, QUICK)
    assert traces(remote) == set()


def test_an_interrupted_erasure_goes_on_with_what_it_had_to_remove(urls, machine, monkeypatch):
    one = machine("one")
    remote = open_remote(urls[2], config=QUICK)
    published(one, remote)
    erase_secret(one.path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(import_module("megacontext.remote.erase"), "collect_store", killed)
        with pytest.raises(KeyboardInterrupt):
            erase(remote, one.path)
    assert traces(remote)  # published, not yet collected
    assert len(list(one.path.with_name("notes.mc.remote").glob("erasing-*"))) == 1
    erase(remote, one.path)
    assert traces(remote) == set()


def test_only_the_writer_may_and_only_what_was_published(urls, machine):
    one, two = machine("one"), machine("two")
    remote = open_remote(urls[2], config=QUICK)
    with pytest.raises(NotFound):
        erase(remote, one.path)
    published(one, remote)
    promote(remote, two.path, two.cache())
    erase_secret(one.path)
    with pytest.raises(Fenced, match=r"epoch 1 of .* is over"):
        erase_everywhere(one.path, QUICK)
    assert traces(remote)
    erase_secret(two.path)
    erase_everywhere(two.path, QUICK)
    assert traces(remote) == set()


def test_a_memory_that_was_never_pushed_has_nothing_elsewhere(machine):
    one = machine("one")
    one.append(100)
    assert erase_everywhere(one.path).stores == ()
