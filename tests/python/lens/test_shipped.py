"""The lens in the package: small, whole, found by its base, and used as its card says."""

from __future__ import annotations

import pytest

from megacontext.config import LensConfig
from megacontext.lens import Question, Sketcher, TrainedLens, UntrainedLens, choose_lens
from megacontext.lens.trained import find_lens, shipped_lenses
from tests.python.lens.words import history


def test_the_shipped_lens_is_small_and_says_where_it_comes_from():
    (shipped,) = shipped_lenses()
    assert shipped.path.stat().st_size < 2_000_000
    for name in ("base", "tokenizer", "command", "config", "train_examples", "labelled_examples"):
        assert shipped.card[name]
    found, start = shipped.card["validation_found"], shipped.card["validation_found_at_start"]
    assert found.keys() == start.keys() == {"reading", "two documents", "needle", "twin"}
    net = shipped.load()
    assert sum(parameter.numel() for parameter in net.parameters()) < 100_000
    assert float(net.calibration[0]) > 0.0


@pytest.mark.smollm2
def test_it_belongs_to_smollm2_and_finds_what_is_asked_for(smollm2):
    base = smollm2("float32")
    shipped = find_lens(base.facts)
    assert shipped is not None
    default = type(choose_lens(base, LensConfig()))
    assert default is (TrainedLens if shipped.is_better else UntrainedLens)
    lens = TrainedLens(shipped.load(), Sketcher(base), base.tokenizer, LensConfig(max_passages=1))
    words = history()
    words.tokens = lambda partition, start, end: base.tokenizer.encode(
        " ".join(words.texts[partition][start:end])
    )[: 32 * (end - start)]
    for question, where in (
        ("Who is captain of the astrid?", (0, 10)),
        ("What is the serial number of the pump?", (3, 30)),
    ):
        scores = lens.score(words, Question(question, reads=False))
        (passage,) = scores.passages
        assert passage.partition == where[0]
        assert passage.start_block <= where[1] < passage.end_block
