"""From documents to a trained lens, on a base small enough for a test: streams, labels that are
kept, examples, a run that moves every parameter, choices and figures of the evaluation."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from megacontext.config import LensConfig
from megacontext.eval.lens import command
from megacontext.eval.lens.histories import open_history
from megacontext.eval.lens.methods import lenses, rankings, window_axis, windows
from megacontext.eval.lens.report import summarise, write_report
from megacontext.eval.lens.streams import SPLITS, Stream, StreamQuestion, make_stream, split_of
from megacontext.lens import Question
from megacontext.lens.net import LensNet, LensNetConfig
from megacontext.lens.trained import TrainedLens
from megacontext.train.lens import LensTraining, calibrate, found_share, make_loop
from megacontext.train.lens_examples import ExamplePlan, labelled_examples, make_examples
from megacontext.train.lens_labels import Labeller, LabelPlan, make_labels, read_labels
from megacontext.train.loop import LoopConfig
from megacontext.train.values import from_values
from megacontext_ext.errors import InvalidArgument

SHIPS = ["Astrid", "Ingrid", "Petrel", "Solveig", "Undine", "Vesper", "Nereid", "Thalassa"]
CREWS = [
    "Marlowe",
    "Aldermoor",
    "Fenwright",
    "Kestrelby",
    "Oldcastle",
    "Brandvold",
    "Grimsdal",
    "Iver",
]
FILLER = "The harbour master read a number aloud and the crew kept a log of every record. " * 6


def ships() -> Stream:
    """Two documents of facts between filler."""
    documents, questions = {}, []
    for half, name in enumerate(("squad/north", "essays/south")):
        text = ""
        for ship, captain in list(zip(SHIPS, CREWS, strict=True))[4 * half : 4 * half + 4]:
            fact = f"The captain of the ship {ship} is {captain}. "
            asked = f"Who commands the ship {ship}?"
            gold = ((name, len(text)),)
            questions.append(StreamQuestion("reading", asked, captain, gold, name))
            text += fact + FILLER
        documents[name] = text
    return Stream("train", documents, questions)


@pytest.fixture(scope="module")
def held(tmp_path_factory, tiny_base):
    return open_history(ships(), tmp_path_factory.mktemp("histories"), tiny_base)


def test_gold_blocks_hold_the_facts(held):
    for asked in held.stream.questions:
        ((partition, block),) = held.gold_blocks(asked)
        text = held.base.tokenizer.decode(held.history.tokens(partition, block, block + 3))
        assert asked.answer in text


def test_a_second_opening_finds_what_is_there(held, tmp_path, tiny_base):
    first = open_history(ships(), tmp_path, tiny_base)
    counts = first.history.block_counts()
    first.store.close()
    assert open_history(ships(), tmp_path, tiny_base).history.block_counts() == counts


class TestLabels:
    PLAN = LabelPlan("train", questions=2, rivals=1)

    def test_they_are_kept_and_not_made_again(self, held, tmp_path):
        paths = make_labels(Labeller(self.PLAN, held), tmp_path, 2)
        before = [path.read_bytes() for path in paths]
        stamps = [path.stat().st_mtime_ns for path in paths]
        more = make_labels(Labeller(self.PLAN, held), tmp_path, 3)
        assert more[:2] == paths
        assert [path.stat().st_mtime_ns for path in more[:2]] == stamps
        assert [path.read_bytes() for path in more[:2]] == before

    def test_a_gain_is_the_difference_of_two_reads(self, held):
        labeller = Labeller(self.PLAN, held)
        group = labeller.label(held.stream.questions[:2])
        asked = labeller.meter.asked(group.questions[1])
        window = tuple(int(x) for x in group.windows[0])
        nothing, gain = labeller.meter.measure([asked], [window])
        np.testing.assert_allclose(nothing[0], group.none_nats[1], rtol=1e-4)
        np.testing.assert_allclose(gain[0, 0], group.gain_nats[0, 1], rtol=1e-3, atol=1e-3)

    def test_a_window_over_the_predicted_text_has_no_label(self, held):
        group = Labeller(self.PLAN, held).label(held.stream.questions[:2])
        column = [asked.kind for asked in group.questions].index("continuation")
        (own,) = held.gold_blocks(group.questions[column])
        for row, (partition, start, end) in enumerate(group.windows.tolist()):
            over = partition == own[0] and start <= own[1] + 1 and own[1] < end
            assert not over or np.isnan(group.gain_nats[row, column])

    def test_labels_of_another_plan_are_refused(self, held, tmp_path):
        (path,) = make_labels(Labeller(self.PLAN, held), tmp_path, 1)
        with pytest.raises(InvalidArgument, match="plan: expected"):
            make_labels(Labeller(replace(self.PLAN, rivals=2), held), tmp_path, 1)
        with pytest.raises(InvalidArgument, match="base: expected other"):
            read_labels(path, {"base": "other"})


@pytest.fixture(scope="module")
def trained(held, tmp_path_factory):
    """A short run on the ships, with measured gains."""
    config = LensTraining(
        net=LensNetConfig(row_width=held.sketcher.width, match_width=16, width=16),
        loop=LoopConfig(steps=40, accumulate=2, warmup_steps=3),
    )
    group = Labeller(LabelPlan("train"), held).label(held.stream.questions[:3])
    plan = ExamplePlan(best=20, random=10, of=60)
    examples = make_examples(held, held.stream.questions, plan)
    examples += labelled_examples(held, [group], plan)
    net = LensNet(config.net)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    out = tmp_path_factory.mktemp("run")
    loop = make_loop(config, net, examples, examples[:4], (held.sketcher, out, {}))
    loop.run()
    return net, before, examples


def test_every_parameter_moves(trained):
    net, before, _ = trained
    still = [name for name, p in net.named_parameters() if torch.equal(p, before[name])]
    assert still == []


def test_the_lens_learns_where_the_facts_are(trained, held):
    net, _, examples = trained
    assert found_share(net, examples[:8], held.sketcher) == 1.0
    assert sum(np.isfinite(example.gain_nats).sum() for example in examples) >= 6


def test_calibrated_probabilities_have_the_right_mean(trained, held):
    net, _, examples = trained
    net = deepcopy(net)  # the other tests have theirs as it was trained, in any order
    calibrate(net, examples[:8], held.sketcher)
    with torch.no_grad():
        found = [net.probability(net(e.entries(held.sketcher)).logit).mean() for e in examples[:8]]
    needed = [float((e.wanted > 0).mean()) for e in examples[:8]]
    assert float(np.mean(found)) == pytest.approx(float(np.mean(needed)), rel=0.3)


def test_the_trained_lens_stands_where_the_untrained_one_does(trained, held):
    lens = TrainedLens(trained[0], held.sketcher, held.base.tokenizer, LensConfig(max_passages=1))
    for asked in held.stream.questions[:4]:
        scores = lens.score(held.history, Question(asked.question, reads=False))
        counts = held.history.block_counts()
        assert {p: len(s) for p, s in scores.by_partition.items()} == counts
        ((partition, block),) = held.gold_blocks(asked)
        assert scores.by_partition[partition][block] > 0
        (passage,) = scores.passages
        assert passage.start_block <= block < passage.end_block
    assert lens.score(held.history, Question("", reads=False)).by_partition


def test_windows_are_the_best_peaks_and_never_overlap(held):
    axis = window_axis(held)
    evidence = np.random.default_rng(3).random(axis.length).astype(np.float32)
    chosen = windows(axis, evidence, 6)
    assert len(chosen) == 6
    blocks = [(p, b) for p, start, end in chosen for b in range(start, end)]
    assert len(blocks) == len(set(blocks))
    masked = np.where(axis.block_mask(), evidence, -1.0)
    partition, block = axis.locate(int(masked.argmax()))
    assert chosen[0][0] == partition
    assert chosen[0][1] <= block < chosen[0][2]


def test_the_oracle_is_never_behind_and_kept_gains_are_not_measured_again(trained, held, tmp_path):
    ways = rankings({"trained": trained[0]}, held)
    groups = [held.stream.questions[:2]]
    rows = command.gain_rows(held, groups, ways, tmp_path)
    (kept,) = tmp_path.glob("*.json")
    stamp = kept.stat().st_mtime_ns
    assert command.gain_rows(held, groups, ways, tmp_path) == rows
    assert kept.stat().st_mtime_ns == stamp
    for row in rows:
        assert row["gain"]["oracle"] >= max(row["gain"].values()) - 1e-9


def test_rows_are_kept_by_question_and_a_torn_line_is_made_again(trained, held, tmp_path):
    ways, by_name = rankings({"trained": trained[0]}, held), lenses({"trained": trained[0]}, held)
    made: list[str] = []

    def make(asked):
        made.append(asked.question)
        return command.recall_row(held, asked, ways, by_name)

    questions, path = held.stream.questions[:3], tmp_path / "rows.jsonl"
    assert len(command.kept_rows(path, questions, make, most=2)) == 2
    path.write_text(path.read_text()[:-9])  # killed while the second was written
    rows = command.kept_rows(path, questions, make)
    assert command.kept_rows(path, questions, make) == rows
    assert [question.question for question in questions] == [made[0], made[1], made[3]]
    assert made[2] == made[1]
    assert all(row["recall"]["trained"]["1"] == 1.0 for row in rows)
    assert all(row["shown"]["trained"] == 1.0 and row["blocks"]["trained"] >= 5 for row in rows)


def test_a_report_ranks_a_perfect_method_above_a_blind_one(held, tmp_path):
    rows = [
        {"kind": "reading", "document": f"d{n % 5}", "recall": {
            "untrained": {"1": 0.0}, "bm25": {"1": n % 2}, "trained": {"1": 1.0}},
         "shown": {"untrained": 0.0, "trained": 1.0}, "blocks": {"untrained": 9, "trained": 5}}
        for n in range(40)
    ]  # fmt: skip
    gains = [
        {"kind": "reading", "document": f"d{n % 5}", "gain": {
            "untrained": 0.0, "bm25": 1.0, "trained": 2.0, "oracle": 2.0}}
        for n in range(10)
    ]  # fmt: skip
    summary = summarise({"history_blocks": 9, "recall": rows, "gain": gains})
    lead = summary["recall"]["all"]["1"]["lead"]["trained - untrained"]
    assert (lead["value"], lead["low"], lead["high"]) == (1.0, 1.0, 1.0)
    assert summary["gain"]["all"]["methods"]["bm25"]["value"] == pytest.approx(0.5)
    write_report(tmp_path, summary)
    assert "100.0 [100.0, 100.0]" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_an_unknown_key_of_a_config_is_refused():
    with pytest.raises(InvalidArgument, match="got \\['nett'\\]"):
        from_values(LensTraining, {"nett": {}})
    assert from_values(LensTraining, {"net": {"design": "transformer"}}).net.design == "transformer"


@pytest.mark.slow
def test_real_streams_share_no_document_and_point_at_their_answers():
    streams = {split: make_stream(split, notes=300, planted=20) for split in SPLITS}
    seen: dict[str, str] = {}
    for split, stream in streams.items():
        assert all(split_of(n.split("/", 1)[1]) == split for n in stream.documents if "squad" in n)
        for text in stream.documents.values():
            for paragraph in (p for p in text.split("\n\n") if len(p) > 200):
                assert seen.setdefault(paragraph, split) == split
        for asked in stream.questions:
            if asked.kind == "reading":
                ((name, at),) = asked.gold
                assert stream.documents[name][at:].startswith(asked.answer)
    assert {q.kind for q in streams["test"].questions} >= {"reading", "needle", "twin"}
    assert make_stream("test", notes=300, planted=20) == streams["test"]
