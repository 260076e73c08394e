"""A paged memory under kills: a stream without end, questions, a memory limit, a reference replay.

A child reads a stream block by block into a store, far beyond its budget and its limit on pages.
Every few blocks it asks on the side, with random blocks in focus: the logits' digest is the answer.
What is out of focus is shown by kept rows, unless `--gists off`. The parent kills it (SIGKILL) at
random moments and starts it again on the same store. In the end a reference that was never
interrupted, has no store and no limit on memory replays the stream: every answer, of every life,
must be its answer bit for bit.

    python -m benchmarks.runtime.soak --minutes 5 --out FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.runtime.bench_paged_decode import own_kib, tiny
from megacontext.models.kv_cache import CACHE_ARGUMENT
from megacontext.paged import PagedConfig, PagedMemory, attach
from megacontext.paged.stream import FocusLimits
from megacontext_ext import Store

K = 32
ASK_EVERY_BLOCKS = 8
PROBE_TOKENS = 40
PAGES_MAX = {"off": 24, "kept": 40}  # choosing rows needs what precedes them, too
LIMITS = FocusLimits(budget_places=256, recent_tokens=64)


def block_ids(block: int, count: int = K) -> Tensor:
    """The stream's tokens, a function of the block's number alone."""
    generator = torch.Generator().manual_seed(7919 * block + count)
    return torch.randint(3, 256, (1, count), generator=generator)


def config(pages_max: int, pages: Any, gists: Any) -> PagedConfig:
    return PagedConfig(
        limits=LIMITS, pages_max=pages_max, read_tokens=K, gists=gists, gist_rows=4, pages=pages,
        commit_tokens=8 * K,
    )  # fmt: skip


@torch.inference_mode()
def live(model: Any, memory: PagedMemory) -> Iterator[tuple[int, str]]:
    """Reads on for ever; yields (blocks read, digest of the logits) at every question."""
    while True:
        block = memory.token_count // K
        memory.read(block_ids(block))
        block += 1
        if block % ASK_EVERY_BLOCKS:
            continue
        with memory.aside():
            memory.focus(random.Random(block).sample(range(block), min(4, block)))
            logits = model(block_ids(block, PROBE_TOKENS), **{CACHE_ARGUMENT: memory.cache}).logits
        yield block, hashlib.sha256(logits.numpy().tobytes()).hexdigest()[:16]


def child(store: Path, pages: Any, gists: Any) -> None:
    """Lives until it is killed; a line an answer."""
    model, most = tiny(), PAGES_MAX[gists]
    with attach(model, config(most, pages, gists), store=store) as memory:
        for block, digest in live(model, memory):
            assert memory.pool.page_count <= most
            traffic = memory.traffic
            print(block, digest, own_kib(), traffic.evicted, traffic.brought_in, flush=True)


def lives(store: Path, options: argparse.Namespace) -> list[list[list[str]]]:
    """The answers of each life: lines of block, digest, own KiB, evicted, brought in."""
    rng, found = random.Random(options.seed), []
    end = time.monotonic() + 60 * options.minutes
    while time.monotonic() < end:
        call = [sys.executable, "-m", "benchmarks.runtime.soak", "--child", str(store)]
        process = subprocess.Popen(
            [*call, "--pages", options.pages, "--gists", options.gists],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        lines = [process.stdout.readline()]  # it lives
        time.sleep(min(rng.uniform(0.5, options.life_s), max(0.5, end - time.monotonic())))
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        lines += rest.splitlines()
        # A kill may cut the last line.
        answers = [line.split() for line in lines if len(line.split()) == 5]
        if process.returncode != -signal.SIGKILL or not answers:
            raise SystemExit(f"a life ended by itself with {process.returncode}: {lines[-3:]}")
        found.append(answers)
        print(f"life {len(found)}: to block {answers[-1][0]}, {answers[-1][2]} KiB", flush=True)
    return found


def replay(last: int, store: Path, gists: str) -> dict[int, str]:
    """The answers of a memory that nothing happens to. Rounding pages needs a store of its own."""
    model, found = tiny(), {}
    with Store.open(store, read_only=True) as held:
        pages = held.identity["pages"]
    with tempfile.TemporaryDirectory() as folder:
        own = None if pages == "f32" else Path(folder) / "replay.kv"
        # Twice as many pages as blocks: those of gists are less than the rest.
        most, kept = (0, None) if own is None else (2 * last + 64, pages)
        unlimited = config(most, kept, gists)
        with attach(model, unlimited, store=own) as memory:
            for block, digest in live(model, memory):
                found[block] = digest
                if block >= last:
                    return found
    raise AssertionError("the stream has no end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--life-s", type=float, default=12.0, help="longest life after first words")
    parser.add_argument("--pages", default="f32", choices=("f32", "bf16", "int8"))
    parser.add_argument("--gists", default="kept", choices=("kept", "off"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child, options.pages, options.gists)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "soak.kv"
        found = lives(store, options)
        last = max(int(answers[-1][0]) for answers in found)
        wanted = replay(last, store, options.gists)
        with Store.open(store) as held:
            held.check()
    answers = [(int(a[0]), a[1]) for life in found for a in life]
    wrong = [(block, digest) for block, digest in answers if wanted[block] != digest]
    own = [int(life[-1][2]) for life in found]
    result = {
        "minutes": options.minutes,
        "pages": options.pages,
        "gists": options.gists,
        "lives": len(found),
        "tokens": last * K,
        "answers": len(answers),
        "asked_again_after_a_kill": len(answers) - len({block for block, _ in answers}),
        "wrong": len(wrong),
        "evicted": sum(int(life[-1][3]) for life in found),
        "brought_in": sum(int(life[-1][4]) for life in found),
        "own_kib_first_and_last_life": [own[0], own[-1]],
        "store_check": "no fault",
    }
    print(json.dumps(result, indent=1))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        name = f"soak-{options.pages}-{options.gists}.json"
        (options.out / name).write_text(json.dumps(result, indent=1) + "\n")
    if wrong:
        raise SystemExit(f"{len(wrong)} answers differ from the replay: {wrong[:3]}")


if __name__ == "__main__":
    main()
