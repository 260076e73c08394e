"""What a shown passage names is found, and followed on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import megacontext
from megacontext.config import HopConfig, LensConfig
from megacontext.lens import Passage, Question, UntrainedLens
from megacontext.lens.block_axis import BlockAxis
from megacontext.lens.hops import Hops
from megacontext.lens.sentences import words_of
from megacontext.models.tokenizer import ChatParts
from megacontext_ext.errors import InvalidArgument

ASKED = "Which variables hold the value 31915?"
CHAIN = ["VAR xvewi = 31915.", "VAR qblrm = VAR xvewi.", "VAR eveek = VAR qblrm."]


class Overlap(Hops):
    """A base whose surprise is 10 nats a word, and nothing for a word that stands before."""

    def _surprise(self, before, texts):
        said, decode = words_of(before), self._tokenizer.decode
        return np.array([10.0 * len(words_of(decode(t)) - said) for t in texts], np.float32)


def padded(lines):
    """The lines, each with much else around it, whose words are everywhere."""
    some = ["Some say that it is old here and that the weather is fair. " * 3 for _ in range(40)]
    for number, line in enumerate(lines):
        some.insert(6 * number + 5, f"\n{line}\n")
    return " ".join(some)


def settings(**given):
    """Few words of the filler are in less than 16 blocks; `Overlap` tells less than a base."""
    loose = {"postings_max": 16, "share": 0.2, "names_share": 0.1, "names_nats": 5.0}
    return HopConfig(**{**loose, **given})


@pytest.fixture
def memory(tmp_path, tiny_base):
    with megacontext.open(tmp_path / "m", tiny_base) as opened:
        yield opened


def followed(memory, hops, asked=ASKED, name="31915"):
    """Texts that hops add to the newest block with `name`."""
    history = memory._parts.history
    history.refresh()
    axis = BlockAxis(history.block_counts(), 3)
    hits = history.search(name, 8)
    block = int(hits.blocks.max())
    shown = Passage(int(hits.partitions[0]), block - 1, block + 2, 1.0)
    found = hops.follow(hops.statements(history, axis), asked, [shown])
    decode = memory.base.tokenizer.decode
    return [(p, decode(history.tokens(p.partition, p.start_block, p.end_block))) for p in found]


def test_a_chain_is_followed_to_its_end(memory):
    memory.ingest(iter([padded(CHAIN)]), source="program")
    found = followed(memory, Overlap(memory.base, settings()))
    assert all(line in text for line, (_, text) in zip(CHAIN[1:], found, strict=True))
    assert [p.score for p, _ in found] == pytest.approx([0.9, 0.81])


@pytest.mark.parametrize(
    "config",
    [
        settings(looks=0),
        # Nothing takes all of a surprise away, and no name so much of it.
        settings(share=1.0),
        settings(names_nats=1e6),
        settings(names_share=1.0),
    ],
)
def test_what_tells_too_little_is_no_step(memory, config):
    memory.ingest(iter([padded(CHAIN)]), source="program")
    assert followed(memory, Overlap(memory.base, config)) == []


def test_looks_bound_the_hops(memory):
    memory.ingest(iter([padded(CHAIN)]), source="program")
    config = settings(looks=1)
    assert len(followed(memory, Overlap(memory.base, config))) == 1


def test_a_name_that_stands_in_many_places_leads_nowhere(memory):
    memory.ingest(iter([padded([*CHAIN[:1], *["We met xvewi again."] * 6])]), source="program")
    config = settings(postings_max=4, share=0.0, names_share=0.0, names_nats=0.0)
    assert followed(memory, Overlap(memory.base, config)) == []


def test_the_base_is_not_asked_where_no_word_leads_anywhere(memory):
    class Silent(Hops):
        def _surprise(self, before, texts):
            raise AssertionError("asked")

    memory.ingest(iter([padded(["The secret of 31915 is plain."])]), source="essay")
    assert followed(memory, Silent(memory.base, settings())) == []


def test_other_sources_are_found_and_one_that_is_shown_is_not_shown_twice(memory):
    memory.ingest(iter([padded(["The mill 31915 was built by Orla Quist."])]), source="mills")
    memory.ingest(iter([padded(["Orla Quist was born in Ribe."])]), source="people")
    found = followed(memory, Overlap(memory.base, settings()))
    assert len(found) == 1
    assert "Ribe" in found[0][1]
    assert found[0][0].partition == 1


def test_a_history_of_one_block_leads_nowhere(memory):
    memory.ingest(iter(["The value is 31915."]), source="note")
    history = memory._parts.history
    history.refresh()
    axis = BlockAxis(history.block_counts(), 3)
    hops = Overlap(memory.base, settings())
    shown = Passage(min(history.block_counts()), 0, 1, 1.0)
    assert hops.follow(hops.statements(history, axis), ASKED, [shown]) == []


def test_surprise_is_that_of_the_plain_model(tiny_base):
    hops, tokenizer = Hops(tiny_base, HopConfig()), tiny_base.tokenizer
    texts = [tokenizer.encode(text) for text in ("\nA log", "\nThe keeper of Skagen is here.")]
    for before in ("", "Numbers 48213"):
        got = hops._surprise(before, texts)
        for line, text in enumerate(texts):
            lead = np.concatenate([tokenizer.chat_parts().before, tokenizer.encode(before)])
            whole = torch.from_numpy(np.concatenate([lead, text]).astype(np.int64))
            with torch.inference_mode():
                logits = tiny_base.model(whole[None]).logits[0]
            chosen = torch.log_softmax(logits[len(lead) - 1 : -1].float(), -1)
            expected = -chosen.gather(-1, whole[len(lead) :, None]).sum()
            assert got[line] == pytest.approx(float(expected), abs=2e-2)


def test_a_base_without_chat_or_beginning_is_read_too(memory):
    class Plain:
        def __getattr__(self, name):
            return getattr(memory.base, name)

        @property
        def tokenizer(self):
            tokenizer, nothing = memory.base.tokenizer, np.zeros(0, np.uint32)

            class Bare:
                def __getattr__(self, name):
                    return getattr(tokenizer, name)

                def chat_parts(self):
                    return ChatParts(nothing, nothing)

            return Bare()

    hops = Hops(Plain(), HopConfig())
    nats = hops._surprise("", [memory.base.tokenizer.encode("\nA log")])
    assert np.isfinite(nats).all()
    assert nats[0] > 0.0


@pytest.mark.parametrize(
    ("name", "value"),
    [("rare_terms", -1), ("rare_hits", 0), ("newest_nats", -0.5)],
)
def test_bad_settings_of_the_lens_are_refused(name, value):
    with pytest.raises(InvalidArgument, match=f"{name}.*{value}"):
        LensConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("looks", -1), ("candidates", 0), ("postings_max", 1), ("share", 1.5), ("names_share", -0.1),
     ("names_nats", -1.0), ("score_share", 0.0)],
)  # fmt: skip
def test_bad_settings_are_refused(name, value):
    with pytest.raises(InvalidArgument, match=f"{name}.*{value}"):
        HopConfig(**{name: value})


class Level:
    """A reader behind whose passages every question is as likely, but for short passages."""

    def __init__(self, short_nats):
        self.short_nats = short_nats

    def log_likelihood(self, question, passages):
        return np.array([[0.0 if len(p) >= 64 else -self.short_nats] for p in passages], np.float32)


@pytest.mark.parametrize(("short_nats", "blocks"), [(0.0, 2), (1.9, 2), (2.1, 5)])
def test_a_passage_is_cut_to_its_statement_where_that_says_as_much(memory, short_nats, blocks):
    memory.ingest(iter([padded(["The mill 31915 is old.", "The mill 4711 is new."])]), source="m")
    history = memory._parts.history
    history.refresh()
    hops = Overlap(memory.base, settings(looks=0))
    lens = UntrainedLens(LensConfig(max_passages=1), Level(short_nats), hops)
    (passage,) = lens.score(history, Question("Is mill 31915 old?")).passages[:1]
    assert passage.end_block - passage.start_block <= blocks
    text = memory.base.tokenizer.decode(
        history.tokens(passage.partition, passage.start_block, passage.end_block)
    )
    assert "mill 31915 is old." in text
    assert (passage.end_block - passage.start_block == 5) == (blocks == 5)
