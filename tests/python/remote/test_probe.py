"""What stores can do is found by trying, and a store without a safe commit is refused."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from megacontext.config import RemoteConfig
from megacontext.remote import ObjectExists, Objects, Remote, Writer, open_objects, probe
from megacontext.remote.commits import NumberedLog, SwapLog, begin_log
from megacontext.remote.errors import RemoteError
from megacontext_ext.errors import InvalidArgument, NotFound, Unsupported
from tests.python.remote.servers import Server, free_ports, s3_url
from tests.python.remote.support import NAMED, QUICK


def test_every_kind_of_place_says_what_it_can(url):
    if NAMED and url.startswith(NAMED.partition("?")[0]):
        pytest.skip("of a named store nothing is known beforehand")
    objects = open_objects(url, QUICK)
    can = probe(objects)
    assert can.create
    assert can.lists
    assert can.swap == (not url.startswith("file:"))
    assert can.commit_path == ("numbered" if url.startswith("file:") else "swap")
    assert [info.key for info in objects.list("probe")] == []


@pytest.mark.skipif(
    importlib.util.find_spec("moto") is None,
    reason="moto is optional: pip install 'moto[s3,server]'",
)
def test_moto_can_do_both(tmp_path):
    (port,) = free_ports(1)
    program = str(Path(sys.executable).with_name("moto_server"))
    server = Server("moto", tmp_path, [program, "-H", "127.0.0.1", "-p", str(port)],
                    f"http://127.0.0.1:{port}/")  # fmt: skip
    try:
        server.start()
        import boto3

        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}",
                     region_name="us-east-1").create_bucket(Bucket="mcbucket")  # fmt: skip
        assert probe(open_objects(s3_url("m", port), QUICK)).commit_path == "swap"
    finally:
        server.kill()


@pytest.mark.skipif(
    NAMED is None,
    reason="set MEGACONTEXT_TEST_S3 to s3://bucket/prefix?endpoint=... of a store to be tried",
)
def test_a_named_store_is_safe_or_refused(machine):
    """For Ceph RGW, Swift and others: see remote/README.md."""
    objects = open_objects(str(NAMED), QUICK)
    can = probe(objects)
    print(can)
    one = machine("one")
    one.append(500)
    remote = Remote([objects], None, QUICK)
    if can.commit_path is None:
        with pytest.raises(Unsupported, match="no commit here would be safe"):
            Writer.acquire(remote, one.path)
    else:
        assert Writer.acquire(remote, one.path).push().published


class Weaker(Objects):
    """A real place in memory with one ability taken away, as some stores have it."""

    def __init__(self, lacks: str) -> None:
        inner = open_objects(f"memory:///weaker-{lacks}-{id(self)}", QUICK)
        super().__init__(inner.url, inner._store, QUICK)
        self.lacks = lacks

    def create(self, key: str, content: bytes) -> str | None:
        if self.lacks == "create ignored":  # as a store that does not know the header
            self.put(key, content)
            return None
        if self.lacks == "create refused":
            raise RemoteError(f"[create] {self.where(key)}: 501 Not Implemented")
        return super().create(key, content)

    def swap(self, key: str, content: bytes, tag: str) -> str | None:
        if self.lacks == "swap ignored":
            self.put(key, content)
            return None
        if self.lacks == "swap refused":
            raise ObjectExists(f"[swap] {self.where(key)}: 412, as Ceph RGW answers always")
        return super().swap(key, content, tag)

    def get_range(self, key: str, start: int, end: int) -> bytes:
        return self.get(key) if self.lacks == "ranges" else super().get_range(key, start, end)


@pytest.mark.parametrize("lacks", ["swap refused", "swap ignored"])
def test_without_swap_commits_are_numbered(lacks):
    log, can = begin_log(Weaker(lacks))
    assert isinstance(log, NumberedLog)
    assert not can.swap
    assert "swap" in can.reasons


@pytest.mark.parametrize("lacks", ["create refused", "create ignored"])
def test_without_create_a_writer_is_refused_and_told_why(lacks):
    with pytest.raises(Unsupported, match=r"no commit here would be safe.*create"):
        begin_log(Weaker(lacks))


def test_wrong_ranges_are_refused():
    with pytest.raises(Unsupported, match=r"bytes \[3, 7\)"):
        begin_log(Weaker("ranges"))


def test_a_prefix_keeps_its_commit_path_for_ever():
    place = Weaker("swap refused")
    begin_log(place)
    place.lacks = ""  # the store was upgraded: others still number their commits
    assert isinstance(begin_log(place)[0], NumberedLog)
    other = Weaker("")
    assert isinstance(begin_log(other)[0], SwapLog)
    other.lacks = "swap refused"
    with pytest.raises(Unsupported, match="no longer does"):
        begin_log(other)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://x/y", "must begin with one of"),
        ("/a/path", "must begin with one of"),
        ("s3://b/p?secret=x", "must be of"),
    ],
)
def test_urls_that_cannot_be_are_refused(url, message):
    with pytest.raises(InvalidArgument, match=message):
        open_objects(url)


def test_failures_name_the_operation_the_place_and_the_answer(seaweedfs, monkeypatch):
    (dead,) = free_ports(1)
    nobody = open_objects(s3_url("x", dead), RemoteConfig(retries=0, connect_timeout_s=1))
    with pytest.raises(RemoteError, match=rf"\[put\] s3://mcbucket/x/k.*{dead}"):
        nobody.put("k", b"")
    with pytest.raises(NotFound, match=r"\[get\] s3://mcbucket/x/none"):
        open_objects(seaweedfs.url("x"), QUICK).get("none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(RemoteError, match=r"(?s)\[list\].*(403|denied|privileges)"):
        list(open_objects(seaweedfs.url("x"), QUICK).list("k"))
