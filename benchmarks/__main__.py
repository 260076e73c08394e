"""``python -m benchmarks list`` and ``python -m benchmarks run NAME...``"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.harness import Bench
from benchmarks.machine import (
    ROOT,
    Ceilings,
    commit,
    machine_card,
    machine_slug,
    measure_ceilings,
)
from benchmarks.report import write_results

# What of a kernel's tests decides about figures of a device.
GATE_FILTER = {"cpu": "not cuda", "cuda": "cuda and not cuda_emu"}


def discover() -> dict[str, str]:
    """Benchmark name, "<room>/<name>", -> module."""
    found = {}
    for path in sorted((ROOT / "benchmarks").glob("*/bench_*.py")):
        room, name = path.parent.name, path.stem.removeprefix("bench_")
        found[f"{room}/{name}"] = f"benchmarks.{room}.{path.stem}"
    return found


def select(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names that match; "gist_pool" finds "kernels/gist_pool". Exits when a pattern finds none."""
    chosen: list[str] = []
    for pattern in patterns:
        matches = [n for n in names if fnmatch(n, pattern) or fnmatch(n.split("/")[1], pattern)]
        if not matches:
            raise SystemExit(f"no benchmark is called {pattern!r}; there are: {', '.join(names)}")
        chosen += [name for name in matches if name not in chosen]
    return chosen


def gate_is_green(module: ModuleType, device: str) -> bool:
    """Runs the tests of what is measured; prints their end when they fail."""
    tests = getattr(module, "TESTS", None)
    if tests is None:
        raise SystemExit(f"{module.__name__} must name its tests in TESTS")
    tests = [tests] if isinstance(tests, str) else list(tests)
    command = [sys.executable, "-m", "pytest", *tests, "-x", "-m", "not slow"]
    command += ["-p", "no:cacheprovider"]
    if any(test.startswith("tests/kernels/") for test in tests):
        command += ["-k", GATE_FILTER[device]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-500:]]
    verdict = "green" if done.returncode == 0 else "RED"
    print(f"gate     {' '.join(tests)}: {verdict}, {lines[-1].strip('= ')}", flush=True)
    if done.returncode != 0:
        print("\n".join(lines[-25:]))
    return done.returncode == 0


def run_one(name: str, module_name: str, options: argparse.Namespace, ceilings: Ceilings) -> Any:
    """The JSON object and the lines of one benchmark, or None when its gate is red."""
    module = importlib.import_module(module_name)
    print(f"\n{name}", flush=True)
    if options.gate and not gate_is_green(module, options.device):
        print(f"{name}: no speed is printed while its tests fail")
        return None
    bench = Bench(name, options.device, options.smoke, ceilings, options.clock)
    bench.params["clock"] = options.clock
    module.run(bench)
    revision, dirty = commit()
    result = {
        "bench": name,
        "params": bench.params,
        "ratios": bench.ratios,
        "commit": revision,
        "dirty": dirty,
        "machine": machine_card(options.device),
        "samples": bench.samples,
    }
    return result, bench.lines


def merged(results: list[dict[str, Any]]) -> dict[str, Any]:
    """One object for several benchmarks: their ratios under "<bench>: <ratio>"."""
    if len(results) == 1:
        return results[0]
    ratios = {f"{r['bench']}: {k}": v for r in results for k, v in r["ratios"].items()}
    names = [r["bench"] for r in results]
    samples = sum(r["samples"] for r in results)
    return {**results[0], "bench": names, "ratios": ratios, "samples": samples}


def run(options: argparse.Namespace) -> int:
    modules = discover()
    names = select(options.names, list(modules))
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no CUDA device on this machine")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    card = machine_card(options.device)
    ceilings = measure_ceilings(options.device, options.smoke, options.clock)
    revision, dirty = commit()
    print("machine  " + ", ".join(f"{k} {v}" for k, v in card.items() if v is not None))
    print(
        f"commit   {revision}{' with changes' if dirty else ''}; copy "
        f"{ceilings.copy_bytes_per_s / 1e9:.1f} GB/s, GEMM "
        + ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in ceilings.gemm_flops_per_s.items())
    )
    results, lines, red = [], [], 0
    for name in names:
        done = run_one(name, modules[name], options, ceilings)
        if done is None:
            red += 1
            continue
        results.append(done[0])
        lines += done[1]
    out = options.out
    if out is None and not options.smoke:
        day = datetime.date.today().isoformat()
        out = ROOT / "benchmarks" / "results" / f"{day}-{machine_slug(card)}"
    if out is not None and results:
        command = "python -m benchmarks " + " ".join(sys.argv[1:])
        write_results(Path(out), results, lines, ceilings, command)
        print(f"kept in {os.path.relpath(out)}")
    if results:
        print(json.dumps(merged(results)))
    return 1 if red else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="names of all benchmarks")
    runner = verbs.add_parser("run", help="measure; the last line is one JSON object")
    runner.add_argument("names", nargs="+", metavar="NAME", help="may hold * and ?")
    size = runner.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help="tiny sizes: does it run at all?")
    size.add_argument("--full", action="store_true", help="the sizes that count (default)")
    runner.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    runner.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    runner.add_argument(
        "--clock",
        choices=["wall", "thread"],
        default="wall",
        help="thread: CPU time of the one thread, for a machine that others use too",
    )
    runner.add_argument("--out", type=Path, help="folder for raw.jsonl and summary.md")
    runner.add_argument(
        "--no-gate", dest="gate", action="store_false", help="skip the tests; with --smoke only"
    )
    options = parser.parse_args(arguments)
    if options.verb == "list":
        print("\n".join(discover()))
        return 0
    if not options.gate and not options.smoke:
        parser.error("--no-gate is for --smoke: a speed needs its tests")
    if options.clock == "thread" and (options.threads != 1 or options.device != "cpu"):
        parser.error("--clock thread is for one CPU thread")
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
