"""A frozen Llama-family base as plain tensors: the forward pass gists are trained through.

Owns the weights' meaning (norm, rotary, grouped attention, gated MLP) and nothing else: no
cache policy, no gists. It exists beside `transformers` because training needs the layers opened
up, needs one numeric path on every version, and reads the same weights without copying them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class BaseShape:
    """Sizes of a base. `hidden` is the MLP's inner width, `head` the width of one head."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    hidden: int
    vocab: int
    rope_theta: float
    norm_eps: float

    def projection(self, name: str) -> tuple[int, int]:
        """(inputs, outputs) of one projection of a layer."""
        query, key = self.heads * self.head, self.kv_heads * self.head
        return {
            "q": (self.width, query),
            "k": (self.width, key),
            "v": (self.width, key),
            "o": (query, self.width),
            "gate": (self.width, self.hidden),
            "up": (self.width, self.hidden),
            "down": (self.hidden, self.width),
        }[name]


class LayerWeights(NamedTuple):
    """One layer; projections are [outputs, inputs] as torch keeps them."""

    attention_norm: Tensor
    mlp_norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


class KeyValues(NamedTuple):
    """Per layer, keys and values [B, kv_heads, T, head]; keys rotated unless said otherwise."""

    keys: list[Tensor]
    values: list[Tensor]

    def narrow(self, start: int, end: int) -> KeyValues:
        return KeyValues(
            [k[:, :, start:end] for k in self.keys], [v[:, :, start:end] for v in self.values]
        )


class FrozenBase:
    """Weights of a base and its forward pass; nothing in it ever requires a gradient."""

    def __init__(
        self,
        shape: BaseShape,
        embed: Tensor,
        layers: list[LayerWeights],
        norm: Tensor,
        head: Tensor,
    ) -> None:
        self.shape, self.embed, self.layers = shape, embed, layers
        self.norm, self.head = norm, head
        even = torch.arange(0, shape.head, 2, dtype=torch.float32, device=embed.device)
        self._frequencies = 1.0 / (shape.rope_theta ** (even / shape.head))

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.dtype

    @property
    def device(self) -> torch.device:
        return self.embed.device

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin), each [T, head], of integer or fractional positions [T]."""
        angles = positions.to(self.device, torch.float32)[:, None] * self._frequencies
        angles = torch.cat((angles, angles), -1)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def read(
        self,
        inputs: Tensor,
        start: int | Tensor = 0,
        past: KeyValues | None = None,
        keep: bool = True,
        bias: Tensor | list[Tensor] | None = None,
        heard: list[Tensor] | None = None,
    ) -> tuple[Tensor, KeyValues]:
        """Normed last hidden states of `inputs` read at positions start.., and their keys, values.

        Args:
            inputs: [B, T] ids, or [B, T, width] embeddings.
            start: position of the first input, or all positions [T].
            past: what the inputs may attend to besides themselves, all of it visible.
            keep: False returns empty keys and values (saves memory).
            bias: added to the scores of the past's keys: [past tokens], or one a layer,
                [B, kv_heads, past tokens].
            heard: takes each layer's rotated queries, [B, heads, T, head].

        Returns:
            [B, T, width] and the inputs' own rotated keys and values.
        """
        x = F.embedding(inputs, self.embed) if inputs.dim() == 2 else inputs
        if isinstance(start, int):
            start = torch.arange(start, start + x.shape[1])
        cos, sin = self.rotary(start)
        kept = KeyValues([], [])
        for number, weights in enumerate(self.layers):
            attended = F.rms_norm(x, (x.shape[-1],), weights.attention_norm, self.shape.norm_eps)
            q, k, v = (self.heads_of(F.linear(attended, w)) for w in weights[2:5])
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            if heard is not None:
                heard.append(q)
            if keep:
                kept.keys.append(k)
                kept.values.append(v)
            if past is not None:
                k = torch.cat((past.keys[number], k), 2)
                v = torch.cat((past.values[number], v), 2)
            added = bias[number] if isinstance(bias, list) else bias
            x = x + F.linear(merge_heads(causal_attention(q, k, v, added)), weights.o)
            x = x + self.mlp(weights, x)
        return F.rms_norm(x, (x.shape[-1],), self.norm, self.shape.norm_eps), kept

    def mlp(self, weights: LayerWeights, x: Tensor) -> Tensor:
        y = F.rms_norm(x, (x.shape[-1],), weights.mlp_norm, self.shape.norm_eps)
        return F.linear(F.silu(F.linear(y, weights.gate)) * F.linear(y, weights.up), weights.down)

    def heads_of(self, x: Tensor) -> Tensor:
        """[B, T, heads * head] -> [B, heads, T, head]."""
        return x.unflatten(-1, (-1, self.shape.head)).transpose(1, 2)

    def logits(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])  # or torch copies the head for each sequence
        return F.linear(flat, self.head).view(*hidden.shape[:-1], -1)

    def fingerprint(self) -> str:
        """Identity of the base: sizes and a sample of weights rounded to bf16.

        The same for fp32 and bf16 copies of one model, whatever file they came from.
        """
        digest = hashlib.sha256(json.dumps(asdict(self.shape), sort_keys=True).encode())
        samples = [self.embed[:: max(1, self.shape.vocab // 64)], self.norm]
        for weights in self.layers:
            samples.extend((weights.q[0], weights.k[-1], weights.down[0], weights.mlp_norm))
        for sample in samples:
            plain = sample.detach().to("cpu", torch.bfloat16).contiguous()
            digest.update(plain.view(torch.int16).numpy().astype("<i2").tobytes())
        return digest.hexdigest()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [..., T, head]; half-split layout."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def spread_heads(x: Tensor, heads: int) -> Tensor:
    """Repeats KV heads so that every query head has its own: [B, kv, T, E] -> [B, heads, T, E]."""
    batch, kv_heads, count, width = x.shape
    if kv_heads == heads:
        return x
    group = x[:, :, None].expand(batch, kv_heads, heads // kv_heads, count, width)
    return group.reshape(batch, heads, count, width)


# CUDA: whether the flash kernel takes the lower-right causal mask; see `choose_attention`.
_LOWER_RIGHT = {"cuda": False}


def causal_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """The last q.shape[2] keys are the queries' own and causal; all earlier ones are visible.

    bias: [earlier keys] or [B, kv_heads, earlier keys], added to their scores.
    """
    queries, keys = q.shape[2], k.shape[2]
    if queries == keys:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    k, v = spread_heads(k, q.shape[1]), spread_heads(v, q.shape[1])
    if q.is_cuda and _LOWER_RIGHT["cuda"] and bias is None:
        from torch.nn.attention.bias import causal_lower_right

        return F.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(queries, keys))
    visible = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    if bias.dim() == 3:
        bias = bias.repeat_interleave(q.shape[1] // bias.shape[1], 1)[:, :, None]
    scores = torch.zeros(*bias.shape[:-2], queries, keys, dtype=q.dtype, device=q.device)
    scores[..., : keys - queries] = bias.to(q.dtype)
    scores = scores.masked_fill(~visible, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=scores)


def choose_attention(device: torch.device) -> str:
    """Uses the flash kernel's lower-right mask if it agrees with an explicit mask here."""
    if device.type != "cuda":
        return "explicit mask"
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(2, 9, n, 64, generator=generator, device=device, dtype=torch.bfloat16)
        for n in (128, 320, 320)
    )
    results = []
    for lower_right in (False, True):
        _LOWER_RIGHT["cuda"] = lower_right
        leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        try:
            out = causal_attention(*leaves)
            out.square().sum().backward()
        except (RuntimeError, ValueError, TypeError, ImportError, AttributeError) as error:
            _LOWER_RIGHT["cuda"] = False
            return f"explicit mask (lower-right flash refused: {error})"
        results.append([out, *(x.grad for x in leaves)])
    worst = max(float((a - b).norm() / a.norm()) for a, b in zip(*results, strict=True))
    _LOWER_RIGHT["cuda"] = worst < 2e-2
    return f"{'lower-right flash' if worst < 2e-2 else 'explicit mask'} (difference {worst:.1e})"


