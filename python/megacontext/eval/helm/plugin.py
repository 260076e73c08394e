"""A HELM plugin: the frozen base with a memory as a client, and exported tasks as a scenario.

helm-run --plugins megacontext.eval.helm.plugin --run-entries megacontext_long:data=FILE,model=...
HELM is not a dependency of this package and is imported from nowhere else.
"""

from __future__ import annotations

import json
import threading
from dataclasses import replace
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
from helm.clients.client import CachingClient
from helm.common.cache import CacheConfig
from helm.common.request import GeneratedOutput, Request, RequestResult, Token, wrap_request_time

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
    bare = get_generation_adapter_spec(
        max_train_instances=0, max_tokens=int(max_tokens), stop_sequences=[]
    )
    return RunSpec(
        name=f"megacontext_long:data={Path(data).stem}",
        scenario_spec=ScenarioSpec(
            class_name="megacontext.eval.helm.plugin.LongHistoryScenario", args={"data": data}
        ),
        adapter_spec=replace(bare, input_suffix="", output_prefix="", output_suffix=""),
        metric_specs=get_f1_metric_specs(),
        groups=["megacontext_long"],
    )


class MegaContextClient(CachingClient):
    """The base of a deployment, greedy, within `budget_places`; one request at a time."""

    def __init__(
        self,
        cache_config: CacheConfig,
        model: str = "smollm2",
        budget_places: int = 2048,
        threads: int = 1,
    ) -> None:
        super().__init__(cache_config=cache_config)
        self._settings = {"model": model, "budget_places": int(budget_places)}
        self._threads = int(threads)
        self._bounded: BoundedBase | None = None
        # HELM asks from several threads; a base is for one.
        self._lock = threading.Lock()

    def make_request(self, request: Request) -> RequestResult:
        asked = self._settings | {
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "stop_sequences": list(request.stop_sequences),
        }
        key = CachingClient.make_cache_key(asked, request)
        found, cached = self.cache.get(key, wrap_request_time(lambda: self._answer(asked)))
        text = found["text"]
        output = GeneratedOutput(text=text, logprob=0, tokens=[Token(text=text, logprob=0)])
        return RequestResult(
            success=True,
            cached=cached,
            request_time=found["request_time"],
            request_datetime=found.get("request_datetime"),
            completions=[output],
            embedding=[],
        )

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._bounded is None:
                torch.set_num_threads(self._threads)
                self._bounded = BoundedBase(load(asked["model"]), asked["budget_places"])
            bounded = self._bounded
            text = bounded.generate(asked["prompt"], asked["max_tokens"], asked["stop_sequences"])
            return {"text": text, "places": bounded.places, "used_memory": bounded.used_memory}
