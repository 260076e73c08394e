"""Sentences are whole, and the blocks that they name hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacontext.config import K
from megacontext.lens.sentences import sentences, words_of


@dataclass
class Tokens:
    """A history of one partition."""

    line: np.ndarray

    def tokens(self, partition, start_block, end_block):
        return self.line[start_block * K : end_block * K]


def told(tokenizer, text):
    line = tokenizer.encode(text)
    blocks = -(-len(line) // K)
    return line, list(sentences(Tokens(line), tokenizer, 0, 0, blocks))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One came. Two went!  Did three? Yes", ["One came.", "Two went!", "Did three?", "Yes"]),
        ("VAR A = 1.\nVAR B = VAR A.\n\n", ["VAR A = 1.", "VAR B = VAR A."]),
        ('He said "so." Then 3.5 km.', ['He said "so.', "Then 3.5 km."]),
        ("   \n\n  ", []),
        ("", []),
    ],
)
def test_sentences_end_at_signs_and_lines(text_tokenizer, text, expected):
    assert [s.text for s in told(text_tokenizer, text)[1]] == expected


@given(
    st.lists(st.sampled_from(["Ådne går.", "日本語。", "x = 1", "Why? ", "\n", "🙂!", "a" * 90]))
)
def test_the_blocks_of_a_sentence_hold_its_text(text_tokenizer, parts):
    line, found = told(text_tokenizer, " ".join(parts))
    join = text_tokenizer.token_bytes.join
    for sentence in found:
        held = join(line[sentence.start_block * K : sentence.end_block * K].tolist())
        assert sentence.text in held.decode("utf-8", errors="ignore")
        for start, end in (
            (sentence.start_block + 1, sentence.end_block),
            (sentence.start_block, sentence.end_block - 1),
        ):
            less = join(line[start * K : end * K].tolist()).decode("utf-8", errors="ignore")
            assert sentence.text not in less or text_twice(sentence.text, held)


def text_twice(text, held):
    return held.decode("utf-8", errors="ignore").count(text) > 1


def test_words_are_lower_case_and_singular():
    found = words_of("The Boats' keepers, as 12.5 gas; Ross of class")
    assert found == {"the", "boat", "keeper", "as", "12", "5", "gas", "ross", "of", "class"}