def base_from_state(
    shape: BaseShape, state: dict[str, Tensor], dtype: torch.dtype, device: torch.device | str
) -> FrozenBase:
    """A base over a `LlamaForCausalLM` state dict; tensors already in place are not copied."""

    def take(name: str) -> Tensor:
        return state[name].detach().to(device, dtype)

    layers = []
    for number in range(shape.layers):
        prefix = f"model.layers.{number}."
        layers.append(
            LayerWeights(
                take(prefix + "input_layernorm.weight"),
                take(prefix + "post_attention_layernorm.weight"),
                *(take(f"{prefix}self_attn.{name}_proj.weight") for name in "qkvo"),
                *(take(f"{prefix}mlp.{name}_proj.weight") for name in ("gate", "up", "down")),
            )
        )
    embed = take("model.embed_tokens.weight")
    head = take("lm_head.weight") if "lm_head.weight" in state else embed
    return FrozenBase(shape, embed, layers, take("model.norm.weight"), head)


def shape_from_config(config: Any) -> BaseShape:
    """Sizes out of a `transformers` Llama config (or its JSON as a dict)."""
    fields = config if isinstance(config, dict) else config.to_dict()
    if fields.get("model_type") != "llama":
        raise ValueError(
            f"[shape_from_config] model_type must be llama, got {fields.get('model_type')!r}"
        )
    rope = fields.get("rope_parameters") or {}
    theta = rope.get("rope_theta") or fields.get("rope_theta") or 10000.0
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"[shape_from_config] rope_type must be default, got {rope!r}")
    heads = fields["num_attention_heads"]
    return BaseShape(
        layers=fields["num_hidden_layers"],
        width=fields["hidden_size"],
        heads=heads,
        kv_heads=fields.get("num_key_value_heads") or heads,
        head=fields.get("head_dim") or fields["hidden_size"] // heads,
        hidden=fields["intermediate_size"],
        vocab=fields["vocab_size"],
        rope_theta=float(theta),
        norm_eps=float(fields["rms_norm_eps"]),
    )


def base_from_model(model: Any, dtype: torch.dtype | None = None) -> FrozenBase:
    """The base of a loaded `LlamaForCausalLM`; shares its memory where dtype and device agree."""
    parameter = next(model.parameters())
    shape = shape_from_config(model.config)
    return base_from_state(shape, model.state_dict(), dtype or parameter.dtype, parameter.device)


def base_from_folder(
    folder: Path, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu"
) -> FrozenBase:
    """The base in a `save_pretrained` folder with one safetensors file."""
    from safetensors.torch import load_file

    shape = shape_from_config(json.loads((folder / "config.json").read_text()))
    return base_from_state(shape, load_file(folder / "model.safetensors"), dtype, device)


def random_base(
    shape: BaseShape, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> FrozenBase:
    """Random weights of a shape, for tests and throughput probes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        scale = 1.0 / size[-1] ** 0.5
        return (torch.randn(*size, generator=generator) * scale).to(device, dtype)

    ones = torch.ones(shape.width, device=device, dtype=dtype)
    layers = [
        LayerWeights(ones, ones, *(draw(*shape.projection(n)[::-1]) for n in PROJECTIONS))
        for _ in range(shape.layers)
    ]
    embed = draw(shape.vocab, shape.width)
    return FrozenBase(shape, embed, layers, ones, embed)
