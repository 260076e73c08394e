"""Frozen base models: loading, tokenizer, positions, KV cache, generation."""

from __future__ import annotations

from megacontext.models.base import BaseFacts, FrozenBase, StepInput
from megacontext.models.catalog import KNOWN_MODELS
from megacontext.models.frozen import TransformersBase, load
from megacontext.models.generate import generate, generate_batch
from megacontext.models.kv_cache import GrowingCache
from megacontext.models.prompt import GIST_PLACE, Prompt, PromptRunner, left_pad, prompt_rows
from megacontext.models.sampling import Sampler
from megacontext.models.tokenizer import EncodedPiece, TextTokenizer, TokenArray

__all__ = [
    "GIST_PLACE",
    "KNOWN_MODELS",
    "BaseFacts",
    "EncodedPiece",
    "FrozenBase",
    "GrowingCache",
    "Prompt",
    "PromptRunner",
    "Sampler",
    "StepInput",
    "TextTokenizer",
    "TokenArray",
    "TransformersBase",
    "generate",
    "generate_batch",
    "left_pad",
    "load",
    "prompt_rows",
]
