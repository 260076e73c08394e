"""The text of blocks for the lexical index, from tokens alone.

A block's text ends where its tokens end and begins with the word in progress at its start, taken
from the tokens before. So every word is whole in the block where it ends, a number of single-digit
tokens is never split, and the text does not depend on what is appended later.
"""

from __future__ import annotations

import re

import numpy as np

from megacontext.config import K
from megacontext.models import TextTokenizer, TokenArray

# Bytes looked back for the beginning of a word; longer words are indexed from here on.
_LOOK_BACK_BYTES = 64
_WORD_AT_END = re.compile(r"\w+\Z")


def block_texts(tokenizer: TextTokenizer, before: TokenArray, blocks: TokenArray) -> list[str]:
    """Texts of `blocks` [N * K]; `before` are the tokens just before them (K are enough)."""
    token_bytes = tokenizer.token_bytes
    left = token_bytes.join(before.tolist())[-_LOOK_BACK_BYTES:]
    texts = []
    for start in range(0, len(blocks), K):
        own = token_bytes.join(blocks[start : start + K].tolist())
        texts.append(_with_word_in_progress(left, own))
        left = (left + own)[-_LOOK_BACK_BYTES:]
    return texts


def _with_word_in_progress(left: bytes, own: bytes) -> str:
    # A character cut at the seam belongs to this block; one cut at the end to the next.
    before = left.decode("utf-8", errors="ignore")
    whole = (left + own).decode("utf-8", errors="ignore")
    start = len(before)
    if start < len(whole) and (whole[start].isalnum() or whole[start] == "_"):
        word = _WORD_AT_END.search(before)
        start = word.start() if word else start
    return whole[start:]


def look_back(token_count: int) -> int:
    """First token to read so that `block_texts` sees what is before token `token_count`."""
    return int(np.maximum(token_count - K, 0))
