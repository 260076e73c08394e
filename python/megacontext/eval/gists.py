"""Measures KV gists on held-out text: what is lost when a span is shown as n entries.

    python -m megacontext.eval.gists --base DIR --shard test.u16.xz --adapter FILE --out DIR

Protocol: 256 tokens of prefix, a 512-token span, 512 tokens of suffix scored at their true
positions. Gap recovery of a method = 1 - sum(NLL - NLL_full) / sum(NLL_drop - NLL_full) over
spans, paired; intervals are bootstrapped over passages (16,384 tokens of a document), since windows
that lie close are alike.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megacontext.eval import gist_methods as methods
from megacontext.eval import gist_selection
from megacontext.eval.gist_methods import Window
from megacontext.eval.held_out import HeldOutSpan, held_out_spans
from megacontext.gists.adapter import GistAdapter
from megacontext.gists.base import FrozenBase, base_from_folder, choose_attention
from megacontext.gists.layout import K, SpanLayout
from megacontext.gists.net import GistNet

WORSE_THAN_DROP_NATS = 0.002
Method = Callable[[Window, int], Tensor]


@dataclass(frozen=True)
class Suite:
    """A protocol: how windows are cut and how many entries stand for the span."""

    name: str
    layout: SpanLayout
    entries: tuple[int, ...]
    baselines: tuple[str, ...]


UNTRAINED: dict[str, Method] = {**methods.BASELINES, **gist_selection.METHODS}
LOD1 = Suite("lod1", SpanLayout(256, 512, 512, 1), (16, 32, 64), tuple(UNTRAINED))
LOD2 = Suite(
    "lod2",
    SpanLayout(128, 1024, 512, 1, lod=2),
    (1, 2, 4),
    ("mean KV, log-mass bias", "most recent tokens", "top attention (repeat-prefill)"),
)


def suite_methods(suite: Suite, adapter: GistAdapter | None, base: FrozenBase) -> dict[str, Method]:
    found = {name: UNTRAINED[name] for name in suite.baselines}
    if adapter is not None:
        untrained = GistAdapter(base.shape, adapter.ranks)
        found["gist rows, untrained"] = methods.gist_rows(untrained.to(base.device))
        found["gist rows"] = methods.gist_rows(adapter)
        if suite.layout.lod == 1:
            found["one gist row a block + top attention"] = methods.row_and_keys(adapter)
    return found


@torch.no_grad()
def measure(
    base: FrozenBase,
    suite: Suite,
    spans: list[HeldOutSpan],
    adapter: GistAdapter | None,
    batch: int,
    nets: Mapping[str, GistNet] | None = None,
) -> dict[str, list[float]]:
    """NLL of each span by "method @ entries", in the order of `spans`."""
    found: dict[str, list[float]] = {}
    ours = suite_methods(suite, adapter, base)
    began = time.monotonic()
    for start in range(0, len(spans), batch):
        part = np.stack([s.ids for s in spans[start : start + batch]]).astype(np.int64)
        window = Window(base, torch.from_numpy(part).to(base.device), suite.layout)
        runs: list[tuple[str, Method, int]] = [
            ("full", methods.full, 0),
            ("drop", methods.drop, 0),
            *((f"{name} @ {n}", method, n) for name, method in ours.items() for n in suite.entries),
        ]
        if suite.layout.lod == 1:
            blocks = suite.layout.span // K
            runs += [
                (f"{name} @ {blocks}", methods.embedding_gists(net), blocks)
                for name, net in (nets or {}).items()
            ]
        if suite.layout.lod == 2 and adapter is not None:
            runs.append(("gist rows of LOD 1 @ 32", _lower_rows(adapter), 32))
        for name, method, entries in runs:
            nll = window.nll(method(window, entries))
            found.setdefault(name, []).extend(nll.tolist())
        done = start + len(part)
        print(
            f"[eval] {suite.name} {done}/{len(spans)} {time.monotonic() - began:.0f} s", flush=True
        )
    return found


def _lower_rows(adapter: GistAdapter) -> Method:
    def read(window: Window, entries: int) -> Tensor:
        layout = window.layout
        lower = SpanLayout(layout.prefix, layout.span, layout.suffix, 1)
        view = object.__new__(Window)
        view.__dict__.update(window.__dict__, layout=lower)
        return methods.gist_rows(adapter)(view, entries)

    return read


def interval(
    loss: np.ndarray, gap: np.ndarray, passages: np.ndarray, draws: int = 2000
) -> tuple[float, float]:
    """95 % bootstrap interval of 1 - sum(loss) / sum(gap), resampling passages."""
    names, index = np.unique(passages, return_inverse=True)
    losses = np.bincount(index, loss, len(names))
    gaps = np.bincount(index, gap, len(names))
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(names), (draws, len(names)))
    low, high = np.quantile(1 - losses[picks].sum(1) / gaps[picks].sum(1), (0.025, 0.975))
    return float(low), float(high)


def summarise(nll: dict[str, list[float]], spans: list[HeldOutSpan]) -> dict[str, Any]:
    """By method: dNLL, recovery with its interval, share worse than drop; also by domain."""
    values = {name: np.array(v) for name, v in nll.items()}
    passages = np.array([f"{s.source}/{s.title}/{s.passage}" for s in spans])
    domains = np.array([s.domain for s in spans])
    gap = values["drop"] - values["full"]
    table = {}
    for name, value in values.items():
        if name == "full":
            continue
        loss = value - values["full"]
        by_domain = {}
        for domain in np.unique(domains):
            here = domains == domain
            low, high = interval(loss[here], gap[here], passages[here])
            by_domain[str(domain)] = {
                "recovery": 1 - float(loss[here].sum() / gap[here].sum()),
                "interval": [low, high],
                "spans": int(here.sum()),
            }
        table[name] = {
            "dnll": float(loss.mean()),
            "recovery": 1 - float(loss.sum() / gap.sum()),
            "interval": list(interval(loss, gap, passages)),
            "worse_than_drop": float((value > values["drop"] + WORSE_THAN_DROP_NATS).mean()),
            "by_domain": by_domain,
        }
    return {
        "spans": len(spans),
        "passages": len(set(passages)),
        "nll_full": float(values["full"].mean()),
        "nll_drop": float(values["drop"].mean()),
        "methods": table,
    }


def run(
    base: FrozenBase,
    shard: Path,
    adapter: GistAdapter | None,
    suites: tuple[Suite, ...],
    per_domain: int,
    batch: int,
    nets: Mapping[str, GistNet] | None = None,
) -> dict[str, Any]:
    """Every suite measured: {"suites": {name: {"summary", "nll", "spans"}}}."""
    result: dict[str, Any] = {"base_fingerprint": base.fingerprint(), "suites": {}}
    result["shard_sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    for suite in suites:
        spans = held_out_spans(shard, suite.layout.tokens + 1, per_domain)
        nll = measure(base, suite, spans, adapter, batch, nets)
        result["suites"][suite.name] = {
            "summary": summarise(nll, spans),
            "nll": {name: [round(x, 5) for x in v] for name, v in nll.items()},
            "spans": [[s.source, s.domain, s.title, s.passage] for s in spans],
        }
    return result


def main() -> None:
    from megacontext.eval.gist_report import write_markdown

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--shard", type=Path, required=True, help="test.u16.xz, .json beside it")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--gistnet", action="append", default=[], help="name=FILE, embedding gists")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-domain", type=int, default=40)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--suites", default="lod1,lod2")
    parser.add_argument("--methods", help="only these, with '; ' between them")
    parser.add_argument("--entries", help="in place of a suite's own, comma-separated")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    options = parser.parse_args()
    device = torch.device(options.device)
    print(f"[eval] attention: {choose_attention(device)}", flush=True)
    base = base_from_folder(options.base, getattr(torch, options.dtype), device)
    adapter = GistAdapter.load(options.adapter).to(device) if options.adapter else None
    suites = tuple(s for s in (LOD1, LOD2) if s.name in options.suites.split(","))
    if options.methods:
        wanted = tuple(options.methods.split("; "))
        if unknown := set(wanted) - set(UNTRAINED):
            parser.error(f"--methods must be of {sorted(UNTRAINED)}, got {sorted(unknown)}")
        suites = tuple(replace(s, baselines=wanted) for s in suites)
    if options.entries:
        numbers = tuple(int(n) for n in options.entries.split(","))
        suites = tuple(replace(s, entries=numbers) for s in suites)
    if bad := [each for each in options.gistnet if "=" not in each]:
        parser.error(f"--gistnet must be name=FILE, got {bad[0]!r}")
    named = dict(each.split("=", 1) for each in options.gistnet)
    nets = {name: GistNet.load(Path(file)).to(device) for name, file in named.items()}
    result = run(base, options.shard, adapter, suites, options.per_domain, options.batch, nets)
    result["dtype"], result["device"] = options.dtype, str(device)
    if options.adapter:
        result["adapter_sha256"] = hashlib.sha256(options.adapter.read_bytes()).hexdigest()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gists.json").write_text(json.dumps(result))
    write_markdown(result, options.out / "gists.md")
    print((options.out / "gists.md").read_text())


if __name__ == "__main__":
    main()
