"""The table of what each family can do: rows of verdicts, written by one command and checked by the
tests.

    python tests/portability/capabilities.py      writes python/megacontext/models/CAPABILITIES.md
"""

from __future__ import annotations

import sys
from functools import cache, lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from families import FAMILIES, Family

from megacontext.models import load
from megacontext.models.catalog import installed
from megacontext.models.port.arithmetic import BaseShape
from megacontext.models.port.checks import CHECKS, Subject, Verdict, verdict
from megacontext.paged.certify import PAGED_CHECKS

TABLE = (
    Path(__file__).resolve().parents[2] / "python" / "megacontext" / "models" / "CAPABILITIES.md"
)
# Real weights, by the names that `load` knows.
REAL = {"SmolLM2-135M-Instruct": "smollm2", "Gemma-3-270M": "gemma3"}
ALL_CHECKS = CHECKS | PAGED_CHECKS
_MARKS = {"pass": "yes", "degraded": "degraded", "fail": "no"}
_INTRODUCTION = """# Capabilities of base families

Each row is a model of the family's true architecture: tiny and randomly initialised, but for the
last two, which have real weights (Gemma 3 comes in optional packages under its own terms; its row
is compared where they are installed). Each column is a check of `port/checks.py` or
`paged/certify.py`, whose docstring says what is asked. `tests/portability` computes every cell and
compares it with this page; a checkpoint of your own is certified by `pytest -m portability --model
PATH` or `megacontext port PATH`.

`reads_text` is degraded where weights are random. `rotary_positions` is degraded for absolute
positions: such a base can be used with contiguous positions, but neither timeline positions nor
keys at another place. `paged_memory` (heads of 64 in the tiny models, for which there are kernels)
is degraded where the architecture has no paged mode yet; the base is then used by recomputing its
prompt. `graph_capture` is torch.compile's capture as one graph. Not checked here: real weights of
other families, int4 weights, code that torch.compile generates.
"""


@lru_cache(maxsize=2)
def subject(name: str) -> Subject:
    """The family called `name`, or the real model."""
    if name in REAL:
        return Subject(load(REAL[name], dtype="float32"))
    return Subject(family(name).base(), trained=False)


def missing(name: str) -> str:
    """Why a row cannot be computed here: an optional package; empty when it can."""
    return "" if name not in REAL else installed(REAL[name])


def family(name: str) -> Family:
    return next(entry for entry in FAMILIES if entry.name == name)


def names() -> list[str]:
    return [*(entry.name for entry in FAMILIES), *REAL]


@cache
def verdict_of(name: str, check: str) -> Verdict:
    if check in PAGED_CHECKS and name not in REAL:
        wide = Subject(family(name).base(wide=True), trained=False)
        return verdict(PAGED_CHECKS[check], wide)
    return verdict(ALL_CHECKS[check], subject(name))


def traits(name: str) -> str:
    """What makes the architecture special, out of its configuration."""
    config = subject(name).base.model.config
    shape = BaseShape.of(config)
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    found = []
    if shape.kv_head_count < shape.head_count:
        found.append(f"{shape.head_count // shape.kv_head_count} heads a KV head")
    if shape.sliding_window:
        found.append("sliding windows")
    if rope.get("rope_type", "default") != "default":
        found.append(f"{rope['rope_type']} rope")
    if shape.experts:
        found.append(f"{shape.experts} experts")
    if getattr(text, "attn_logit_softcapping", None):
        found.append("soft caps")
    if 0 in (getattr(text, "no_rope_layers", None) or ()):
        found.append("layers without positions")
    if getattr(config, "vision_config", None) is not None:
        found.append("text path of a vision model")
    if config.tie_word_embeddings:
        found.append("tied head")
    if subject(name).base.tokenizer.has_chat_template:
        found.append("chat template")
    return ", ".join(found) or "-"


def row(name: str) -> str:
    cells = [_MARKS[verdict_of(name, check).status] for check in ALL_CHECKS]
    return f"| {name} | {traits(name)} | " + " | ".join(cells) + " |"


def committed_rows() -> dict[str, dict[str, str]]:
    """Cells of the page by family and column."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head = split[0]
    return {cells[0]: dict(zip(head, cells, strict=True)) for cells in split[2:]}


def mark(name: str, check: str) -> str:
    return _MARKS[verdict_of(name, check).status]


def main() -> None:
    head = f"| family | architecture | {' | '.join(ALL_CHECKS)} |"
    rule = "| :-- | :-- |" + " :-- |" * len(ALL_CHECKS)
    rows = []
    for name in names():
        rows.append(row(name))
        print(rows[-1], flush=True)
    TABLE.write_text(_INTRODUCTION + "\n" + "\n".join((head, rule, *rows)) + "\n")


if __name__ == "__main__":
    main()
