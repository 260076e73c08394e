"""The HELM client: its deployment names what the plugin has; with HELM at hand, it runs."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path

import pytest
import yaml

import megacontext.eval.helm

FOLDER = Path(megacontext.eval.helm.__file__).parent


def test_the_deployment_names_a_class_and_arguments_that_the_plugin_has():
    deployed = yaml.safe_load((FOLDER / "prod_env" / "model_deployments.yaml").read_text())
    known = yaml.safe_load((FOLDER / "prod_env" / "model_metadata.yaml").read_text())
    names = {model["name"] for model in known["models"]}
    tree = ast.parse((FOLDER / "plugin.py").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for deployment in deployed["model_deployments"]:
        assert deployment["model_name"] in names
        module, _, name = deployment["client_spec"]["class_name"].rpartition(".")
        assert module == "megacontext.eval.helm.plugin"
        made = next(n for n in classes[name].body if getattr(n, "name", "") == "__init__")
        taken = {argument.arg for argument in made.args.args}
        assert set(deployment["client_spec"]["args"]) <= taken


@pytest.mark.skipif(
    importlib.util.find_spec("helm") is None, reason="HELM has a virtual environment of its own"
)
def test_the_client_answers_and_remembers(tmp_path, tiny_folder):
    from helm.common.cache import SqliteCacheConfig
    from helm.common.request import Request

    from megacontext.eval.harness import ExportPlan, export
    from megacontext.eval.helm.plugin import LongHistoryScenario, MegaContextClient

    export(ExportPlan(("key_value",), (2048,), 2), tmp_path, "lm-eval")
    data = tmp_path / "data" / "key_value_2k.jsonl"
    instances = LongHistoryScenario(str(data)).get_instances(str(tmp_path))
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    assert [i.references[0].output.text for i in instances] == [x["answers"][0] for x in lines]
    config = SqliteCacheConfig(str(tmp_path / "cache.sqlite"))
    client = MegaContextClient(config, model=tiny_folder, budget_places=256)
    asked = Request(model="m", model_deployment="m", prompt=instances[0].input.text, max_tokens=3)
    first, second = client.make_request(asked), client.make_request(asked)
    assert first.success
    assert (first.cached, second.cached) == (False, True)
    assert first.completions[0].text == second.completions[0].text
    assert client._bounded.used_memory
