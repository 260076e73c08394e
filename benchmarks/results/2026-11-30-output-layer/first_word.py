"""What the output layer as one matrix saves: a step of the base, and the first word of a question.

    OMP_NUM_THREADS=1 python benchmarks/results/2026-11-30-output-layer/first_word.py OUT.json

Both ways in turn, in one process: `multiply_flat` is taken off the base and put on again. Processor
time of the thread; questions over 64k tokens, asked of a history that was just read.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch

from megacontext.eval.long.example import ExampleRequest
from megacontext.eval.long.methods.memory import MemoryMethod
from megacontext.eval.long.methods.reader import Reader
from megacontext.eval.long.tasks import task
from megacontext.models import StepInput, load
from megacontext.models.few_rows import multiply_flat

STEPS = ((1, 23), (1, 154), (4, 203))  # prompts, tokens
TASKS = ("niah_multikey_1", "qa_squad", "dialogue_update", "documents_chain")
ROUNDS = 5


def main(out: Path) -> None:
    torch.set_num_threads(1)
    base = load("smollm2")
    head, reader = base.model.get_output_embeddings(), Reader(base)
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    texts = defaultdict(set)
    requests = {name: ExampleRequest(65536, 3, 1, reader.count_tokens) for name in TASKS}
    examples = {name: task(name).make(request) for name, request in requests.items()}
    for number in range(ROUNDS + 1):
        for way in ("as torch has it", "one matrix"):
            vars(head).pop("forward", None)
            if way == "one matrix":
                multiply_flat(head)
            for prompts, tokens in STEPS:
                ids = torch.full((prompts, tokens), 1000)
                places = torch.arange(tokens).expand(prompts, tokens)
                began = time.thread_time()
                with torch.inference_mode():
                    base.step(StepInput(places, tokens=ids), base.new_cache(), 1)
                seconds[f"step {prompts} x {tokens}"][way].append(time.thread_time() - began)
            with tempfile.TemporaryDirectory() as folder:
                for name in TASKS if number < 4 else ():
                    reply = MemoryMethod(reader, Path(folder)).answer(examples[name])
                    seconds[f"first word, {name}"][way].append(reply.ttft_s)
                    texts[name].add(reply.text)
    found = {}
    for what, ways in seconds.items():
        median = {way: statistics.median(times[1:]) for way, times in ways.items()}
        share = median["one matrix"] / median["as torch has it"]
        found[what] = {**{k: round(v, 4) for k, v in median.items()}, "share": round(share, 3)}
        print(what, found[what])
    found["same answers"] = {name: len(told) == 1 for name, told in texts.items()}
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
