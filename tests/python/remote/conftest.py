"""One SeaweedFS a test run and worker, every kind of place, and small stores to push."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megacontext.remote import Remote, open_remote
from tests.python.remote.servers import ACCESS_KEY, SECRET_KEY, SeaweedFS
from tests.python.remote.support import NAMED, QUICK, Machine

_numbers = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def _credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if NAMED:  # with keys of its own
            yield
            return
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        yield


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    server = SeaweedFS(tmp_path_factory.mktemp("seaweedfs"))
    try:
        yield server.start()  # type: ignore[misc]
    finally:
        server.kill()


@pytest.fixture(params=["memory", "file", "seaweedfs", *(["named"] if NAMED else [])])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh place of every kind: commits by swap, numbered, and by swap on a real server."""
    name = f"place-{next(_numbers)}"
    if request.param == "named":
        base, _, query = str(NAMED).partition("?")
        return f"{base}/{os.getpid()}-{name}?{query}"
    if request.param == "memory":
        return f"memory:///{name}"
    if request.param == "file":
        return f"file://{tmp_path}/{name}"
    return request.getfixturevalue("seaweedfs").url(name)


@pytest.fixture
def remote(url: str) -> Remote:
    return open_remote(url, config=QUICK)


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[str], Machine]:
    def make(name: str) -> Machine:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Machine(folder)

    return make
