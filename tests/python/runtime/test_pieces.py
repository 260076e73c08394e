"""Pieces depend on the text alone, not on how it came."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from megacontext.runtime.pieces import PIECE_CHARS, PIECE_CHARS_MAX, TextPiece, cut_pieces

TEXTS = {
    "empty": "",
    "one": "a",
    "words": "the quick brown fox " * 3000,
    "one long line": "x" * 70_000,
    "spaces": " " * 40_000,
    "mixed": ("word " * 1700 + "y" * 20_000 + "\n\n 日本語 ") * 2,
}


@pytest.mark.parametrize("name", TEXTS)
def test_portions_do_not_change_the_pieces(name):
    text = TEXTS[name]
    whole = list(cut_pieces([text]))
    assert "".join(piece.text for piece in whole) == text
    chance = random.Random(3)
    for longest in (7, 5000, 30_000):
        portions, at = [], 0
        while at < len(text):
            end = at + chance.randint(1, longest) if longest > 7 else at + 4096 + longest
            portions.append(text[at:end])
            at = end
        assert list(cut_pieces(portions)) == whole


@pytest.mark.parametrize("name", TEXTS)
def test_going_on_from_any_border_gives_the_same_pieces(name):
    text = TEXTS[name]
    whole = list(cut_pieces([text]))
    for done, piece in enumerate(whole):
        assert list(cut_pieces([text[piece.start :]], piece.start)) == whole[done:]


def test_pieces_are_bounded_and_end_before_white_space():
    pieces = list(cut_pieces([TEXTS["words"]]))
    for piece in pieces[:-1]:
        assert PIECE_CHARS <= len(piece.text) <= PIECE_CHARS_MAX
    for piece in pieces[1:]:
        assert piece.text[0] == " "
    assert max(len(piece.text) for piece in cut_pieces([TEXTS["one long line"]])) == PIECE_CHARS_MAX


def test_a_text_of_one_piece_is_not_cut():
    assert list(cut_pieces(["ab", "cd"], 5)) == [TextPiece("abcd", 5)]


def test_pieces_tokenise_like_the_whole_text(text_tokenizer):
    text = "Every record has a checksum, and 48213 tokens. " * 900
    pieces = [piece.text for piece in cut_pieces([text])]
    assert len(pieces) > 3
    tokens = [token for piece in text_tokenizer.encode_pieces(pieces) for token in piece.tokens]
    assert tokens == text_tokenizer.encode(text).tolist()


def test_a_long_line_is_cut_in_bounded_memory():
    """32 MB without one border: what is held is one piece and one portion."""
    portion = "x" * 65_536
    tracemalloc.start()
    try:
        length = sum(len(piece.text) for piece in cut_pieces(portion for _ in range(512)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert length == 512 * len(portion)
    assert peak < 1_000_000
