"""The kernels as PyTorch functions: one file an operator, each with its autograd and fake rule.

``torch.ops.megacontext.*`` holds the raw operators; the functions here check types, name arguments
and are what people call. Every operator runs on CPU; with CUDA tensors it runs on CUDA.
"""

from __future__ import annotations

import torch

from megacontext_ext.ops import _load
from megacontext_ext.ops.attention_use import attention_use
from megacontext_ext.ops.block_encoder import (
    BlockEncoderLayer,
    BlockEncoderWeights,
    add_norm,
    block_encoder,
    gated_act,
    init_block_encoder,
    rope_table,
    window_attention,
)
from megacontext_ext.ops.focused_attention import (
    dense_query_starts,
    focused_attention,
    make_read_plan,
    merge_attention,
)
from megacontext_ext.ops.gaussian_rope import gaussian_rope, gaussian_rope_, gaussian_rope_tables
from megacontext_ext.ops.gist_pool import gist_pool, gist_pool_tree, gist_pool_tree_counts
from megacontext_ext.ops.page_gather import page_gather, page_gather_out, page_scatter
from megacontext_ext.ops.score_topk import score_beam, score_topk, score_topk_at, topk

_load.load()

_CPU_LEVELS = ("portable", "avx2", "avx512", "amx")

__all__ = [
    "BlockEncoderLayer",
    "BlockEncoderWeights",
    "add_norm",
    "attention_use",
    "block_encoder",
    "cpu_level",
    "dense_query_starts",
    "focused_attention",
    "gated_act",
    "gaussian_rope",
    "gaussian_rope_",
    "gaussian_rope_tables",
    "gist_pool",
    "gist_pool_tree",
    "gist_pool_tree_counts",
    "init_block_encoder",
    "make_read_plan",
    "merge_attention",
    "page_gather",
    "page_gather_out",
    "page_scatter",
    "rope_table",
    "score_beam",
    "score_topk",
    "score_topk_at",
    "set_cpu_level",
    "topk",
    "window_attention",
]


def cpu_level() -> str:
    """Instruction set that the CPU kernels use: "portable", "avx2", "avx512" or "amx"."""
    return _CPU_LEVELS[torch.ops.megacontext.cpu_level()]


def set_cpu_level(level: str) -> bool:
    """Changes the instruction set, for tests and benchmarks; False when this CPU lacks it."""
    if level not in _CPU_LEVELS:
        raise ValueError(f"level must be one of {_CPU_LEVELS}, got {level!r}")
    return bool(torch.ops.megacontext.set_cpu_level(_CPU_LEVELS.index(level)))
