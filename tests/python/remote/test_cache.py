"""The local cache: a limit, sharing by processes, rot, interrupted downloads."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from megacontext.remote import Cache, Reader, Writer, open_remote
from megacontext_ext.errors import IoError
from tests.python.remote.support import QUICK, require_counts_up


@pytest.fixture
def places(machine):
    """Three memories of about the same size, each pushed."""
    found = []
    for name in ("a", "b", "c"):
        one = machine(name)
        one.append(4000)
        remote = open_remote(f"memory:///{one.folder}", config=QUICK)
        Writer.resume(remote, one.path).push()
        found.append(remote)
    return found


def test_the_least_recently_used_goes_and_what_is_open_stays(places, tmp_path):
    size = places[0].latest().byte_count
    config = replace(QUICK, cache_bytes=int(size * 2.5))
    with Reader(places[0], Cache(tmp_path / "cache", config)) as open_one:
        open_one.store()
        for place in places[1:]:
            with Reader(place, Cache(tmp_path / "cache", config)) as reader:
                require_counts_up(reader.store(), 4000)
                assert reader.fetched.fetched_bytes > 0.9 * size
                assert Cache(tmp_path / "cache", config).used_bytes() <= config.cache_bytes
        with Reader(places[0], Cache(tmp_path / "cache", config)) as again:
            require_counts_up(again.store(), 4000)
            assert again.fetched.fetched_objects == 0
        with Reader(places[1], Cache(tmp_path / "cache", config)) as gone:
            gone.store()
            assert gone.fetched.fetched_objects >= 1


def test_a_memory_larger_than_the_limit_is_refused_with_the_numbers(places, tmp_path):
    config = replace(QUICK, cache_bytes=1000)
    with pytest.raises(IoError, match=r"needs [\d,]+ bytes, the limit is 1,000"):
        Reader(places[0], Cache(tmp_path / "cache", config)).refresh()


def test_rot_in_the_cache_is_found_and_fetched_again(places, tmp_path):
    cache = Cache(tmp_path / "cache", QUICK)
    with Reader(places[0], cache) as reader:
        reader.store()
    assert cache.verify() == []
    blob = next(iter(places[0].latest().of("segments")))
    path = tmp_path / "cache" / "objects" / blob.sha256
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert cache.verify() == [blob.sha256]
    cache._drop_views()
    with Reader(places[0], cache) as reader:
        require_counts_up(reader.store(), 4000)
        assert reader.fetched.fetched_objects == 1


def test_a_download_goes_on_where_it_stopped(places, tmp_path):
    blob = max(places[0].latest().blobs, key=lambda blob: blob.byte_count)
    store = places[0].stores[0]
    whole = store.get(blob.key)
    path = tmp_path / "partial"
    path.write_bytes(whole[:1000])
    asked: list[int] = []
    real = store.get_range
    store.get_range = lambda key, start, end: asked.append(start) or real(key, start, end)
    store.download(blob.key, path, blob.byte_count, blob.sha256)
    assert path.read_bytes() == whole
    assert asked[0] == 1000


READ = """
import sys
from pathlib import Path
from megacontext.remote import Cache, Reader, open_remote
with Reader(open_remote(sys.argv[1]), Cache(Path(sys.argv[2]))) as reader:
    store = reader.store()
    store.check()
    print(store.token_count(0), reader.fetched.fetched_objects)
"""


def test_processes_share_one_cache_and_fetch_once(machine, tmp_path):
    one = machine("one")
    one.append(4000)
    url = f"file://{tmp_path}/place"
    remote = open_remote(url, config=QUICK)
    Writer.resume(remote, one.path).push()
    command = [sys.executable, "-c", READ, url, str(tmp_path / "cache")]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [reader.communicate(timeout=120)[0].split() for reader in readers]
    assert [words[0] for words in told] == ["4000", "4000"]
    assert sum(int(words[1]) for words in told) == len(remote.latest().blobs)
