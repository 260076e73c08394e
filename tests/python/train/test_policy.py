"""From planted facts to a trained policy: streams, teacher, oracle, a run that moves every
parameter and goes on to the bit, and the figures of the evaluation."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from megacontext.config import K, RuntimeConfig
from megacontext.eval.lens import policy as evaluation
from megacontext.eval.lens.gains import GainMeter
from megacontext.eval.lens.histories import open_history, sentence_span
from megacontext.eval.lens.kept_reader import KeptReader
from megacontext.eval.lens.oracle import greedy_oracle
from megacontext.eval.lens.policy_report import summarise_policy, write_policy_report
from megacontext.eval.lens.several import SEVERAL_KINDS, make_several
from megacontext.eval.lens.streams import Stream, StreamQuestion
from megacontext.lens import UntrainedLens
from megacontext.lens.counterfactual import AnswerCost, AskedTokens
from megacontext.lens.policy_net import PolicyNet, PolicyNetConfig, state_of
from megacontext.models import TokenArray
from megacontext.runtime.frame import question_frame
from megacontext.train.loop import LoopConfig
from megacontext.train.policy import PolicyTraining, facts_shown, make_policy_loop
from megacontext.train.policy_examples import (
    PolicyExample,
    imitation,
    make_policy_examples,
    measured_walk,
    teach,
    walk,
    with_measured,
)
from megacontext.train.policy_labels import kept_labels
from tests.python.lens.some_candidates import candidates

FILLER = "The harbour master read a number aloud and the crew kept a log of every record. " * 5
SHIPS = {"Astrid": ("Marlowe", "Oslo"), "Petrel": ("Iver", "Ghent"), "Undine": ("Fenn", "Porto")}


def ships() -> Stream:
    """Of each ship two sentences that say the same and one that says something else."""
    documents, questions = {}, []
    for number, (ship, (captain, port)) in enumerate(SHIPS.items()):
        name, text, at = f"doc{number}", FILLER, []
        for fact in (
            f"The captain of the ship {ship} is {captain}. ",
            f"The captain of the ship {ship} is still {captain}. ",
            f"The crates on {ship} come from {port}. ",
        ):
            at.append((name, len(text)))
            text += fact + FILLER
        documents[name] = text
        asked = f"Who is captain of the ship {ship}, and where do its crates come from?"
        questions.append(
            StreamQuestion(
                "echo", asked, f"{captain}, {port}", (at[0], at[2]), name, ((at[1],), ())
            )
        )
    return Stream("train", documents, questions)


@pytest.fixture(scope="module")
def held(tmp_path_factory, tiny_base):
    return open_history(ships(), tmp_path_factory.mktemp("histories"), tiny_base)


@pytest.fixture(scope="module")
def examples(held):
    return make_policy_examples(held, held.stream.questions, UntrainedLens(), 24, reads=False)


def at_state(example: PolicyExample, *taken: int, left: int = 10 * K):
    mask = np.zeros(len(example.found), bool)
    mask[list(taken)] = True
    return state_of(example.found, mask, np.full(len(mask), K), left)


class TestStreams:
    def test_the_grounds_of_a_question_are_whole_sentences_and_what_says_the_same(self, held):
        for asked in held.stream.questions:
            first, second = held.grounds(asked)
            assert (len(first), len(second)) == (2, 1)
            for each, word in ((first[0], "captain"), (first[1], "still"), (second[0], "crates")):
                (partition,) = {partition for partition, _ in each}
                blocks = [block for _, block in each]
                text = held.base.tokenizer.decode(
                    held.history.tokens(partition, min(blocks), max(blocks) + 1)
                )
                assert word in text
                assert (asked.answer.split(", ")[each in second]) in text

    def test_a_sentence_ends_where_sentences_end(self):
        text = 'It was so. He said "no!" Then 3.5 men came\nand went'
        spans = [sentence_span(text, text.index(word)) for word in ("so", "said", "men", "went")]
        assert [text[start:end] for start, end in spans] == [
            "It was so.", 'He said "no!"', "Then 3.5 men came\n", "and went"]  # fmt: skip

    @pytest.mark.slow
    def test_planted_questions_stand_behind_the_stream_and_test_wordings_in_no_other(self):
        streams = {split: make_several(split, planted=9) for split in ("train", "test")}
        words = {}
        for split, stream in streams.items():
            asked = [each for each in stream.questions if each.kind in SEVERAL_KINDS]
            assert len(asked) == 27
            for each in asked:
                texts = [stream.documents[name][at : at + 200] for name, at in each.gold]
                assert all(v in " ".join(texts) for v in each.answer.split(", "))
                assert len(each.same) == len(each.gold)
            # Subjects have four syllables of two letters.
            words[split] = {re.sub(r"\b[A-Z][a-z]{7}\b", "X", each.question) for each in asked}
            assert make_several(split, planted=9) == stream
        assert len(words["train"]) == 11
        assert len(words["test"]) == 6
        assert not words["train"] & words["test"]


class TestTeacher:
    FOUND = candidates(8)
    # Fact one: blocks 0 and 1 together, or block 4; fact two: block 2.
    EXAMPLE = PolicyExample("echo", FOUND, ((frozenset({0, 1}), frozenset({4})), (frozenset({2}),)))

    def wanted(self, *taken: int, left: int = 10 * K):
        return teach(self.EXAMPLE, at_state(self.EXAMPLE, *taken, left=left))

    def test_it_wants_what_is_missing_by_the_shortest_way_and_then_to_stop(self):
        assert self.wanted().nonzero().flatten().tolist() == [2, 4]
        assert self.wanted(4).nonzero().flatten().tolist() == [2]
        assert self.wanted(2, 0).nonzero().flatten().tolist() == [1, 4]
        assert self.wanted(0, 1, 2).nonzero().flatten().tolist() == [8]
        assert self.wanted(left=0).nonzero().flatten().tolist() == [8]
        assert all(float(self.wanted(*taken).sum()) == 1.0 for taken in ((), (4,), (4, 2)))

    def test_a_walk_stays_within_its_places_and_is_the_same_again(self):
        net = PolicyNet()
        for blocks in (1, 3, 20):
            one, other = (
                walk(net, self.EXAMPLE, blocks, 0.5, torch.Generator().manual_seed(4))
                for _ in range(2)
            )
            assert torch.equal(one.wanted, other.wanted)
            assert 1 <= len(one.states) <= min(blocks, 8)
            taken = [int(state.taken.sum()) for state in one.states]
            assert taken == list(range(len(taken)))

    def test_the_loss_is_least_where_the_net_wants_what_the_teacher_wants(self):
        wanted = self.wanted()[None]
        good = torch.where(wanted > 0, 9.0, 0.0)
        good[0, 7] = -torch.inf  # what is not allowed costs nothing
        bad = good.flip(1)
        assert float(imitation(good, wanted)) == pytest.approx(float(np.log(2)), abs=1e-2)
        assert float(imitation(bad.nan_to_num(neginf=0.0), wanted)) > 5.0


class TestOracle:
    @staticmethod
    def worth(sets):
        """Blocks 1 and 2 are duplicates worth 4 nats, 3 is worth 3, 4 harms."""
        return np.array([
            10.0 - 4.0 * ((0, 1) in s or (0, 2) in s) - 3.0 * ((0, 3) in s) + ((0, 4) in s)
            for s in map(set, sets)
        ])  # fmt: skip

    def test_it_takes_the_complement_second_and_leaves_the_duplicate(self):
        offered = {(0, 1), (0, 2), (0, 3), (0, 4)}
        steps = greedy_oracle(self.worth, offered, 4)
        assert [step.best for step in steps[:2]] == [(0, 1), (0, 3)]
        second = dict(zip(steps[1].offered, steps[1].gain_nats.tolist(), strict=True))
        assert second == {(0, 2): 0.0, (0, 3): 3.0, (0, 4): -1.0}
        assert len(steps) == 3
        assert steps[2].gain_nats.max() == 0.0
        assert len(greedy_oracle(self.worth, offered, 1)) == 1
        assert greedy_oracle(self.worth, (), 3) == []

    def test_a_measured_state_wants_the_complement_and_then_to_stop(self):
        found = candidates(6)
        blocks = list(zip(found.partitions.tolist(), found.blocks.tolist(), strict=True))
        names = {block: (0, number) for number, block in enumerate(blocks, 1)}

        def nats(sets):
            return self.worth([[names[block] for block in each] for each in sets])

        steps = greedy_oracle(nats, blocks[:4], 4)
        example = with_measured(PolicyExample("echo", found, ()), steps)
        labels = measured_walk(example, 5)
        assert [set(np.flatnonzero(s.taken)) for s in labels.states] == [set(), {0}, {0, 2}]
        first, second, third = labels.wanted
        assert float(first[0]) == pytest.approx(float(first[1]))
        assert float(first[0]) > 5 * float(first[2])
        assert float(second[2]) > 0.99
        assert third.tolist() == [0.0] * 6 + [1.0]
        assert [s.view[0, 9] for s in labels.states] == [5 / 16, 4 / 16, 3 / 16]
        # A step that shows what is no candidate says nothing about this question.
        assert not with_measured(example, [replace(steps[1], shown=((9, 9),))]).measured

    def test_labels_are_kept_and_not_measured_again(self, held, tmp_path, monkeypatch):
        asked, lens = held.stream.questions[:2], UntrainedLens()
        assert len(kept_labels(held, lens, asked, tmp_path, most=1)) == 1
        found = kept_labels(held, lens, asked, tmp_path)
        assert list(found) == [each.question for each in asked]
        monkeypatch.setattr(GainMeter, "nats_of_sets", None)  # whatever is measured now fails
        again = kept_labels(held, lens, asked, tmp_path)
        for one, other in zip(found.values(), again.values(), strict=True):
            for step, same in zip(one, other, strict=True):
                assert (step.shown, step.offered) == (same.shown, same.offered)
                np.testing.assert_array_equal(step.gain_nats, same.gain_nats)

    def test_answers_behind_several_texts_are_read_as_one_by_one(self, held):
        asked = held.stream.questions[0]
        meter = GainMeter(held)
        tokens = meter.asked(asked, 24)
        sets = [[], [(1, 0)], [(1, 0), (1, 1)], [(1, 4), (1, 0), (0, 2)], [(0, 0)]]
        together = meter.nats_of_sets(tokens, sets)
        alone = [float(meter.nats_of_sets(tokens, [each])[0]) for each in sets]
        np.testing.assert_allclose(together, alone, rtol=1e-3)
        plain, _ = meter.measure([tokens], [(1, 0, 1)])
        np.testing.assert_allclose(together[0], plain[0], rtol=1e-3)

    @pytest.mark.smollm2
    def test_a_frozen_base_gains_from_the_complement_and_not_from_the_duplicate(self, smollm2):
        base = smollm2("float32")
        asked = "Who is the captain of the Nimetar, and where do its crates come from?"
        frame = question_frame(base.tokenizer, asked, RuntimeConfig())
        answer = base.tokenizer.encode("Rosa Thorvald, Tallinn")
        texts = {
            (0, 1): "The captain of the Nimetar is Rosa Thorvald. ",
            (0, 2): "The Nimetar sails under its captain, Rosa Thorvald. ",
            (0, 3): "The crates on the Nimetar come from Tallinn. ",
        }
        cost = AnswerCost(base, frame.before)

        def nats(sets):
            shown: list[TokenArray] = [
                base.tokenizer.encode("".join(texts[b] for b in sorted(s))) for s in sets
            ]
            return cost.nats_each(shown, AskedTokens(frame.after, answer))

        first, second, *_ = greedy_oracle(nats, texts, 3)
        assert first.best in ((0, 1), (0, 2))
        assert second.best == (0, 3)
        gains = dict(zip(second.offered, second.gain_nats, strict=True))
        assert gains.pop((0, 3)) > 3.0 * max(gains.values()) + 1.0


def test_a_reader_reads_the_same_passages_once(tiny_base, tmp_path, monkeypatch):
    path = tmp_path / "reads.jsonl"
    passages = [np.arange(4, 30, dtype=np.uint32), np.arange(7, 20, dtype=np.uint32)]
    found = KeptReader(tiny_base, path).log_likelihood("Who is it?", passages)
    path.write_text(path.read_text() + '["torn", [[')
    again = KeptReader(tiny_base, path)
    monkeypatch.setattr(tiny_base, "step", None)  # whatever is read now fails
    np.testing.assert_array_equal(again.log_likelihood("Who is it?", passages), found)
    with pytest.raises(TypeError):
        again.log_likelihood("Who is it?", passages[:1])


CONFIG = PolicyTraining(
    net=PolicyNetConfig(width=16, heads=2, layers=1),
    loop=LoopConfig(steps=60, accumulate=3, lr=1e-2, warmup_steps=3, validate_every=20),
    blocks=(2, 4, 6),
)


def run(examples, out, net, steps: int | None = None, config: PolicyTraining = CONFIG):
    loop = make_policy_loop(config, net, examples, examples[:2], (out, {"base": "tiny"}))
    loop.resume()
    loop.run(steps)
    return loop


def test_a_short_run_moves_every_parameter_and_learns_to_take_no_echo(examples, tmp_path):
    net = PolicyNet(CONFIG.net)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    shown = [facts_shown(net, example, 4) for example in examples]
    run(examples, tmp_path, net)
    still = [name for name, p in net.named_parameters() if torch.equal(p, before[name])]
    assert still == []
    after = [facts_shown(net.eval(), example, 4) for example in examples]
    assert np.mean(after) > np.mean(shown)
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert {"loss", "right"} <= curve[0].keys()
    assert "shown echo" in curve[19]


def test_an_interrupted_run_gives_the_bits_of_one_that_was_not(examples, tmp_path):
    config = replace(CONFIG, loop=replace(CONFIG.loop, steps=9))
    whole = PolicyNet(config.net)
    run(examples, tmp_path / "whole", whole, config=config)
    for steps, seed in ((4, 0), (2, 1), (9, 2)):  # what a resumed net begins as does not matter
        parts = PolicyNet(config.net, seed)
        run(examples, tmp_path / "parts", parts, steps, config)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)
    curves = [(tmp_path / name / "curve.jsonl").read_text() for name in ("whole", "parts")]
    assert curves[0] == curves[1]


@pytest.fixture(scope="module")
def rows(held):
    nets = {"policy": PolicyNet(), "learned scores": PolicyNet(PolicyNetConfig(sees_state=False))}
    chooser = evaluation.Chooser(held, UntrainedLens(), nets)
    asked = held.stream.questions
    recall = [evaluation.recall_row(chooser, held, each) for each in asked]
    meter = GainMeter(held)
    nats = [
        evaluation.nats_row(meter, held, each, row, oracle=True)
        for each, row in zip(asked, recall, strict=True)
    ]
    return chooser, recall, nats


def test_all_methods_have_the_same_places_and_facts_first_is_the_ceiling(rows, held):
    chooser, recall, _ = rows
    for row in recall:
        for blocks in map(str, evaluation.BLOCKS):
            shown = row["read"][blocks]
            for name in ("random", "evidence", "greedy", "policy", "learned scores", "facts first"):
                assert shown[name]["used"] == int(blocks)
            assert all(each["used"] <= int(blocks) for each in shown.values())
            assert shown["facts first"]["whole"] >= max(e["whole"] for e in shown.values()) - 1e-9
    assert chooser.allocators["policy"].plans == 3 * 2 * len(evaluation.BLOCKS)
    assert not chooser.allocators["policy"].fallbacks


def test_the_untrained_policy_is_the_greedy_allocator(rows):
    for row in rows[1]:
        assert row["unread"]["5"]["learned scores"]["used"] == 5
        greedy, learned = (row["unread"]["10"][n]["whole"] for n in ("greedy", "learned scores"))
        assert greedy == learned


def test_a_report_has_intervals_nats_and_fallbacks(rows, tmp_path):
    _, recall, nats = rows
    counts = {"policy": {"plans": 9, "fallbacks": {"stopped at once": 2}}}
    summary = summarise_policy({"recall": recall, "nats": nats, "allocators": counts})
    lead = summary["shown"]["read"]["all"]["5"]["whole"]["lead"]["policy - greedy"]
    assert lead["low"] <= lead["value"] <= lead["high"]
    assert summary["nats"]["echo"]["oracle"]["methods"].keys() >= {"oracle", "policy", "greedy"}
    for row in nats:
        best = row["nothing"] - row["oracle"]
        assert best >= -1e-9
        assert row["oracle_blocks"] <= evaluation.ORACLE_BLOCKS
    write_policy_report(tmp_path, summary)
    text = (tmp_path / "report.md").read_text()
    assert "stopped at once 2" in text
    assert "policy - greedy" in text
    assert (tmp_path / "report.png").stat().st_size > 1000
