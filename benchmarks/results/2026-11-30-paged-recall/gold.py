"""How many questions have all of their gold in 512 places, by words alone and with names.

    python benchmarks/results/2026-11-30-paged-recall/gold.py OUT.json [parts ...]

The texts and questions of `bench_paged_recall`; nothing is read by a model.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.runtime.bench_paged_recall import Recall, parts_of
from megacontext.config import K
from megacontext.eval.long.methods.reader import Reader
from megacontext.models import load
from megacontext.paged.text_focus import TextFocus
from megacontext_ext import Store

PLACES, APPENDED = 512, 4096 * K


class WordsAlone(TextFocus):
    def _named(self, question, partition, count):
        return {}


def main(out: Path, counts: list[int]) -> None:
    base = load("smollm2")
    reader = Reader(base)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        recall = Recall(reader, parts_of(max(counts), 4096, reader), Path(folder) / "out")
        for read in counts:
            tokens = recall.tokens[: int(recall.ends[read]) // K * K].astype(np.uint32)
            with Store.create(f"{folder}/{read}", {}) as store:
                store.add_partition("stream-0")
                for start in range(0, len(tokens), APPENDED):
                    store.append_tokens(0, tokens[start : start + APPENDED])
                for kind in (WordsAlone, TextFocus):
                    focus, whole, seconds = kind(store, base.tokenizer), 0, []
                    for number in range(read):
                        began = time.perf_counter()
                        scores = focus.score(recall.parts[number].question, 0, 2048 // K)
                        seconds.append(time.perf_counter() - began)
                        whole += recall.gold_blocks(number) <= set(list(scores)[: PLACES // K])
                    found[f"{len(tokens)} tokens, {kind.__name__}"] = {
                        "questions": read,
                        "all gold": whole,
                        "median ms": 1e3 * float(np.median(seconds)),
                    }
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(n) for n in sys.argv[2:]] or [18, 72, 252])
