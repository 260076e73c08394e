"""The search wrappers; ranking and format are tested in C++."""

from __future__ import annotations

import numpy as np
import pytest

import megacontext_ext as mx
from megacontext_ext import errors
from megacontext_ext.search import TERM_DTYPE


def test_terms_of_equal_words_are_equal():
    terms = mx.analyze("Ärger, cities and CITY!")
    assert terms.dtype == TERM_DTYPE
    assert terms["count"].sum() == 4
    assert len(terms) == 3
    assert (mx.analyze("arger city city and") == terms).all()
    assert len(mx.analyze("")) == 0


def test_hits_come_best_first_with_their_blocks():
    index = mx.TextIndex()
    index.add(0, 0, ["the red fish", "a blue bird", "red red fish"])
    index.add(5, 10, ["the bird sings"])
    partitions, blocks, scores = index.search("birds", k=10)
    assert partitions.tolist() == [0, 5]
    assert blocks.tolist() == [1, 10]
    assert (np.diff(scores) <= 0).all()
    index.seal()
    assert all(
        (a == b).all()
        for a, b in zip(index.search("birds", 10), (partitions, blocks, scores), strict=True)
    )
    assert index.search("birds", 10, partition=5)[1].tolist() == [10]
    assert len(index.search("", 10)[0]) == 0
    assert len(index) == 4
    assert index.sealed_bytes > 0


def test_a_block_added_twice_is_refused():
    index = mx.TextIndex()
    index.add(0, 3, ["one"])
    index.add(0, 3, ["two"])
    with pytest.raises(errors.InvalidArgument, match="partition 0 block 3"):
        index.seal()
