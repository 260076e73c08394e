"""What a base costs, by arithmetic: bytes per million tokens by kind of row, and weights.

Rows are those of DESIGN.md D4 and D5. A tree over 32 children has 1/32 + 1/1024 + ... = 1/31 nodes
a token.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from megacontext.config import K

MILLION = 1_000_000


@dataclass(frozen=True)
class BaseShape:
    """Sizes of a base, out of its configuration alone."""

    model_type: str
    width: int
    layer_count: int
    head_count: int
    kv_head_count: int
    head_width: int
    vocabulary_tokens: int
    trained_tokens: int
    sliding_window: int
    experts: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> BaseShape:
        text: Any = config.get_text_config()
        heads = text.num_attention_heads
        windows = getattr(text, "layer_types", None)
        window = getattr(text, "sliding_window", None) or 0
        if windows is not None and "sliding_attention" not in windows:
            window = 0
        experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
        return cls(
            model_type=text.model_type,
            width=text.hidden_size,
            layer_count=text.num_hidden_layers,
            head_count=heads,
            kv_head_count=getattr(text, "num_key_value_heads", None) or heads,
            head_width=getattr(text, "head_dim", None) or text.hidden_size // heads,
            vocabulary_tokens=text.vocab_size,
            trained_tokens=text.max_position_embeddings,
            sliding_window=int(window),
            experts=int(experts or 0),
        )

    @property
    def kv_values_per_token(self) -> int:
        """Keys and values of all layers for one token."""
        return 2 * self.layer_count * self.kv_head_count * self.head_width

    def bytes_per_million_tokens(self) -> dict[str, int]:
        """Bytes of each kind of row for a million tokens of history, all LODs together."""
        nodes = MILLION / (K - 1)
        kv = self.kv_values_per_token
        kv_heads = self.layer_count * self.kv_head_count
        return {
            "tokens_u32": 4 * MILLION,
            "embedding_gists_bf16": round(nodes * 2 * self.width),
            # One float32 scale a row.
            "embedding_gists_int8": round(nodes * (self.width + 4)),
            # Keys, values, and one log-mass bias a layer and KV head.
            "kv_gists_bf16": round(nodes * 2 * (kv + kv_heads)),
            "kv_gists_int8": round(nodes * (kv + 2 * kv_heads + 4 * 2 * kv_heads)),
            "kv_pages_bf16": 2 * kv * MILLION,
            "kv_pages_int8": round((kv + 2 * 4 * kv_heads / K) * MILLION),
        }

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def parameter_count(config: PretrainedConfig) -> int:
    """Parameters of the model, built on the meta device: no memory is taken, whatever its size."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return sum(parameter.numel() for parameter in model.parameters())
