"""LensNet: the question changes what is scored before it, the causal ablation does not see it; both
designs; every parameter is reached; a file gives the same scores back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megacontext.config import LensConfig
from megacontext.lens import Question, TrainedLens, UntrainedLens, choose_lens
from megacontext.lens.features import FEATURES, block_fields, neighbours
from megacontext.lens.net import Entries, LensNet, LensNetConfig
from megacontext.lens.trained import find_lens, load_net, save_net, shipped_lenses
from megacontext_ext.errors import InvalidArgument, NotFound
from tests.python.lens.words import history

N, U, K, Q, R, W = 9, 12, 32, 6, 40, 24
SMALL = {"row_width": W, "match_width": 16, "width": 16}


def entries(seed: int = 0) -> Entries:
    draw = torch.Generator().manual_seed(seed)
    index = torch.randint(0, U, (N, 5), generator=draw)
    index[0, :2] = -1
    there = torch.ones(U, K, dtype=torch.bool)
    there[3, 20:] = False
    return Entries(
        features=torch.rand(N, len(FEATURES), generator=draw),
        index=index,
        tokens=torch.randint(0, R, (U, K), generator=draw),
        there=there,
        rows=torch.randn(R, W, generator=draw),
        asked=torch.randn(Q, W, generator=draw),
    )


def awake(design: str, causal: bool = False) -> LensNet:
    """A net whose last layer is not zero, as it is after training."""
    net = LensNet(LensNetConfig(design=design, causal=causal, **SMALL))
    with torch.no_grad():
        torch.nn.init.normal_(net.leave[-1].weight, std=0.5)
    return net.eval()


def with_question(given: Entries, seed: int) -> Entries:
    values = {
        **vars(given),
        "asked": torch.randn(Q, W, generator=torch.Generator().manual_seed(seed)),
    }
    return Entries(**values)


@pytest.mark.parametrize("design", ["cross", "transformer"])
def test_changing_the_question_changes_the_scores_of_earlier_spans(design):
    net, given = awake(design), entries()
    one, other = net(given).logit, net(with_question(given, 7)).logit
    assert ((one - other).abs() > 1e-5).all()


@pytest.mark.parametrize("design", ["cross", "transformer"])
def test_the_causal_ablation_sees_neither_question_nor_what_comes_later(design):
    net, given = awake(design, causal=True), entries()
    one = net(given).logit
    torch.testing.assert_close(one, net(with_question(given, 7)).logit)
    later = given.features.clone()
    later[6:] += 1.0
    changed = net(Entries(**{**vars(given), "features": later})).logit
    torch.testing.assert_close(one[:6], changed[:6])
    assert (one[6:] - changed[6:]).abs().max() > 1e-5


@pytest.mark.parametrize("design", ["cross", "transformer"])
def test_an_entry_is_scored_in_view_of_the_others(design):
    net, given = awake(design), entries()
    other = given.features.clone()
    other[8] += 1.0
    changed = net(Entries(**{**vars(given), "features": other})).logit
    assert (net(given).logit[:8] - changed[:8]).abs().max() > 1e-6


@pytest.mark.parametrize("design", ["cross", "transformer"])
def test_every_parameter_is_reached(design):
    net, given = awake(design).train(), entries()
    found = net(given)
    (found.logit.square().sum() + found.gain_nats.square().sum()).backward()
    # Alone in its softmax or added to every score alike, a parameter has no gradient.
    still = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_a_table_made_once_gives_the_same_scores():
    net, given = awake("cross"), entries()
    table = net.token_table(given.rows)
    projected = Entries(**{**vars(given), "rows": table, "projected": True})
    torch.testing.assert_close(net(given).logit, net(projected).logit)


def test_places_without_a_token_count_for_nothing():
    net, given = awake("cross"), entries()
    tokens = given.tokens.clone()
    tokens[3, 20:] = 5
    torch.testing.assert_close(
        net(given).logit, net(Entries(**{**vars(given), "tokens": tokens})).logit
    )


def test_a_new_net_scores_as_the_untrained_evidence():
    given = entries()
    lexical, sketch = FEATURES.index("lexical"), FEATURES.index("sketch")
    wanted = 8.0 * given.features[:, lexical] + 2.0 * given.features[:, sketch]
    torch.testing.assert_close(LensNet(LensNetConfig(**SMALL))(given).logit, wanted)


def test_a_saved_net_scores_alike_and_is_found_by_its_base(tmp_path, tiny_base):
    net, given = awake("cross"), entries()
    net.calibration.copy_(torch.tensor([0.5, -1.0]))
    path = save_net(tmp_path / "tiny", net, {"base": tiny_base.facts.identity})
    assert path.stat().st_size < 2_000_000
    found = find_lens(tiny_base.facts, tmp_path)
    assert found is not None
    assert not found.is_better  # its card holds no measurement
    again = load_net(found.path, found.card)
    torch.testing.assert_close(
        net.probability(net(given).logit), again.probability(again(given).logit)
    )
    assert find_lens(tiny_base.facts, tmp_path / "none") is None
    assert shipped_lenses(tmp_path / "none") == []


def test_the_card_decides_which_lens_is_the_default(tmp_path, tiny_base):
    def card(low: float):
        lead = {"value": low + 0.01, "low": low, "high": low + 0.02}
        return {"base": tiny_base.facts.identity, "metrics": {"lead_with_reader": lead}}

    def chosen(kind: str) -> type:
        return type(choose_lens(tiny_base, LensConfig(kind=kind), tmp_path))

    assert chosen("auto") is UntrainedLens
    with pytest.raises(NotFound, match="a lens trained for llama"):
        chosen("trained")
    save_net(tmp_path / "tiny", awake("cross"), card(-0.01))
    assert (chosen("auto"), chosen("trained")) == (UntrainedLens, TrainedLens)
    save_net(tmp_path / "tiny", awake("cross"), card(0.01))
    assert (chosen("auto"), chosen("untrained")) == (TrainedLens, UntrainedLens)


def test_an_unknown_design_is_refused():
    with pytest.raises(InvalidArgument, match="cross or transformer, got 'magic'"):
        LensNetConfig(design="magic")  # type: ignore[arg-type]


class TestFields:
    """Features over a history that is checked by hand."""

    def test_the_block_that_holds_the_words_is_the_first_candidate(self):
        fields = block_fields(history(), Question("Who is captain of the astrid?"))
        place = fields.axis.span(0).start + 10
        assert fields.candidates(1).tolist() == [place]
        row = dict(zip(FEATURES, fields.features[place].tolist(), strict=True))
        assert row["bm25"] == row["lexical_relative"] == row["lexical_rank"] == 1.0
        assert row["terms_near"] == 1.0
        assert 0.0 < row["strongest_term"] <= row["lexical"] <= 1.0

    def test_rooms_between_sources_hold_nothing(self):
        fields = block_fields(history(), Question("captain"))
        assert not fields.features[~fields.mask].any()
        assert fields.mask[fields.candidates(1000)].all()
        assert len(fields.candidates(1000)) == 80

    def test_neighbours_stop_where_a_source_ends(self):
        fields = block_fields(history(), Question("captain"))
        first, last = fields.axis.span(0).start, fields.axis.span(0).stop - 1
        near = neighbours(fields, np.array([first, last]), 2)
        assert (near.index[0] >= 0).tolist() == [False, False, True, True, True]
        assert (near.index[1] >= 0).tolist() == [True, True, True, False, False]
        assert near.places[near.index[0, 2]] == first
