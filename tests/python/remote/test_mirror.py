"""Several stores hold one memory: quorum, fail-over, scrub and repair, promotion of a mirror."""

from __future__ import annotations

import pytest

from megacontext.remote import (
    Fenced,
    QuorumMissed,
    Reader,
    RemoteError,
    Writer,
    open_remote,
    promote,
)
from megacontext.remote.scrub import scrub
from megacontext.remote.status import status
from megacontext_ext.errors import InvalidArgument
from tests.python.remote.servers import free_ports, s3_url
from tests.python.remote.support import QUICK, require_counts_up


@pytest.fixture
def urls(tmp_path, seaweedfs) -> list[str]:
    """A local folder that decides, a server, a process's memory: three kinds of commit."""
    name = tmp_path.name
    return [f"file://{tmp_path}/first", seaweedfs.url(f"mirror-{name}"), f"memory:///m-{name}"]


def dead_url() -> str:
    (port,) = free_ports(1)
    return s3_url("nobody", port)


def test_every_store_alone_has_the_whole_memory(urls, machine):
    one = machine("one")
    total = one.append(2000)
    Writer.resume(open_remote(urls, config=QUICK), one.path).push()
    for number, url in enumerate(urls):
        with Reader(open_remote(url, config=QUICK), machine(f"r{number}").cache()) as reader:
            require_counts_up(reader.store(), total)


def test_a_write_counts_with_a_quorum_and_the_rest_is_repaired(urls, machine):
    one, two = machine("one"), machine("two")
    total = one.append(1000)
    remote = open_remote([urls[0], urls[2], dead_url()], config=QUICK)
    assert remote.quorum == 2
    assert Writer.resume(remote, one.path).push().published
    assert any("error sending request" in trouble for trouble in remote.troubles)
    with Reader(remote, two.cache()) as reader:
        require_counts_up(reader.store(), total)
    states = [store["state"] for store in status(remote)["stores"]]
    assert states[:2] == ["newest", "newest"]
    assert states[2].startswith("RemoteError")
    # The third comes back, empty.
    whole = open_remote([urls[0], urls[2], urls[1]], config=QUICK)
    assert not scrub(whole).healthy
    report = scrub(whole, repair=True)
    assert report.healthy
    assert {fault.store for fault in report.faults} == {urls[1]}
    assert scrub(open_remote(urls[1], config=QUICK)).faults == []


def test_below_the_quorum_a_push_says_so_and_goes_on_later(urls, machine):
    one = machine("one")
    one.append(1000)
    Writer.resume(open_remote(urls, config=QUICK), one.path).push()
    one.append(500)
    poor = open_remote([urls[0], dead_url()], quorum=2, config=QUICK)
    with pytest.raises(QuorumMissed, match=r"1 of 2 stores have it, the quorum is 2: .*sending"):
        Writer.resume(poor, one.path).push()
    assert Writer.resume(open_remote(urls, config=QUICK), one.path).push().published


@pytest.mark.parametrize("harm", ["missing", "rotten", "cut", "log"])
def test_reads_fail_over_and_scrub_repairs(harm, urls, machine):
    one, two = machine("one"), machine("two")
    total = one.append(1500)
    remote = open_remote(urls, config=QUICK)
    Writer.resume(remote, one.path).push()
    first = remote.stores[0]
    blob = next(iter(remote.latest().of("segments")))
    content = first.get(blob.key)
    if harm == "missing":
        first.delete(blob.key)
    elif harm == "rotten":
        first.put(blob.key, content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    elif harm == "cut":
        first.put(blob.key, content[:-1])
    else:
        for info in list(first.list("commits")):
            first.put(info.key, b"rotten")
    fresh = open_remote(urls, config=QUICK)
    with Reader(fresh, two.cache()) as reader:
        require_counts_up(reader.store(), total)
    assert fresh.troubles
    found = scrub(fresh, repair=True)
    assert [fault.store for fault in found.faults] == [urls[0]]
    assert found.healthy
    assert scrub(fresh).faults == []
    quick = scrub(fresh, deep=False)
    assert quick.bytes_read == 0


def test_a_scrub_mends_from_the_writers_own_directory(machine):
    one = machine("one")
    one.append(1500)
    remote = open_remote(f"memory:///own-{one.folder}", config=QUICK)
    Writer.resume(remote, one.path).push()
    for blob in remote.latest().blobs:
        remote.stores[0].delete(blob.key)
    assert not scrub(remote, repair=True).healthy
    assert scrub(remote, repair=True, local=one.path).healthy
    assert scrub(remote).faults == []


def test_a_mirror_is_promoted_while_the_deciding_store_is_away(urls, machine):
    one, two = machine("one"), machine("two")
    one.append(1000)
    old = Writer.resume(open_remote(urls[:2], config=QUICK), one.path)
    old.push()
    # urls[0] is lost; its mirror decides from now on.
    new = promote(open_remote(urls[1], config=QUICK), two.path, two.cache())
    total = two.append(300)
    new.push()
    # urls[0] is back, and with it the old writer.
    one.append(50)
    with pytest.raises(Fenced, match="epoch 2"):
        old.push()
    both = open_remote([urls[1], urls[0]], config=QUICK)
    assert not scrub(both).healthy
    assert scrub(both, repair=True).healthy
    for number, url in enumerate(urls[:2]):
        with Reader(open_remote(url, config=QUICK), machine(f"r{number}").cache()) as reader:
            require_counts_up(reader.store(), total)


def test_when_no_store_answers_the_error_names_it(machine):
    remote = open_remote([dead_url(), dead_url()], config=QUICK)
    with pytest.raises(RemoteError, match=r"s3://mcbucket/nobody/format\.json"):
        Reader(remote, machine("one").cache()).refresh()


def test_a_quorum_that_cannot_be_is_refused(urls):
    with pytest.raises(InvalidArgument, match=r"quorum must be in \[1, 3\], got 4"):
        open_remote(urls, quorum=4)
    with pytest.raises(InvalidArgument, match="each once"):
        open_remote([urls[0], urls[0]])
