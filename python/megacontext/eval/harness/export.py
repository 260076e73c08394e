"""Writes examples of the long tasks as files that other people's harnesses read.

    lm-eval    data/<task>_<length>.jsonl, <task>_<length>.yaml, one group file, scoring.py
    longeval   <length>_<task>.jsonl with prompt, expected answer and its line: LongEval's testcases

No model runs; lengths are counted with the tokenizer that is asked for. Source: the file layouts of
lm-evaluation-harness (task YAML, `dataset_path: json`) and of LongEval (Li et al. 2023).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from megacontext.eval.harness.bounded import ANSWER_MARK, QUESTION_MARK
from megacontext.eval.long.example import CountTokens, Example, ExampleRequest, estimate_tokens
from megacontext.eval.long.figures import length_name
from megacontext.eval.long.tasks import task
from megacontext_ext.errors import InvalidArgument

Format = Literal["lm-eval", "longeval"]
GROUP = "megacontext_long"
_SCORING = '''"""The scorer of these tasks: functions are looked up beside the YAML files."""

from megacontext.eval.harness.scoring import process_results

__all__ = ["process_results"]
'''


@dataclass(frozen=True)
class ExportPlan:
    """What is exported, as in `megacontext eval long run`."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    examples: int = 8
    seed: int = 0
    count_tokens: CountTokens = estimate_tokens

    def __post_init__(self) -> None:
        if not self.tasks or not self.lengths or self.examples < 1:
            raise InvalidArgument(
                f"[export] must have tasks, lengths and examples, got {len(self.tasks)}, "
                f"{len(self.lengths)}, {self.examples}"
            )

    def made(self, name: str, length: int) -> list[Example]:
        return [
            task(name).make(ExampleRequest(length, index, self.seed, self.count_tokens))
            for index in range(self.examples)
        ]


def export(plan: ExportPlan, out: Path, layout: Format) -> list[Path]:
    """Write `plan` into `out`; returns the files. Raises NotFound for an unknown task."""
    out.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    names: list[str] = []
    for name in plan.tasks:
        for length in plan.lengths:
            examples = plan.made(name, length)
            label = f"{name}_{length_name(length)}".lower()
            if layout == "longeval":
                lines = [longeval_line(example) for example in examples]
                files.append(_lines(out / f"{length_name(length)}_{name}.jsonl", lines))
                continue
            data = _lines(out / "data" / f"{label}.jsonl", [document(e) for e in examples])
            names.append(f"{GROUP}_{label}")
            described = task_yaml(names[-1], data, max(e.max_new_tokens for e in examples))
            path = out / f"{label}.yaml"
            path.write_text(described, encoding="utf-8")
            files += [data, path]
    if layout == "lm-eval":
        files += _group(out, names)
    return files


def document(example: Example) -> dict[str, Any]:
    """One line of an exported task: everything a prompt and a scorer need, nothing to compute."""
    return {
        "task": example.task,
        "index": example.index,
        "length_tokens": example.length_tokens,
        "history": example.history,
        "question": example.question,
        "answer_prefix": example.answer_prefix,
        "answers": list(example.answers),
        "scorer": example.scorer,
        "options": list(example.options),
        "gold": example.gold_texts,
        "digest": example.digest,
    }


def task_yaml(name: str, data: Path, max_new_tokens: int) -> str:
    """A task of lm-evaluation-harness over the lines in `data`, without any download."""
    settings = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "output_type": "generate_until",
        # Marks that `split_text` knows; models of other makers read them as plain words.
        "doc_to_text": f"{{{{history}}}}{QUESTION_MARK}{{{{question}}}}{ANSWER_MARK}"
        "{{answer_prefix}}",
        "doc_to_target": "{{answers[0]}}",
        "target_delimiter": " ",
        "generation_kwargs": {
            "until": ["\n\n"],
            "max_gen_toks": max_new_tokens,
            "do_sample": False,
        },
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)
    # A tag of its own, which safe_dump does not write.
    return text + "process_results: !function scoring.process_results\n"


def longeval_line(example: Example) -> dict[str, Any]:
    """One test case in LongEval's layout; `random_idx` is the gold's text and its line."""
    gold = example.gold_texts[0] if example.gold_texts else ""
    at = example.history.find(gold) if gold else -1
    line = example.history.count("\n", 0, at) if at >= 0 else -1
    prompt = f"{example.history}{QUESTION_MARK}{example.question}{ANSWER_MARK}"
    return {
        "random_idx": [gold, line],
        "expected_number": example.answers[0],
        "num_lines": example.history.count("\n") + 1,
        "token_size": example.length_tokens,
        "correct_line": gold,
        "prompt": prompt + example.answer_prefix,
    }


def _group(out: Path, names: Sequence[str]) -> list[Path]:
    (out / "scoring.py").write_text(_SCORING)
    aggregate = [{"metric": "score", "aggregation": "mean", "weight_by_size": True}]
    group = {"group": GROUP, "task": list(names), "aggregate_metric_list": aggregate}
    path = out / "_group.yaml"
    path.write_text(yaml.safe_dump(group | {"metadata": {"version": 1.0}}, sort_keys=False))
    return [out / "scoring.py", path]


def _lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path
