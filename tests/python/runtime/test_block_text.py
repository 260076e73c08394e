"""Every word is whole in the block where it ends."""

from __future__ import annotations

import re

import numpy as np
import pytest

from megacontext.config import K
from megacontext.runtime.block_text import block_texts

TEXTS = [
    "The pass key of Quillon Depot is 88541 and nothing else matters. " * 12,
    "extraordinarily uncharacteristically long words everywhere " * 15,
    "Où est la bibliothèque? 日本語のテキスト " * 20,
]


def texts_of(tokenizer, text, step):
    """Block texts, made `step` blocks at a time."""
    tokens = tokenizer.encode(text)
    blocks = tokens[: len(tokens) // K * K]
    out: list[str] = []
    for first in range(0, len(blocks) // K, step):
        before = blocks[max(0, first * K - K) : first * K]
        out += block_texts(tokenizer, before, blocks[first * K : (first + step) * K])
    return out, blocks


@pytest.mark.parametrize("text", TEXTS)
def test_text_does_not_depend_on_how_many_blocks_come_at_once(text_tokenizer, text):
    one, _ = texts_of(text_tokenizer, text, 1)
    assert one == texts_of(text_tokenizer, text, 5)[0] == texts_of(text_tokenizer, text, 1000)[0]


def test_every_word_is_whole_in_some_block(text_tokenizer):
    text = TEXTS[0]
    out, blocks = texts_of(text_tokenizer, text, 4)
    covered = text_tokenizer.decode(blocks)
    indexed = {word for block in out for word in re.findall(r"\w+", block)}
    # The last word may be cut by the end of the last block.
    assert set(re.findall(r"\w+", covered)[:-1]) <= indexed
    assert "88541" in indexed


def test_a_block_begins_with_the_word_in_progress(text_tokenizer):
    digits = [int(token) for digit in "97531" for token in text_tokenizer.encode(digit)]
    tokens = text_tokenizer.encode(" number ").tolist() + digits
    filler = text_tokenizer.encode(" a" * K).tolist()
    first = (filler + tokens[:-2])[-K:]
    second = (tokens[-2:] + filler)[:K]
    blocks = np.asarray(first + second, dtype=np.uint32)
    out = block_texts(text_tokenizer, np.zeros(0, np.uint32), blocks)
    assert out[0].endswith("975")
    assert out[1].startswith("97531")
