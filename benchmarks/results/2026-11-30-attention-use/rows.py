"""Which rows SmolLM2 keeps of LOG.md by attention_use, by the torch code before it, and by float32
arithmetic on the same keys; and the CPU seconds of reading with either. From the repository root:

    OMP_NUM_THREADS=1 python -m benchmarks.results.2026-11-30-attention-use.rows bfloat16
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.kernels.bench_attention_use import torch_use
from megacontext.gists.selection import choose_rows
from megacontext.models import load
from megacontext.paged import PagedConfig, attach, kept
from megacontext.paged.stream import FocusLimits
from megacontext_ext.reference import attention_use as reference

TOKENS = 4160  # four pages of 1,024
WIDE = FocusLimits(budget_places=4096, recent_tokens=4096)
now = kept.expected_use


def before(queries: Tensor, keys: Tensor, values: Tensor, *competing: Tensor) -> Tensor:
    use = torch_use(queries, torch.cat((keys, *competing), 2), keys.shape[2])
    return use * values.float().square().sum(-1)


def exact(queries: Tensor, keys: Tensor, values: Tensor, *competing: Tensor) -> Tensor:
    seen = torch.cat((keys, *competing), 2).float()
    use = reference.attention_use(queries.float(), seen, keys.shape[2])
    return use * values.float().square().sum(-1)


def read(model, ids: Tensor) -> float:
    with torch.inference_mode(), attach(model, PagedConfig(limits=WIDE, gists="kept")) as memory:
        start = time.process_time()
        memory.read(ids)
        return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    base = load("smollm2")
    model = base.model.to(getattr(torch, sys.argv[1]))
    tokens = base.tokenizer.encode(Path("LOG.md").read_text(encoding="utf-8")[:60000])
    ids = torch.tensor([[int(token) for token in tokens[:TOKENS]]])
    for name, measure in (("now", now), ("before", before)) * 3:
        kept.expected_use = measure
        print(f"{name}: {read(model, ids):.2f} CPU seconds for {TOKENS} tokens")

    calls: list[list[Tensor]] = []

    def all_three(*args: Tensor) -> Tensor:
        calls.append([measure(*args)[0] for measure in (now, before, exact)])
        return calls[-1][0][None]

    kept.expected_use = all_three
    read(model, ids)
    layers = model.config.num_hidden_layers
    for page in range(len(calls) // layers):
        uses = [torch.stack(u) for u in zip(*calls[page * layers :][:layers], strict=True)]
        total = layers * uses[0].shape[1] * 32
        rows = [choose_rows(use, total) for use in uses]
        ours, theirs, wanted = (
            set(zip(r.owner.tolist(), r.token.tolist(), strict=True)) for r in rows
        )
        errors = [float((use - uses[2]).abs().sum() / uses[2].sum()) for use in uses[:2]]
        print(
            f"page {page}, {total} rows: now and before {len(ours & theirs)}, now and exact "
            f"{len(ours & wanted)}, before and exact {len(theirs & wanted)}; relative error of use "
            f"now {errors[0]:.1e}, before {errors[1]:.1e}"
        )


if __name__ == "__main__":
    main()
