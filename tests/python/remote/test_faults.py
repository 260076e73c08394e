"""Servers die, lines are slow and cut, writers race: nothing wrong is published, or lost."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import pytest

from megacontext.remote import Reader, RemoteError, Writer, open_remote
from tests.python.remote.servers import SeaweedCluster, SeaweedFS, proxied
from tests.python.remote.support import QUICK, require_counts_up

LARGE = 150_000  # tokens: with their rows about 2 MB of segments


@pytest.fixture
def line(seaweedfs):
    """A proxy to the server, and the URL of a prefix through it."""
    with proxied(seaweedfs.port) as proxy:
        yield proxy


@pytest.mark.slow
def test_a_server_killed_in_the_middle_of_a_push_publishes_nothing(tmp_path, machine):
    server = SeaweedFS(tmp_path / "server")
    server.start()
    one, two = machine("one"), machine("two")
    try:
        with proxied(server.port) as proxy:
            url = server.url("killed", proxy.port)
            total = one.append(1000)
            remote = open_remote(url, config=QUICK)
            Writer.resume(remote, one.path).push()
            before = remote.latest()

            more = one.append(LARGE)
            proxy.on_bytes = (300_000, server.kill)  # in the middle of a segment
            with pytest.raises(RemoteError, match=r"\[(put|head)\] s3://mcbucket/killed/segments/"):
                Writer.resume(open_remote(url, config=QUICK), one.path).push()
            assert server.process.poll() is not None
            with pytest.raises(RemoteError, match=r"\[get\]"):
                Reader(open_remote(url, config=QUICK), two.cache()).refresh()

            server.start()
            patient = replace(QUICK, retries=10, retry_timeout_s=60.0)
            fresh = open_remote(url, config=patient)
            assert fresh.latest() == before
            with Reader(fresh, two.cache()) as reader:
                require_counts_up(reader.store(), total)
                assert Writer.resume(fresh, one.path).push().published
                assert reader.refresh()
                require_counts_up(reader.store(), more)
    finally:
        server.kill()


def test_a_push_goes_on_without_sending_again_what_arrived(line, seaweedfs, machine):
    one = machine("one")
    one.append(LARGE)
    url = seaweedfs.url(f"goes-on-{one.folder.parent.name}", line.port)
    remote = open_remote(url, config=replace(QUICK, parallel=1))
    writer = Writer.resume(remote, one.path)
    sizes = [blob.byte_count for blob in _blobs(one)]
    line.cut_after_bytes, line.cuts_left = max(sizes) // 2, 100  # only the largest never arrives
    with pytest.raises(RemoteError):
        writer.push()
    assert line.cut_count > 0
    line.cuts_left = 0
    report = writer.push()
    assert report.published
    assert 0 < report.uploaded_objects < len(sizes)


def test_cut_lines_are_tried_again(line, seaweedfs, machine):
    one, two = machine("one"), machine("two")
    total = one.append(LARGE)
    url = seaweedfs.url(f"cut-{one.folder.parent.name}", line.port)
    patient = replace(QUICK, retries=5, retry_timeout_s=20.0)
    line.cut_after_bytes, line.cuts_left = 100_000, 3
    assert Writer.resume(open_remote(url, config=patient), one.path).push().published
    assert line.cut_count == 3
    with Reader(open_remote(seaweedfs.url(url.split("?")[0].rsplit("/", 1)[1]), config=QUICK),
                two.cache()) as reader:  # fmt: skip
        require_counts_up(reader.store(), total)


def test_a_slow_line_is_waited_for_and_too_slow_a_one_says_so(line, seaweedfs, machine):
    one, two = machine("one"), machine("two")
    total = one.append(2000)
    url = seaweedfs.url(f"slow-{one.folder.parent.name}", line.port)
    line.delay_s = 0.03
    Writer.resume(open_remote(url, config=QUICK), one.path).push()
    with Reader(open_remote(url, config=QUICK), two.cache()) as reader:
        require_counts_up(reader.store(), total)
    line.delay_s = 1.0
    hasty = replace(QUICK, request_timeout_s=0.3, retries=0)
    with pytest.raises(RemoteError, match=r"\[get\] s3://mcbucket/slow.*/format\.json"):
        open_remote(url, config=hasty).latest()


@pytest.mark.parametrize("retries", [0, 3])
def test_a_lost_answer_to_the_commit_is_no_lost_commit(retries, line, seaweedfs, machine):
    """The put arrived, its answer did not: the writer finds its own commit and goes on."""
    one, two = machine("one"), machine("two")
    url = seaweedfs.url(f"answer-{retries}-{one.folder.parent.name}", line.port)
    remote = open_remote(url, config=replace(QUICK, retries=retries))
    one.append(500)
    writer = Writer.resume(remote, one.path)
    writer.push()
    total = one.append(500)
    store = remote.stores[0]
    real = store.swap

    def swap(key: str, content: bytes, tag: str) -> str | None:
        line.answers_to_drop = 1
        return real(key, content, tag)

    store.swap = swap  # type: ignore[method-assign]
    report = writer.push()
    assert line.answers_to_drop == 0
    assert report.published
    assert remote.latest().generation == report.generation
    one.append(100)
    store.swap = real  # type: ignore[method-assign]
    assert writer.push().generation == report.generation + 1
    with Reader(open_remote(url, config=QUICK), two.cache()) as reader:
        require_counts_up(reader.store(), total + 100)


RACER = """
import random
import sys
import time
from pathlib import Path
from megacontext.remote import Cache, Fenced, Writer, open_remote, promote
from megacontext_ext.errors import InvalidArgument
from tests.python.remote.support import QUICK, Machine

