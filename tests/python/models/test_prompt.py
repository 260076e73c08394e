"""The runner reuses exactly the places that did not change, and never a wrong one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megacontext.models import GIST_PLACE, Prompt, PromptRunner
from megacontext_ext.errors import InvalidArgument


def prompt_of(*tokens: int) -> Prompt:
    return Prompt.of_tokens(tokens)


def test_runner_reuses_the_prefix_up_to_the_first_edit(tiny_base):
    generator = np.random.default_rng(0)
    tokens = generator.integers(3, 400, 64)
    runner = PromptRunner(tiny_base)
    runner.read(Prompt.of_tokens(tokens))
    for edit in (50, 63, 0, 10):
        tokens = tokens.copy()
        tokens[edit] = 3 + (tokens[edit] + 1) % 300
        got = runner.read(Prompt.of_tokens(tokens))
        assert runner.reused_places == min(edit, 63)
        assert runner.computed_places == 64 - min(edit, 63)
        fresh = PromptRunner(tiny_base).read(Prompt.of_tokens(tokens))
        assert torch.allclose(got, fresh, atol=1e-4)


def test_same_prompt_again_computes_one_place(tiny_base):
    runner = PromptRunner(tiny_base)
    first = runner.read(prompt_of(5, 6, 7))
    second = runner.read(prompt_of(5, 6, 7))
    assert runner.computed_places == 1
    assert torch.allclose(first, second, atol=1e-4)


def test_moved_positions_are_an_edit(tiny_base):
    runner = PromptRunner(tiny_base)
    runner.read(Prompt.of_tokens([5, 6, 7, 8]))
    moved = Prompt(np.array([5, 6, 7, 8]), np.array([0, 1, 40, 41]))
    got = runner.read(moved)
    assert runner.reused_places == 2
    assert torch.allclose(got, PromptRunner(tiny_base).read(moved), atol=1e-4)


def test_a_changed_gist_row_is_an_edit(tiny_base):
    rows = torch.randn(2, tiny_base.facts.width)
    tokens = np.array([5, GIST_PLACE, 6, GIST_PLACE, 7])
    positions = np.array([0, 16, 32, 48, 64])
    runner = PromptRunner(tiny_base)
    runner.read(Prompt(tokens, positions, rows))
    other = rows.clone()
    other[1] += 1.0
    got = runner.read(Prompt(tokens, positions, other))
    assert runner.reused_places == 3
    fresh = PromptRunner(tiny_base).read(Prompt(tokens, positions, other))
    assert torch.allclose(got, fresh, atol=1e-4)


def test_a_gist_row_of_an_embedding_reads_like_the_token(tiny_base):
    tokens = np.array([5, 9, 6])
    rows = tiny_base.embed(torch.tensor([9]))
    with_row = Prompt(np.array([5, GIST_PLACE, 6]), np.arange(3), rows)
    got = PromptRunner(tiny_base).read(with_row)
    expected = PromptRunner(tiny_base).read(Prompt.of_tokens(tokens))
    assert torch.allclose(got, expected, atol=1e-4)


def test_rows_and_gist_places_must_agree():
    with pytest.raises(InvalidArgument, match="2 gist places, 1 rows"):
        Prompt(np.array([GIST_PLACE, GIST_PLACE]), np.arange(2), torch.zeros(1, 4))


def test_an_empty_prompt_is_refused(tiny_base):
    with pytest.raises(InvalidArgument, match="at least one place"):
        PromptRunner(tiny_base).read(Prompt.of_tokens([]))
