"""A policy's view of what is taken, and a net that does not care in which order candidates come."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from megacontext.config import K
from megacontext.lens import Question, UntrainedLens
from megacontext.lens.candidates import STATIC, VIEW, find_candidates
from megacontext.lens.policy_net import (
    PolicyNet,
    PolicyNetConfig,
    load_policy,
    logits,
    save_policy,
    state_of,
)
from megacontext_ext.errors import InvalidArgument
from tests.python.lens.some_candidates import candidates, permuted
from tests.python.lens.words import Words


def moved_net(config: PolicyNetConfig | None = None) -> PolicyNet:
    """A net as after training: nothing of it is zero."""
    net, draw = PolicyNet(config), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=draw)
    return net.eval()


def state(found, *numbers: int, left: int = 320):
    taken = np.zeros(len(found), bool)
    taken[list(numbers)] = True
    return state_of(found, taken, np.full(len(found), K), left)


@torch.no_grad()
def test_logits_follow_the_candidates_into_another_order():
    found, net = candidates(17), moved_net()
    order = np.random.default_rng(1).permutation(17)
    there = logits(net, found, [state(found, 2, 5)])[0]
    other = permuted(found, order)
    moved = [int(np.flatnonzero(order == n)[0]) for n in (2, 5)]
    here = logits(net, other, [state(other, *moved)])[0]
    torch.testing.assert_close(here[:-1], there[:-1][torch.from_numpy(order)])
    torch.testing.assert_close(here[-1], there[-1])


@torch.no_grad()
def test_a_state_changes_the_logits_and_one_state_none_of_another():
    found, net = candidates(), moved_net()
    states = [state(found), state(found, 0), state(found, 0, 3)]
    together = logits(net, found, states)
    for row, each in zip(together, states, strict=True):
        torch.testing.assert_close(row, logits(net, found, [each])[0])
    free = torch.from_numpy(~states[2].taken)
    assert not torch.allclose(together[0, :-1][free], together[2, :-1][free])
    assert bool(torch.isinf(together[2, :-1][~free]).all())


@torch.no_grad()
def test_the_ablation_does_not_see_what_is_taken():
    found, net = candidates(), moved_net(PolicyNetConfig(sees_state=False))
    free = torch.from_numpy(~state(found, 0, 3).taken)
    first, later = logits(net, found, [state(found), state(found, 0, 3, left=64)])
    torch.testing.assert_close(first[:-1][free], later[:-1][free])


@torch.no_grad()
def test_it_starts_as_the_greedy_allocator():
    found = candidates()
    static = found.static.copy()
    static[:, 1] = 1.0 - np.arange(len(found)) / len(found)
    found = replace(found, static=static)
    row = logits(PolicyNet(), found, [state(found)])[0]
    assert row[:-1].argsort(descending=True).tolist() == list(range(len(found)))


def test_nothing_that_does_not_fit_may_be_taken():
    found = candidates()
    assert not state(found, left=K - 1).may.any()
    assert state(found, 4, left=K).may.sum() == len(found) - 1


def view_of(texts: list[str], question: str, taken: list[int]):
    history = Words({0: texts})
    ids: dict[str, int] = {}
    history.tokens = lambda _, start, end: np.array(
        [ids.setdefault(w, len(ids)) for text in texts[start:end] for w in text.split()], np.uint32
    )
    asked = Question(question, reads=False)
    found = find_candidates(history, asked, UntrainedLens().score(history, asked))
    by_block = {int(block): row for row, block in enumerate(found.blocks)}
    shown = np.array([int(block) in taken for block in found.blocks])
    view = found.view(shown, np.full(len(found), K), 320)
    return {block: dict(zip(VIEW, view[row], strict=True)) for block, row in by_block.items()}


def test_a_view_tells_echoes_from_complements_and_names_what_is_linked():
    filler = [f"word{n} other{n} more{n} text{n}" for n in range(30)]
    texts = list(filler)
    texts[3] = "captain of astrid is henrik"
    texts[12] = "henrik is captain of astrid"
    texts[20] = "astrid carries crates"
    texts[26] = "henrik sleeps in skagen"
    view = view_of(texts, "captain of astrid carries", [3])
    assert view[12]["words_shown"] > 0.9 > view[20]["words_shown"]
    assert view[20]["terms_new"] > 0.0 == view[12]["terms_new"]
    assert view[26]["names_shared"] > view[8]["names_shared"] == 0.0
    assert view[4]["beside"] == 1.0 > view[5]["beside"] > view[20]["beside"] == 0.0
    assert view[3]["taken"] == 1.0
    nothing = view_of(texts, "captain of astrid carries", [])
    assert all(row["terms_covered"] == 0.0 and row["nothing_taken"] for row in nothing.values())
    assert nothing[12]["terms_new"] > 0.0


def test_candidates_are_the_best_by_the_lens_and_a_history_without_blocks_has_none():
    texts = [f"word{n} other{n}" for n in range(30)]
    history = Words({2: texts})
    history.tokens = lambda _, start, end: np.arange(start, end, dtype=np.uint32)
    asked = Question("word7 other9", reads=False)
    scores = UntrainedLens().score(history, asked)
    found = find_candidates(history, asked, scores, 5)
    best = np.sort(scores.by_partition[2])[::-1][:5]
    np.testing.assert_array_equal(found.scores, best)
    assert found.static.shape == (5, len(STATIC))
    assert len(find_candidates(Words({}), asked, UntrainedLens().score(Words({}), asked))) == 0


def test_a_saved_policy_comes_back_and_another_format_is_refused(tmp_path):
    net, found = moved_net(), candidates()
    save_policy(tmp_path, net, {"base": "none"})
    again = load_policy(tmp_path)
    with torch.no_grad():
        assert torch.equal(*(logits(each, found, [state(found, 1)]) for each in (net, again)))
    card = tmp_path / "card.json"
    card.write_text(card.read_text().replace("megacontext.policy.1", "megacontext.policy.0"))
    with pytest.raises(InvalidArgument, match=r"format: expected megacontext.policy.1"):
        load_policy(tmp_path)
    with pytest.raises(InvalidArgument, match="width must be a multiple of heads, got 10, 4"):
        PolicyNetConfig(width=10)
