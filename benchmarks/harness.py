"""Compares our code with its peers in one process: interleaved rounds, medians, ceilings, hashes.

A benchmark is a file ``benchmarks/<room>/bench_<name>.py`` with

    TESTS = "tests/kernels/test_gist_pool.py"    # must pass before a speed is printed

    def run(bench: Bench) -> None:
        for case in ...:
            bench.compare(Case(...), ours=lambda: ..., peers={"torch mean": lambda: ...})

Everything that is set up inside ``run`` must respect ``bench.smoke``: the smoke size runs in every
test run and takes well under a second.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.machine import CLOCKS, Ceilings

__all__ = ["Bench", "Case", "Measured"]

SAMPLES_FULL = 15  # at least 9 are reported
SAMPLES_SMOKE = 3
SAMPLE_SECONDS_FULL = 0.02  # a CPU sample repeats the call until it lasts this long
GPU_SAMPLES_FULL = 30
FLUSH_BYTES = {"cpu": 128 * 1024 * 1024, "cuda": 256 * 1024 * 1024}

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One line of a table: what is called, and the least work it can be done with."""

    name: str
    params: Mapping[str, Any]
    moved_bytes: float | None = None  # read + written once, at best
    flops: float | None = None
    dtype: str = "float32"  # chooses the ceiling of `flops`
    cold: bool = False  # flush the caches before each call; on CUDA they always are


@dataclass
class Measured:
    """Seconds of each call in each round, for one contestant."""

    contestant: str
    seconds: list[float] = field(default_factory=list)
    result_hash: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p90(self) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]


class Bench:
    """One run of one benchmark: collects lines and ratios."""

    def __init__(
        self, name: str, device: str, smoke: bool, ceilings: Ceilings, clock: str = "wall"
    ) -> None:
        self.name, self.device, self.smoke, self.ceilings = name, device, smoke, ceilings
        self._now = CLOCKS[clock]
        self.lines: list[dict[str, Any]] = []
        self.ratios: dict[str, float] = {}
        self.params: dict[str, Any] = {"device": device, "size": "smoke" if smoke else "full"}
        self.samples = 0
        self._flush_buffer: torch.Tensor | None = None

    def compare(
        self,
        case: Case,
        ours: Call,
        peers: Mapping[str, Call] | None = None,
        goals: Mapping[str, float] | None = None,
    ) -> dict[str, Measured]:
        """Times ours and every peer in interleaved rounds and prints one line each.

        Args:
            case: what is measured.
            ours, peers: calls without arguments. What they return is hashed, so that a result which
                changes is seen.
            goals: peer name -> least ratio (their median over our median) that is wanted.

        Returns:
            The samples by contestant; ours is called "megacontext".
        """
        calls: dict[str, Call] = {"megacontext": ours, **(peers or {})}
        measured = {name: Measured(name) for name in calls}
        repeats = {}
        for name, call in calls.items():
            measured[name].result_hash = result_hash(call())
            repeats[name] = self._repeats(case, call)
        rounds = SAMPLES_SMOKE
        if not self.smoke:
            rounds = GPU_SAMPLES_FULL if self.device == "cuda" else SAMPLES_FULL
        for _ in range(rounds):
            for name, call in calls.items():
                measured[name].seconds.append(self._sample(case, call, repeats[name]))
        self.samples += rounds * len(calls)
        for contestant in measured.values():
            self._print_line(case, contestant)
        for peer in peers or {}:
            ratio = measured[peer].median / measured["megacontext"].median
            self.record_ratio(f"{case.name} vs {peer}", ratio, (goals or {}).get(peer))
        return measured

    def record_ratio(self, name: str, ratio: float, goal: float | None = None) -> None:
        """A named comparison, ours over theirs: bigger is better."""
        self.ratios[name] = round(ratio, 4)
        wanted = (
            "" if goal is None else f"  goal {goal:g}: {'reached' if ratio >= goal else 'MISSED'}"
        )
        print(f"    {ratio:8.2f}x  {name}{wanted}", flush=True)

    def record(self, case: Case, contestant: str, seconds: list[float], digest: str = "") -> None:
        """A line whose samples were taken elsewhere (another process, a server)."""
        self.samples += len(seconds)
        self._print_line(case, Measured(contestant, list(seconds), digest))

    # ---- timing ----

    def _repeats(self, case: Case, call: Call) -> int:
        if self.smoke or self.device == "cuda" or case.cold:
            return 1
        start = self._now()
        call()
        once = max(self._now() - start, 1e-7)
        return max(1, min(100_000, int(SAMPLE_SECONDS_FULL / once)))

    def _sample(self, case: Case, call: Call, repeats: int) -> float:
        if self.device == "cuda":
            return self._cuda_sample(call)
        if case.cold and not self.smoke:
            self._flush()
        start = self._now()
        for _ in range(repeats):
            call()
        return (self._now() - start) / repeats

    def _cuda_sample(self, call: Call) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush()  # also keeps the device busy while the host enqueues the call
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def _flush(self) -> None:
        if self._flush_buffer is None:
            count = FLUSH_BYTES[self.device] // 4
            self._flush_buffer = torch.zeros(count, dtype=torch.int32, device=self.device)
        self._flush_buffer.add_(1)

    # ---- reporting ----

    def _print_line(self, case: Case, measured: Measured) -> None:
        median = measured.median
        line: dict[str, Any] = {
            "bench": self.name,
            "case": case.name,
            "contestant": measured.contestant,
            "device": self.device,
            "params": dict(case.params),
            "caches": "cold" if case.cold or self.device == "cuda" else "warm",
            "median_s": median,
            "min_s": min(measured.seconds),
            "p90_s": measured.p90,
            "hash": measured.result_hash,
            "samples_s": measured.seconds,
        }
        shown = [
            f"  {measured.contestant:<22}{case.name:<34}",
            " ".join(f"{key}={value}" for key, value in case.params.items()),
            f"  {_time(median)} (min {_time(min(measured.seconds))}, p90 {_time(measured.p90)})",
        ]
        if case.moved_bytes is not None:
            rate = case.moved_bytes / median
            line["bytes_per_s"], line["share_of_copy"] = rate, self.ceilings.share_of_copy(rate)
            shown.append(f"  {rate / 1e9:.1f} GB/s = {100 * line['share_of_copy']:.0f}% of copy")
        if case.flops is not None:
            rate = case.flops / median
            share = self.ceilings.share_of_gemm(rate, case.dtype)
            line["flops_per_s"], line["share_of_gemm"] = rate, share
            line["flops_per_byte"] = case.flops / case.moved_bytes if case.moved_bytes else None
            percent = "" if share is None else f" = {100 * share:.0f}% of GEMM"
            shown.append(f"  {rate / 1e9:.1f} GFLOP/s{percent}")
        if measured.result_hash:
            shown.append(f"  hash {measured.result_hash[:8]}")
        self.lines.append(line)
        print("".join(shown), flush=True)


def result_hash(result: Any) -> str:
    """The first 16 digits of SHA-256 over what a call returned; "" when it returned nothing."""
    digest = hashlib.sha256()
    if not _hash_into(digest, result):
        return ""
    return digest.hexdigest()[:16]


def _hash_into(digest: Any, result: Any) -> bool:
    if result is None:
        return False
    if isinstance(result, torch.Tensor):
        plain = result.detach().contiguous().cpu().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b"empty")
        return True
    if isinstance(result, list | tuple):
        return sum(_hash_into(digest, part) for part in result) > 0
    digest.update(repr(result).encode())
    return True


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.2f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
