"""A HELM plugin: the frozen base with a memory as a client, and exported tasks as a scenario.

helm-run --plugins megacontext.eval.helm.plugin --run-entries megacontext_long:data=FILE,model=...
HELM is not a dependency of this package and is imported from nowhere else.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import torch
from helm.benchmark.adaptation.common_adapter_specs import get_generation_adapter_spec
from helm.benchmark.metrics.common_metric_specs import get_f1_metric_specs
from helm.benchmark.run_spec import RunSpec, run_spec_function
from helm.benchmark.scenarios.scenario import (
    CORRECT_TAG,
    TEST_SPLIT,
    Input,
    Instance,
    Output,
    Reference,
    Scenario,
    ScenarioSpec,
)
from helm.clients.simple_client import SimpleClient

from megacontext.eval.harness.bounded import ANSWER_MARK, QUESTION_MARK, BoundedBase
from megacontext.models import load


class LongHistoryScenario(Scenario):
    """Lines of `megacontext eval export --format lm-eval` (data/*.jsonl) as instances."""

    name = "megacontext_long"
    description = "Questions over long histories"
    tags = ("long_context", "question_answering")

    def __init__(self, data: str) -> None:
        super().__init__()
        self._data = Path(data)

    def get_instances(self, output_path: str) -> list[Instance]:
        lines = self._data.read_text(encoding="utf-8").splitlines()
        return [_instance(json.loads(line)) for line in lines]


def _instance(document: dict[str, Any]) -> Instance:
    text = (
        f"{document['history']}{QUESTION_MARK}{document['question']}{ANSWER_MARK}"
        f"{document['answer_prefix']}"
    )
    references = [
        Reference(Output(text=answer), tags=[CORRECT_TAG]) for answer in document["answers"]
    ]
    return Instance(Input(text=text), references=references, split=TEST_SPLIT)


@run_spec_function("megacontext_long")
def long_history_run(data: str, max_tokens: int = 48) -> RunSpec:
    """One file of exported lines; scores are HELM's exact match, quasi-exact match and F1."""
    return RunSpec(
        name=f"megacontext_long:data={Path(data).stem}",
        scenario_spec=ScenarioSpec(
            class_name="megacontext.eval.helm.plugin.LongHistoryScenario", args={"data": data}
        ),
        adapter_spec=get_generation_adapter_spec(
            max_train_instances=0,
            max_tokens=int(max_tokens),
            stop_sequences=[],
            input_noun=None,
            output_noun=None,
        ),
        metric_specs=get_f1_metric_specs(),
        groups=["megacontext_long"],
    )


class MegaContextClient(SimpleClient):
    """The base of a deployment, greedy, within `budget_places`; one request at a time."""

    def __init__(
        self, cache_config: Any, model: str = "smollm2", budget_places: int = 2048, threads: int = 1
    ) -> None:
        super().__init__(cache_config=cache_config)
        self._settings = (model, int(budget_places), int(threads))
        self._bounded: BoundedBase | None = None
        # HELM asks from several threads; a base is for one.
        self._lock = threading.Lock()

    def invoke_model(self, raw_request: dict[str, Any]) -> dict[str, Any]:
        """`prompt` and its settings -> {"completions": [text]}."""
        with self._lock:
            if self._bounded is None:
                model, budget_places, threads = self._settings
                torch.set_num_threads(threads)
                self._bounded = BoundedBase(load(model), budget_places)
            limit = int(raw_request.get("max_tokens") or raw_request.get("max_new_tokens") or 48)
            stops = raw_request.get("stop_sequences") or ()
            text = self._bounded.generate(raw_request["prompt"], limit, stops)
        return {"completions": [text]}
