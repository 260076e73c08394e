"""What the figures were measured on: a card of the machine, and what it can do at best."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["CLOCKS", "Ceilings", "commit", "machine_card", "machine_slug", "measure_ceilings"]

ROOT = Path(__file__).resolve().parent.parent
_MIB = 1024 * 1024
# "thread" counts what this thread computed, not what it waited: for one thread on a shared machine.
CLOCKS = {"wall": time.perf_counter, "thread": time.thread_time}


@dataclass(frozen=True)
class Ceilings:
    """Best rates seen on this machine in this run, with the same threads."""

    copy_bytes_per_s: float  # read + written
    gemm_flops_per_s: dict[str, float]  # by dtype

    def share_of_copy(self, bytes_per_s: float) -> float:
        return bytes_per_s / self.copy_bytes_per_s

    def share_of_gemm(self, flops_per_s: float, dtype: str) -> float | None:
        best = self.gemm_flops_per_s.get(dtype)
        return flops_per_s / best if best else None


def commit() -> tuple[str, bool]:
    """Commit of the working tree and whether it has changes; ("unknown", True) without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short=12", "HEAD"), bool(changes)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("MC_COMMIT", "unknown"), True


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def machine_card(device: str) -> dict[str, Any]:
    """Names and versions that decide a figure."""
    card: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpu": None,
    }
    if device == "cuda":
        card["gpu"] = torch.cuda.get_device_name()
        card["cuda"] = torch.version.cuda
    return card


def machine_slug(card: dict[str, Any]) -> str:
    """The card as a folder name: "h100-80gb-hbm3" or "epyc-9r14-2-cores"."""
    name = card["gpu"] or f"{card['cpu'].split('@')[0]} {card['cores']} cores"
    name = re.sub(
        r"\b(nvidia|amd|intel|processor|cpu|geforce|\d+-core)\b|\(.*?\)", " ", name.lower()
    )
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-") or "machine"


def _best_seconds(call: Callable[[], Any], device: str, rounds: int, clock: str) -> float:
    best, now = float("inf"), CLOCKS[clock]
    for _ in range(rounds):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            seconds = begin.elapsed_time(end) / 1e3
        else:
            start = now()
            call()
            seconds = now() - start
        best = min(best, seconds)
    return best


def measure_ceilings(device: str, smoke: bool, clock: str = "wall") -> Ceilings:
    """Copy bandwidth and matrix products of this machine, with torch's own kernels."""
    rounds = 2 if smoke else 8
    count = (4 if smoke else 256 if device == "cpu" else 1024) * _MIB // 4
    source, target = torch.ones(count, device=device), torch.empty(count, device=device)
    copy_seconds = _best_seconds(lambda: target.copy_(source), device, rounds, clock)
    size = 128 if smoke else 1024 if device == "cpu" else 8192
    gemm = {}
    for dtype in (torch.float32, torch.bfloat16):
        left = torch.randn(size, size, device=device).to(dtype)
        right = torch.randn(size, size, device=device).to(dtype)
        out = torch.empty(size, size, device=device, dtype=dtype)
        seconds = _best_seconds(
            lambda a=left, b=right, c=out: torch.mm(a, b, out=c), device, rounds, clock
        )
        gemm[str(dtype).removeprefix("torch.")] = 2 * size**3 / seconds
    return Ceilings(2 * 4 * count / copy_seconds, gemm)
