"""Publishing and fetching a memory, beside plain puts and gets of the same bytes by obstore."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.harness import Bench, Case
from benchmarks.storage.bench_append import scratch
from megacontext.config import RemoteConfig
from megacontext.remote import Cache, Reader, Writer, open_objects, open_remote
from megacontext.remote.sealed import side_folder
from megacontext.remote.tiering import ensure_local, release
from megacontext_ext import Store
from tests.python.remote.servers import ACCESS_KEY, SECRET_KEY, SeaweedFS

TESTS = "tests/python/remote/test_share.py"
WIDTH = 576  # float32 rows, one for 32 tokens
CONFIG = RemoteConfig()


@contextmanager
def places(bench: Bench, directory: Path) -> Iterator[dict[str, str]]:
    """A local folder, and at full size a SeaweedFS of its own; URLs of prefixes."""
    found = {"local folder": f"file://{directory}/place"}
    if bench.smoke:
        yield found
        return
    before = dict(os.environ)
    os.environ.update(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY)
    server = SeaweedFS(directory / "seaweedfs")
    try:
        server.start()
        yield {**found, "SeaweedFS": server.url("bench")}
    finally:
        server.kill()
        os.environ.clear()
        os.environ.update(before)


def run(bench: Bench) -> None:
    tokens = 20_000 if bench.smoke else 160_000
    with scratch() as directory, places(bench, directory) as found:
        path = _make_store(directory / "notes.mc", tokens)
        for name, url in found.items():
            _run_place(bench, directory / name, path, (name, url))


def _make_store(path: Path, tokens: int) -> Path:
    random = np.random.default_rng(0)
    with Store.create(path, {"model": "bench"}) as store:
        part = store.add_partition("text")
        store.define_rows("gist", 1, "f32", WIDTH)
        store.append_tokens(part, random.integers(0, 50_000, tokens).astype(np.uint32))
        store.put_rows("gist", part, 0, random.standard_normal((tokens // 32, WIDTH), np.float32))
        store.checkpoint()
    return path


def _run_place(bench: Bench, directory: Path, path: Path, place: tuple[str, str]) -> None:
    name, url = place
    numbers = itertools.count()
    files = [file for file in path.iterdir() if file.suffix == ".mcs" or file.name == "MANIFEST"]
    size = sum(file.stat().st_size for file in files)

    def below(prefix: str) -> str:
        base, question, query = url.partition("?")
        return f"{base}/{prefix}-{next(numbers)}{question}{query}"

    def push() -> None:
        for known in side_folder(path).glob("*"):
            known.unlink()  # as the first time: everything is hashed
        Writer.resume(open_remote(below("push"), config=CONFIG), path).push()

    def put() -> None:
        store = open_objects(below("put"), CONFIG)
        with ThreadPoolExecutor(CONFIG.parallel) as pool:
            list(pool.map(lambda file: store.put(file.name, file), files))

    params = {"place": name, "MB": round(size / 1e6, 1)}
    bench.compare(Case("push", params, 2 * size), push, {"obstore put": put})

    home, plain = below("memory"), below("plain")
    remote, other = open_remote(home, config=CONFIG), open_objects(plain, CONFIG)
    Writer.resume(remote, path).push()
    for file in files:
        other.put(file.name, file)

    def pull() -> None:
        cache = Cache(directory / f"cache-{next(numbers)}", CONFIG)
        with Reader(open_remote(home, config=CONFIG), cache) as reader:
            reader.store().read_tokens(0, 0, 32)

    def get() -> None:
        target = directory / f"got-{next(numbers)}"
        target.mkdir(parents=True)
        store = open_objects(plain, CONFIG)

        def fetch(file: Path) -> None:
            (target / file.name).write_bytes(store.get(file.name))

        with ThreadPoolExecutor(CONFIG.parallel) as pool:
            list(pool.map(fetch, files))
        with Store.open(target, read_only=True) as opened:
            opened.read_tokens(0, 0, 32)

    bench.compare(Case("open by URL, cold", params, 2 * size), pull, {"obstore get": get})
    warm = Cache(directory / "warm", CONFIG)

    def again() -> None:
        with Reader(open_remote(home, config=CONFIG), warm) as reader:
            reader.store().read_tokens(0, 0, 32)

    def one_get() -> None:
        open_objects(home, CONFIG).get("format.json")
        with Store.open(path, read_only=True) as opened:
            opened.read_tokens(0, 0, 32)

    again()
    bench.compare(Case("open by URL, warm", params), again, {"one get and a local open": one_get})

    def cool_and_warm() -> None:
        release(remote, path)
        ensure_local(path, warm)

    bench.compare(Case("release and fetch back", params, 2 * size), cool_and_warm)
