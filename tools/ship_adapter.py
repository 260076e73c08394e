"""Put a trained, measured gist adapter into the package: file, card, metrics.

    python tools/ship_adapter.py --slices SLICE1 SLICE2 --measured gists.json \
        --manifest corpora/shards/manifest.json --base-name NAME --out DIR

A slice is an export folder of `megacontext.train.kv_gists` (card.json, adapter.safetensors), in
the order they ran; the last one's adapter is shipped. Metrics are computed again from the NLL of
every span, must agree with the summary in gists.json, and must belong to this very file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from megacontext.eval.gists import WORSE_THAN_DROP_NATS, interval

MAX_BYTES = 20_000_000
METRICS = (  # name, suite, method
    ("gap_recovery_32to1", "lod1", "gist rows @ 16"),
    ("gap_recovery_16to1", "lod1", "gist rows @ 32"),
    ("gap_recovery_8to1", "lod1", "gist rows @ 64"),
    ("gap_recovery_1024to1", "lod2", "gist rows @ 1"),
    ("gap_recovery_512to1", "lod2", "gist rows @ 2"),
    ("gap_recovery_256to1", "lod2", "gist rows @ 4"),
)


def check(name: str, got: object, wanted: object) -> None:
    if got != wanted:
        sys.exit(f"ship_adapter: {name} must be {wanted!r}, got {got!r}")


def recovery(suite: dict[str, Any], method: str) -> dict[str, Any]:
    """Value and interval out of the NLL of every span; exits if the summary says otherwise."""
    full, drop, ours = (np.array(suite["nll"][name]) for name in ("full", "drop", method))
    loss, gap = ours - full, drop - full
    passages = np.array(
        [f"{source}/{title}/{number}" for source, _, title, number in suite["spans"]]
    )
    value, bounds = 1 - float(loss.sum() / gap.sum()), interval(loss, gap, passages)
    told = suite["summary"]["methods"][method]
    for mine, theirs in zip((value, *bounds), (told["recovery"], *told["interval"]), strict=True):
        if abs(mine - theirs) > 1e-3:
            sys.exit(f"ship_adapter: {method}: the spans give {mine:.5f}, the summary {theirs:.5f}")
    return {
        "value": round(value, 4),
        "interval": [round(x, 4) for x in bounds],
        "n": len(ours),
        "passages": len(set(passages)),
    }


def worse_than_drop(suite: dict[str, Any], method: str) -> dict[str, Any]:
    """Share of spans worse than leaving the span out; bootstrapped over passages."""
    ours, drop = (np.array(suite["nll"][name]) for name in (method, "drop"))
    worse = (ours > drop + WORSE_THAN_DROP_NATS).astype(float)
    told = suite["summary"]["methods"][method]["worse_than_drop"]
    if abs(float(worse.mean()) - told) > 2 / len(worse):
        sys.exit(f"ship_adapter: worse than drop: {worse.mean():.4f}, the summary {told:.4f}")
    passages = np.array(
        [f"{source}/{title}/{number}" for source, _, title, number in suite["spans"]]
    )
    low, high = interval(1 - worse, np.ones_like(worse), passages)
    return {
        "value": round(float(worse.mean()), 4),
        "interval": [round(low, 4), round(high, 4)],
        "n": len(worse),
        "passages": len(set(passages)),
        "margin_nats": WORSE_THAN_DROP_NATS,
    }


def slice_record(card: dict[str, Any]) -> dict[str, Any]:
    """What a slice was, without the folders of the machine it ran on."""
    names = ("steps", "elapsed_s", "batch", "parameters", "validation", "config", "data_signature")
    command = re.sub(r"\S*?/(build/gpu/)", r"\1", card["command"])
    return {"command": command, **{name: card[name] for name in names}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=Path, nargs="+", required=True)
    parser.add_argument("--measured", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--base-name", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    cards = [json.loads((folder / "card.json").read_text()) for folder in options.slices]
    adapter = options.slices[-1] / "adapter.safetensors"
    measured = json.loads(options.measured.read_text())
    digest = hashlib.sha256(adapter.read_bytes()).hexdigest()
    check("the measured adapter", measured["adapter_sha256"], digest)
    check("the measured base", measured["base_fingerprint"], cards[-1]["base_fingerprint"])
    check("the bases of the slices", len({card["base_fingerprint"] for card in cards}), 1)
    if adapter.stat().st_size > MAX_BYTES:
        sys.exit(f"ship_adapter: must stay under {MAX_BYTES} bytes: {adapter.stat().st_size}")
    suites, manifest = measured["suites"], json.loads(options.manifest.read_text())
    metrics = {name: recovery(suites[suite], method) for name, suite, method in METRICS}
    metrics["worse_than_drop"] = worse_than_drop(suites["lod1"], "gist rows @ 16")
    card = {
        "format": cards[-1]["format"],
        "base": options.base_name,
        "base_fingerprint": cards[-1]["base_fingerprint"],
        "adapter_sha256": digest,
        "metrics": metrics,
        "measured": {
            "command": "python -m megacontext.eval.gists --base DIR --shard test.u16.xz "
            "--adapter adapter.safetensors --per-domain 40 --batch 16 --out DIR",
            "shard_sha256": measured["shard_sha256"],
            "dtype": measured["dtype"],
            "device": measured["device"],
        },
        "slices": [slice_record(card) for card in cards],
        "data": manifest,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    shutil.copy(adapter, options.out / "adapter.safetensors")
    (options.out / "adapter.safetensors").chmod(0o644)
    (options.out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    for name, metric in metrics.items():
        print(f"{name:22} {metric['value']:.4f} {metric['interval']} n={metric['n']}")


if __name__ == "__main__":
    main()
