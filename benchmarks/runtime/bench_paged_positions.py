"""Where keys stand once a stream is longer than the model was trained for: four rules, one run.

- packed: blocks in focus one after another in timeline order (what a paged memory does);
- timeline: true positions, new to the model;
- clamped: true distances up to the trained range, and that for everything farther, as InfLLM does
  (Xiao et al. 2024);
- stretched: true positions with NTK-aware frequencies (bloc97 2023), by length over trained range.

Each rule reads a text of `--history` tokens with planted facts in steps of the same budget, and is
scored on the tokens that follow and on the facts (bench_paged_peers), with focus by the step's
queries and by the question.

    python -m benchmarks.runtime.bench_paged_positions --texts 3 --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Bench, Case
from benchmarks.runtime.bench_paged_peers import (
    COLUMNS,
    Asides,
    Score,
    Text,
    bodies,
    chosen_by_question,
    scores,
)
from megacontext.config import K
from megacontext.models import FrozenBase, load
from megacontext.paged import PagedConfig, attach
from megacontext.paged import memory as paged_memory
from megacontext.paged.rotary import LayerRotary
from megacontext.paged.step import Step, make_step
from megacontext.paged.stream import FocusLimits, Stream
from megacontext_ext.ops.focused_attention import Rope

TESTS = ["tests/python/paged/test_focus.py"]
UNLIMITED = 1 << 40
Make = Callable[[list[Stream], list[int], Any, int, torch.device], Step]


def timeline(streams: Any, counts: Any, focuses: Any, trained: int, device: Any) -> Step:
    return make_step(streams, counts, focuses, UNLIMITED, device)


def clamped(streams: Any, counts: Any, focuses: Any, trained: int, device: Any) -> Step:
    step = timeline(streams, counts, focuses, trained, device)
    start = max(0, streams[0].token_count + counts[0] - trained)
    keys = step.key_places[:, :1].clamp(min=start) + torch.arange(K, device=device)
    return replace(step, key_places=keys - start, query_places=step.query_places - start)


@dataclass
class StretchedStep(Step):
    """A step whose rotations are slower, the slowest by `stretch`."""

    stretch: float = 1.0

    def rope(self, rotary: LayerRotary) -> Rope:
        share = torch.linspace(0.0, 1.0, len(rotary.frequencies), dtype=torch.float64)
        slower = rotary.frequencies.cpu() / self.stretch**share
        return replace(rotary, frequencies=slower).tables(self.key_places, self.query_places)


def stretched(streams: Any, counts: Any, focuses: Any, trained: int, device: Any) -> Step:
    step = timeline(streams, counts, focuses, trained, device)
    length = streams[0].token_count + counts[0]
    fields = {name: getattr(step, name) for name in Step.__dataclass_fields__}
    return StretchedStep(**fields, stretch=max(1.0, length / trained))


RULES: dict[str, Make] = {
    "packed": make_step,
    "timeline": timeline,
    "clamped": clamped,
    "stretched": stretched,
}


@contextmanager
def placed(rule: str) -> Iterator[None]:
    """Memories place keys by a rule meanwhile."""
    vars(paged_memory)["make_step"] = RULES[rule]
    try:
        yield
    finally:
        vars(paged_memory)["make_step"] = make_step


@torch.inference_mode()
def measure(
    base: FrozenBase, text: Text, places: int, rules: Sequence[str] = tuple(RULES)
) -> dict[str, Score]:
    """Scores by rule and focus, one stream."""
    found = {}
    limits = FocusLimits(places, recent_tokens=places // 4)
    config = PagedConfig(limits=limits, gists="off", read_tokens=min(256, places // 2))
    wanted = chosen_by_question(base, text, config)
    for rule in rules:
        for focus in ("step", "question"):
            settings = replace(config, focus="step" if focus == "step" else "caller")
            with placed(rule), attach(base.model, settings) as memory:
                memory.read(text.history)
                asked = wanted if focus == "question" else {}
                with Asides(base.model, memory, asked) as reader:
                    found[f"{rule}, {focus} focus"] = scores(text, reader.fresh)
    return found


def run(bench: Bench) -> None:
    """One text. In the smoke size it is within the trained range, where all rules are one."""
    base = load("smollm2")
    history, places = (320, 128) if bench.smoke else (12_288, 2048)
    body = Path(__file__).read_text() * 20
    text = Text(base.tokenizer, body, 1, history, 8 if bench.smoke else 32)
    text.asked = text.asked[:1]
    began = time.perf_counter()
    found = measure(base, text, places, ("packed", "stretched") if bench.smoke else tuple(RULES))
    case = Case("one text", {"history": history, "places": places})
    bench.record(case, "all rules", [time.perf_counter() - began])
    for name, row in found.items():
        print(f"    NLL {row['follows']:.4f}, of digits {row['digits']:.2f}  {name}")


def table(rows: list[dict[str, Score]]) -> list[str]:
    """Markdown, means over texts."""
    fields = [name for name in COLUMNS if name in next(iter(rows[0].values()))]
    titles = {"follows": "NLL of what follows", "digits": "NLL of digits", "right": "numbers right"}
    lines = [f"| rule | {' | '.join(titles[name] for name in fields)} |"]
    lines.append("|---|" + "--:|" * len(fields))
    for name in rows[0]:
        cells = [COLUMNS[f].format(statistics.fmean(r[name][f] for r in rows)) for f in fields]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=3)
    parser.add_argument("--history", type=int, default=12_288)
    parser.add_argument("--scored", type=int, default=256)
    parser.add_argument("--places", type=int, default=2048)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    base = load("smollm2")
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Score]] = []
    for number, body in enumerate(bodies(options.texts, 6 * options.history)):
        text = Text(base.tokenizer, body, number, options.history, options.scored)
        rows.append(measure(base, text, options.places))
        result = {"history": options.history, "places": options.places, "texts": rows}
        (options.out / "positions.json").write_text(json.dumps(result, indent=1) + "\n")
        (options.out / "positions.md").write_text("\n".join(table(rows)) + "\n")
        print((options.out / "positions.md").read_text(), flush=True)


if __name__ == "__main__":
    main()
