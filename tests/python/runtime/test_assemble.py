"""Prompts from entries: exact where nothing is left out, accounted for where something is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from megacontext.config import FrameConfig, K, RuntimeConfig
from megacontext.models import GIST_PLACE, Prompt, PromptRunner
from megacontext.runtime import Assembler, EntryRun, GistRecord, ShownGists, merge_runs, text_source
from megacontext.runtime.assemble import in_words
from megacontext.runtime.frame import question_frame
from megacontext.runtime.gist_records import read_records
from megacontext_ext import Store, WorkingContext
from megacontext_ext.errors import Corruption, InvalidArgument, OverBudget

from .conftest import STORY

NO_GISTS = ShownGists([], "tiny")


@pytest.fixture
def filled(bench):
    for name, repeats in (("first", 12), ("second", 3)):
        bench.ingestor.ingest(text_source(name, STORY * repeats))
    return bench


@pytest.fixture
def frame(filled):
    return question_frame(filled.base.tokenizer, "Who?", RuntimeConfig())


# Markers that name how much is left out.
TELLING = FrameConfig(marker="\n[... {tokens} tokens left out ...]\n")


def assembler(bench, gists=NO_GISTS, **settings) -> Assembler:
    return Assembler(bench.store, bench.base.tokenizer, gists, RuntimeConfig(**settings))


def entry_runs(bench, budget=4096, pins=(), gists=(0,) * 8, partitions=(0, 1)):
    context = WorkingContext(budget, gists, 0)
    for partition in partitions:
        context.set_partition(partition, bench.store.token_count(partition), 0)
    for partition, start, end in pins:
        context.pin(partition, start, end)
    context.check()
    return merge_runs(context.entries())


def test_no_gaps_give_the_plain_models_logits(filled, frame):
    """The whole history raw in one source: token for token the plain prompt."""
    count = filled.store.token_count(1)
    runs = entry_runs(filled, pins=[(1, 0, count)], partitions=[1])
    made = assembler(filled).assemble(runs, frame, "auto", 512)
    text = filled.store.read_tokens(1, 0, count)
    plain = np.concatenate([frame.before, text, frame.after]).astype(np.int64)
    assert made.prompt.tokens.tolist() == plain.tolist()
    assert made.prompt.positions.tolist() == list(range(len(plain)))
    assert made.left_out_tokens == made.marker_places == 0
    with torch.inference_mode():
        expected = filled.base.model(torch.from_numpy(plain)[None]).logits[0, -1]
    got = PromptRunner(filled.base).read(made.prompt)
    assert torch.allclose(got, expected, atol=2e-4)


def test_places_add_up_and_markers_say_what_is_missing(filled, frame):
    runs = entry_runs(filled, pins=[(0, 3 * K, 5 * K), (0, 8 * K, 9 * K), (1, 0, K)])
    made = assembler(filled, frame=TELLING).assemble(runs, frame, "auto", 8192)
    total = sum(filled.store.token_count(partition) for partition in (0, 1))
    assert made.entry_places == 4 * K
    assert made.left_out_tokens == total - 4 * K
    assert len(made.prompt) == made.entry_places + made.marker_places + made.frame_places
    text = filled.base.tokenizer.decode(made.prompt.tokens.astype(np.uint32))
    last_gap = filled.store.token_count(1) - K
    for gap in (3 * K, filled.store.token_count(0) - 9 * K, last_gap):
        assert f"[... {gap:,} tokens left out ...]" in text


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (1, "a few"),
        (9, "a few"),
        (32, "tens of"),
        (999, "hundreds of"),
        (1000, "thousands of"),
        (93_582, "tens of thousands of"),
        (282_862, "hundreds of thousands of"),
        (1_000_000, "millions of"),
        (5 * 10**11, "hundreds of billions of"),
        (10**13, "hundreds of billions of"),
    ],
)
def test_amounts_in_words_have_no_digit_to_copy(count, words):
    assert in_words(count) == words


def test_small_marker_budget_shortens_then_drops_markers_of_small_gaps(filled, frame):
    runs = entry_runs(filled, pins=[(0, K, 2 * K), (0, 8 * K, 9 * K)])
    full = assembler(filled, frame=TELLING).assemble(runs, frame, "auto", 8192)
    for share in (0.05, 0.01, 0.0):
        tight = assembler(filled, budget_places=640, marker_share=share, frame=TELLING)
        made = tight.assemble(runs, frame, "auto", 8192)
        assert made.marker_places <= 640 * share
        assert made.marker_places < full.marker_places
        assert made.entry_places == full.entry_places


def test_positions_are_the_timelines_while_they_fit_else_contiguous(filled, frame):
    runs = entry_runs(filled, pins=[(0, 4 * K, 5 * K)])
    total = sum(filled.store.token_count(partition) for partition in (0, 1))
    made = assembler(filled).assemble(runs, frame, "auto", 8192)
    before = len(frame.before)
    positions = made.prompt.positions
    assert made.positions == "timeline"
    assert before + 4 * K in positions
    assert positions[-len(frame.after)] == before + total
    assert (np.diff(positions) > 0).all()
    limited = assembler(filled).assemble(runs, frame, "auto", total)
    assert limited.positions == "contiguous"
    assert limited.prompt.positions.tolist() == list(range(len(limited.prompt)))


def test_runs_tile_the_history_and_keep_its_order(filled):
    runs = entry_runs(filled, pins=[(0, 3 * K, 5 * K)])
    assert [(run.partition, run.start) for run in runs] == sorted(
        (run.partition, run.start) for run in runs
    )
    for partition in (0, 1):
        own = [run for run in runs if run.partition == partition]
        assert own[0].start == 0
        assert own[-1].end == filled.store.token_count(partition)
        assert all(a.end == b.start for a, b in pairwise(own))


def test_an_empty_history_leaves_the_frame(filled, frame):
    made = assembler(filled).assemble([], frame, "auto", 8192)
    assert len(made.prompt) == frame.places


class TestGists:
    """A gist is shown only when it is recorded to help this base, and when all its rows are
    there."""

    def record(self, **changes) -> GistRecord:
        fields = {"base": "tiny", "lod": 1, "family": "gist", "places": 2, "gap_recovery": 0.4,
                  "gap_recovery_low": 0.3}  # fmt: skip
        return GistRecord(**{**fields, **changes})

    def put_rows(self, store: Store, width: int, partitions=(0, 1)) -> None:
        store.define_rows("gist", 1, "f32", 2 * width)
        for partition in partitions:
            nodes = store.token_count(partition) // K
            rows = np.arange(nodes * 2 * width, dtype=np.float32).reshape(nodes, 2 * width)
            store.put_rows("gist", partition, 0, rows)

    def test_rows_of_a_helping_gist_are_shown_at_the_centres_of_their_shares(self, filled, frame):
        width = filled.base.facts.width
        self.put_rows(filled.store, width)
        gists = ShownGists([self.record()], "tiny")
        places = gists.places(filled.store)
        assert places == (2, 0, 0, 0, 0, 0, 0, 0)
        runs = [EntryRun(0, 1, 2 * K, 4 * K, 4, 0), EntryRun(0, 0, 4 * K, 5 * K, K, 2 * K)]
        made = assembler(filled, gists).assemble(runs, frame, "auto", 8192)
        at = len(frame.before)
        assert (made.prompt.tokens == GIST_PLACE).nonzero()[0].tolist() == list(range(at, at + 4))
        assert made.prompt.positions[at : at + 4].tolist() == [at + 8, at + 24, at + 40, at + 56]
        expected = filled.store.read_rows("gist", 0, 2, 4).reshape(4, width)
        assert torch.equal(made.prompt.rows, torch.from_numpy(expected))
        assert isinstance(made.prompt, Prompt)
        assert torch.isfinite(PromptRunner(filled.base).read(made.prompt)).all()

    @pytest.mark.parametrize(
        "changes", [{"gap_recovery": -0.2, "gap_recovery_low": -0.3}, {"gap_recovery_low": -0.01},
                    {"base": "another"}]
    )  # fmt: skip
    def test_a_gist_that_is_not_known_to_help_takes_no_place(self, filled, changes):
        self.put_rows(filled.store, filled.base.facts.width)
        gists = ShownGists([self.record(**changes)], "tiny")
        assert not any(gists.places(filled.store))

    def test_a_gist_without_all_its_rows_takes_no_place(self, filled):
        gists = ShownGists([self.record()], "tiny")
        assert not any(gists.places(filled.store))
        self.put_rows(filled.store, filled.base.facts.width, partitions=[0])
        assert not any(gists.places(filled.store))

    def test_records_are_files(self, tmp_path):
        assert read_records(tmp_path / "none") == []
        text = (
            '{"base": "tiny", "lod": 1, "family": "gist", "places": 2, '
            '"gap_recovery": 0.4, "gap_recovery_low": 0.3}'
        )
        (tmp_path / "a.gist.json").write_text(text)
        assert read_records(tmp_path) == [self.record()]
        (tmp_path / "b.gist.json").write_text("{")
        with pytest.raises(Corruption, match=r"b\.gist\.json"):
            read_records(tmp_path)


def test_a_question_longer_than_the_budget_is_refused_with_the_numbers(text_tokenizer):
    with pytest.raises(OverBudget, match=r"budget of 256 places, got a question of [\d,]+ tokens"):
        question_frame(text_tokenizer, "why " * 300, RuntimeConfig(budget_places=256))


def test_an_empty_question_is_refused(text_tokenizer):
    with pytest.raises(InvalidArgument, match="at least one character"):
        question_frame(text_tokenizer, "  ", RuntimeConfig())
