"""lm-evaluation-harness itself runs exported tasks on `--model megacontext`, offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from megacontext.eval.harness import ExportPlan, export

lm_eval = pytest.importorskip(
    "lm_eval", reason="the optional harness (pip install 'megacontext[lm-eval]') is not installed"
)

_CHOICE = """task: mc_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}]
"""
_ROLLING = """task: mc_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}]
"""


def test_the_command_line_scores_long_and_short_tasks(tmp_path, tiny_folder):
    plan = ExportPlan(("niah_multikey_2", "key_value"), (512, 4096), examples=2)
    export(plan, tmp_path, "lm-eval")
    data = tmp_path / "lines.jsonl"
    text = "The keeper wrote the number 48213 in the book."
    data.write_text(json.dumps({"text": text, "choices": [" It", " Where"], "label": 0}) + "\n")
    (tmp_path / "choice.yaml").write_text(_CHOICE.format(data=data))
    (tmp_path / "rolling.yaml").write_text(_ROLLING.format(data=data))
    command = [
        sys.executable, "-m", "megacontext.eval.harness", "run",
        "--model", "megacontext", "--model_args", f"model={tiny_folder},budget_places=256",
        "--include_path", str(tmp_path), "--tasks", "megacontext_long,mc_choice,mc_rolling",
        "--output_path", str(tmp_path / "out"), "--log_samples",
    ]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment["HF_HOME"] = str(tmp_path / "hub")
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert ran.returncode == 0, ran.stderr[-2000:]
    (found,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(found.read_text())["results"]
    assert set(results) == {
        "megacontext_long", "mc_choice", "mc_rolling", "megacontext_long_niah_multikey_2_512",
        "megacontext_long_niah_multikey_2_4k", "megacontext_long_key_value_512",
        "megacontext_long_key_value_4k",
    }  # fmt: skip
    assert results["mc_rolling"]["word_perplexity,none"] > 1.0
    assert results["mc_choice"]["acc,none"] in (0.0, 1.0)
    assert 0.0 <= results["megacontext_long"]["score,none"] <= 1.0
