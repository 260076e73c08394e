"""A base carried as quantised parts: for machines that only small files can reach.

    python -m megacontext.train.packed_base pack --gguf FILE --config config.json --out DIR
    python -m megacontext.train.packed_base unpack --parts DIR --out FOLDER

The parts hold the GGUF's own quantised bytes under `transformers` names, so nothing is lost:
unpacking gives bit for bit the weights that loading the GGUF gives (Q4_1, Q8_0, F32).

Block layouts (32 weights each, little endian; d, m are f16):
    Q8_0  2 d | 32 int8                       w = d * q
    Q4_1  2 d | 2 m | 16 bytes of nibbles     w = d * q + m; low nibbles are weights 0..15
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

BLOCK_BYTES = {"Q8_0": 34, "Q4_1": 20}
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def dequantise(raw: Tensor, kind: str) -> Tensor:
    """fp32 weights [rows, width] of quantised rows [rows, bytes] uint8."""
    if kind == "F32":
        return raw.view(torch.float32)
    if kind not in BLOCK_BYTES:
        raise ValueError(f"[dequantise] kind must be F32, Q8_0 or Q4_1, got {kind}")
    rows = raw.shape[0]
    blocks = raw.reshape(-1, BLOCK_BYTES[kind])
    scale = blocks[:, :2].contiguous().view(torch.float16).float()
    if kind == "Q8_0":
        return (scale * blocks[:, 2:].contiguous().view(torch.int8).float()).reshape(rows, -1)
    least = blocks[:, 2:4].contiguous().view(torch.float16).float()
    packed = blocks[:, 4:]
    quants = torch.cat((packed & 15, packed >> 4), 1).float()
    return (scale * quants + least).reshape(rows, -1)


def transformers_name(name: str) -> str:
    """`transformers` name of a Llama tensor in a GGUF file."""
    fixed = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }
    if name in fixed:
        return fixed[name]
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if not found or found[2] not in NAMES:
        raise ValueError(f"[transformers_name] name must be a Llama tensor's, got {name!r}")
    return f"model.layers.{found[1]}.{NAMES[found[2]]}.weight"


def pack(gguf_file: Path, config: Path, out: Path, part_bytes: int = 50_000_000) -> None:
    """Writes part-N.safetensors, config.json and parts.json (hashes)."""
    import gguf
    from safetensors.numpy import save_file

    fields = json.loads(config.read_text())
    heads = {"attn_q": fields["num_attention_heads"], "attn_k": fields["num_key_value_heads"]}
    parts: list[dict[str, np.ndarray]] = [{}]
    kinds, used = {}, 0
    for tensor in gguf.GGUFReader(gguf_file).tensors:
        kind, short = tensor.tensor_type.name, tensor.name.split(".")[-2]
        rows = tensor.data.shape[0] if tensor.data.ndim == 2 else 1
        raw = np.frombuffer(np.ascontiguousarray(tensor.data).tobytes(), np.uint8).reshape(rows, -1)
        if short in heads:  # GGUF interleaves the rotary halves of each head's rows.
            raw = raw.reshape(heads[short], -1, 2, raw.shape[1]).swapaxes(1, 2).reshape(raw.shape)
        if used + raw.size > part_bytes:
            parts.append({})
            used = 0
        name = transformers_name(tensor.name)
        parts[-1][name], kinds[name] = np.ascontiguousarray(raw), kind
        used += raw.size
    out.mkdir(parents=True, exist_ok=True)
    listed = {}
    for number, part in enumerate(parts):
        path = out / f"part-{number}.safetensors"
        save_file(part, path)
        listed[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    shutil.copy(config, out / "config.json")
    (out / "parts.json").write_text(json.dumps({"sha256": listed, "kinds": kinds}))


def unpack(parts: Path, out: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes a folder that `base_from_folder` reads.

    Raises:
        ValueError: a part is missing or its hash differs.
    """
    from safetensors.torch import load_file, save_file

    card = json.loads((parts / "parts.json").read_text())
    state: dict[str, Tensor] = {}
    for name, expected in card["sha256"].items():
        path = parts / name
        got = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "no file"
        if got != expected:
            raise ValueError(f"{path}: sha256: expected {expected}, got {got}")
        for tensor, raw in load_file(path).items():
            weights = dequantise(raw, card["kinds"][tensor]).to(dtype)
            state[tensor] = weights[0] if card["kinds"][tensor] == "F32" else weights
    out.mkdir(parents=True, exist_ok=True)
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(parts / "config.json", out / "config.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("pack", "unpack"))
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--parts", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.step == "pack":
        pack(options.gguf, options.config, options.out)
    else:
        unpack(options.parts, options.out)


if __name__ == "__main__":
    main()