url, folder, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
remote, done = open_remote(url, config=QUICK), 0
for attempt in range(400):
    machine = Machine(folder / f"attempt-{attempt}")
    machine.folder.mkdir(parents=True)
    try:
        writer = promote(remote, machine.path, Cache(folder / "cache", QUICK))
        for _ in range(2):
            machine.append(10)
            writer.push()
            done += 1
            print("published", flush=True)
            if done == rounds:
                sys.exit()
    except (Fenced, InvalidArgument) as error:
        print("lost", type(error).__name__, flush=True)
        time.sleep(random.uniform(0.0, 0.3))
"""


@pytest.mark.parametrize("kind", ["file", "seaweedfs"])
def test_racing_writer_processes_never_lose_an_acknowledged_push(kind, tmp_path, machine, request):
    """Both take the writer's place from each other again and again. Every push that was
    acknowledged is in the end there, in order; every other left no trace."""
    first, last = machine("first"), machine("last")
    total = first.append(50)
    url = f"file://{tmp_path}/place"
    if kind == "seaweedfs":
        url = request.getfixturevalue("seaweedfs").url(f"race-{tmp_path.name}")
    Writer.resume(open_remote(url, config=QUICK), first.path).push()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, url, str(tmp_path / f"racer{i}"), "4"],
            stdout=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    told = [racer.communicate(timeout=200)[0].splitlines() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    published = sum(line == "published" for lines in told for line in lines)
    assert published == 8
    with Reader(open_remote(url, config=QUICK), last.cache()) as reader:
        require_counts_up(reader.store(), total + 10 * published)


@pytest.mark.slow
def test_a_replicated_cluster_goes_on_with_one_volume_server_killed(tmp_path, machine):
    cluster = SeaweedCluster(tmp_path / "cluster")
    one, two, three = machine("one"), machine("two"), machine("three")
    patient = replace(QUICK, retries=8, retry_timeout_s=60.0, request_timeout_s=20.0)
    try:
        cluster.start()
        url = cluster.url("cluster")
        remote = open_remote(url, config=patient)
        total = one.append(20_000)
        _until_it_takes_writes(remote)
        writer = Writer.resume(remote, one.path)
        writer.push()
        cluster.volumes[0].kill()
        with Reader(open_remote(url, config=patient), two.cache()) as reader:
            require_counts_up(reader.store(), total)
        more = one.append(20_000)
        assert writer.push().published
        with Reader(open_remote(url, config=patient), three.cache()) as reader:
            require_counts_up(reader.store(), more)
    finally:
        cluster.kill()


def _until_it_takes_writes(remote) -> None:
    """Volume servers register with the master some seconds after they answer."""
    deadline = time.monotonic() + 60
    while True:
        try:
            remote.stores[0].put("warm", b"up")
            return
        except RemoteError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _blobs(one):
    from megacontext.remote.sealed import content_of

    with content_of(one.path) as content:
        return content.blobs
