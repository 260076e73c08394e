"""Unpacked weights are the GGUF's, bit for bit; damage is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megacontext.train.packed_base import dequantise, transformers_name, unpack

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F32"])
def test_dequantise_equals_gguf(kind: str) -> None:
    weights = np.random.default_rng(0).normal(size=(6, 96)).astype(np.float32)
    raw = gguf.quants.quantize(weights, getattr(gguf.GGMLQuantizationType, kind))
    expected = gguf.quants.dequantize(raw, getattr(gguf.GGMLQuantizationType, kind))
    ours = dequantise(torch.from_numpy(np.ascontiguousarray(raw).view(np.uint8)), kind)
    assert np.array_equal(ours.numpy(), expected)


def test_names() -> None:
    assert transformers_name("blk.3.ffn_up.weight") == "model.layers.3.mlp.up_proj.weight"
    with pytest.raises(ValueError, match="must be a Llama tensor's"):
        transformers_name("blk.3.ssm.weight")


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "part-0.safetensors").write_bytes(b"not it")
    (tmp_path / "parts.json").write_text(
        json.dumps({"sha256": {"part-0.safetensors": "00"}, "kinds": {}})
    )
    with pytest.raises(ValueError, match="sha256: expected 00, got"):
        unpack(tmp_path, tmp_path / "out")
