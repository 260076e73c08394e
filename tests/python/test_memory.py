"""The memory as a user has it: real store, tiny base (its words are noise, its sources are not)."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

import megacontext
from megacontext.config import FrameConfig, GenerationConfig, RuntimeConfig
from megacontext.models import PromptRunner, TextTokenizer, TransformersBase
from megacontext.runtime import GistRecord
from megacontext_ext.errors import (
    Corruption,
    InvalidArgument,
    MegaContextError,
    NotFound,
    OverBudget,
    StoreLocked,
    Unsupported,
)

from .conftest import tiny_llama

FILLER = "Every record has a checksum, so a torn write is seen and cut away. " * 80
FACT = "The captain of the ship Astrid is Henrik Dahl. "
SMALL = RuntimeConfig(budget_places=512, protected_tail_tokens=64)
SHORT = GenerationConfig(max_new_tokens=6)


@pytest.fixture
def memory(tmp_path, tiny_base):
    with megacontext.open(tmp_path / "m", tiny_base, config=SMALL) as opened:
        yield opened


@pytest.fixture
def filled(memory):
    memory.ingest(FILLER + FACT + FILLER, source="log.txt")
    memory.ingest(FILLER.replace("record", "letter"), source="letters.txt")
    return memory


def test_an_answer_names_the_span_that_holds_the_fact(filled):
    answer = filled.ask("Who is captain of the ship Astrid?", SHORT)
    best = answer.sources[0]
    assert best.source == "log.txt"
    assert "Henrik Dahl" in best.text
    text = FILLER + FACT + FILLER
    assert text[best.char_start : best.char_end].strip() == best.text.strip()
    assert best.token_start % 32 == 0


def test_an_answer_streams_and_can_be_read_again(filled):
    answer = filled.ask("Who is captain?", SHORT)
    pieces = list(answer)
    assert "".join(pieces).strip() == answer.text
    assert "".join(answer).strip() == answer.text
    assert 0 < answer.stats.generated_tokens <= 6
    assert 0 < answer.stats.first_token_seconds <= answer.stats.seconds
    assert answer.to_json()["sources"][0]["source"] == "log.txt"


def test_confidence_is_the_mean_probability_of_what_was_drawn(filled):
    answer = filled.ask("Who is captain?", SHORT)
    told = answer.text
    runner, prompt, logs = PromptRunner(filled.base), filled._session.last.prompt, []
    for _ in range(answer.stats.generated_tokens):
        likelihood = torch.log_softmax(runner.read(prompt), dim=-1)
        logs.append(float(likelihood.max()))
        prompt = prompt.then(int(likelihood.argmax()))
    assert len(logs) == SHORT.max_new_tokens  # no end token, which would count too
    assert answer.stats.confidence == pytest.approx(np.exp(np.mean(logs)), rel=1e-4)
    assert told == answer.text


def test_a_prompt_never_exceeds_the_budget(filled):
    for question in ("Astrid?", "checksum torn write record letter " * 8):
        view = filled.working_context(question)
        assert len(view.assembled.prompt) <= SMALL.budget_places
        assert view.assembled.left_out_tokens > 0


def test_the_view_accounts_for_every_token_and_place(filled):
    view = filled.working_context("Who is captain of the ship Astrid?")
    plain = view.to_json()
    assert sum(e["token_end"] - e["token_start"] for e in plain["entries"]) == filled.token_count
    assert plain["prompt_places"] == sum(
        plain[name] for name in ("entry_places", "marker_places", "frame_places")
    )
    assert f"{plain['left_out_tokens']:,} tokens left out" in view.describe()


def test_another_question_moves_the_focus(filled):
    first = filled.ask("captain ship Astrid Henrik", SHORT)
    second = filled.ask("letter letter", SHORT)
    assert first.sources[0].source == "log.txt"
    assert second.sources[0].source == "letters.txt"
    assert all("Henrik" not in span.text for span in second.sources)


def test_a_long_answer_refocuses_every_k_tokens(filled):
    config = GenerationConfig(max_new_tokens=80, temperature=1.0, seed=3)
    answer = filled.ask("captain Astrid", config)
    _ = answer.text
    assert answer.stats.refocus_count == 1 + answer.stats.generated_tokens // 32
    assert answer.stats.generated_tokens > 32
    # What did not change is not computed again.
    assert answer.stats.computed_places < answer.stats.generated_tokens * 2 + 3 * 512


def test_answers_read_in_turns_are_those_read_one_after_the_other(filled):
    config = GenerationConfig(max_new_tokens=70, temperature=1.0, seed=3)
    alone = [filled.ask(question, config).text for question in ("captain Astrid", "letter")]
    first, second = (filled.ask(question, config) for question in ("captain Astrid", "letter"))
    for _ in zip(first, second, strict=False):
        pass
    assert [first.text, second.text] == alone


@pytest.mark.parametrize("words", range(10, 60, 7))
def test_every_question_fits_or_is_refused(filled, words):
    """Around the largest question that fits, nothing else happens."""
    question = "why " * (words * 8)
    try:
        view = filled.working_context(question)
    except OverBudget:
        return
    assert len(view.assembled.prompt) <= SMALL.budget_places


def test_the_same_memory_answers_alike_after_reopening(tmp_path, tiny_base):
    with megacontext.open(tmp_path / "m", tiny_base, config=SMALL) as memory:
        memory.ingest(FILLER + FACT, source="log.txt")
        first = memory.ask("Astrid?", SHORT).to_json()
    with megacontext.open(tmp_path / "m", tiny_base, config=SMALL, read_only=True) as memory:
        second = memory.ask("Astrid?", SHORT).to_json()
    assert (first["answer"], first["sources"]) == (second["answer"], second["sources"])


def test_a_chat_is_remembered_and_found_later(tmp_path, tiny_base):
    with megacontext.open(tmp_path / "m", tiny_base, config=SMALL) as memory:
        memory.ingest(FILLER, source="log.txt")
        talk = memory.chat("trip")
        _ = talk.ask("My cabin on the Astrid has number 417.", SHORT).text
        for turn in range(6):
            _ = talk.ask(f"Tell me about checksum {turn}.", SHORT).text
        assert "conversation/trip" in memory.sources()
    with megacontext.open(tmp_path / "m", tiny_base, config=SMALL) as memory:
        answer = memory.ask("Which number has my cabin?", SHORT)
        found = [span for span in answer.sources if "417" in span.text]
        assert found
        assert found[0].source == "conversation/trip"


def test_a_chat_keeps_its_newest_tokens_in_focus(filled):
    talk = filled.chat()
    _ = talk.ask("The word of the day is lighthouse.", SHORT).text
    answer = talk.ask("Hello?", SHORT)
    tail = [span for span in answer.sources if span.source == "conversation/default"]
    assert any("lighthouse" in span.text for span in tail)


def test_a_chat_given_up_half_way_is_remembered(filled):
    talk = filled.chat()
    next(iter(talk.ask("The word is lighthouse.", SHORT)))
    _ = talk.ask("And now?", SHORT)
    partition = filled.store.find_partition("conversation/default")
    tokens = filled.store.read_tokens(partition.id, 0, partition.token_count)
    text = filled.base.tokenizer.decode(tokens)
    assert text.startswith("User: The word is lighthouse.\nAssistant:")
    # The second was not begun to be read, so it never happened.
    assert "And now?" not in text


class TestInput:
    """What people hand in."""

    def test_a_path_a_folder_and_an_iterator(self, memory, tmp_path):
        folder = tmp_path / "docs"
        (folder / "sub").mkdir(parents=True)
        (folder / "one.txt").write_text("one " + FACT)
        (folder / "sub" / "two.md").write_text("two")
        memory.ingest(folder)
        memory.ingest(str(folder / "one.txt"))
        memory.ingest(iter(["three ", "four"]), source="stream")
        memory.ingest("plain text")
        names = memory.sources()
        assert names[:2] == ["docs/one.txt", "docs/sub/two.md"]
        assert names[2:4] == [str(folder / "one.txt"), "stream"]
        assert names[4].startswith("text-")

    def test_a_folder_without_text_is_no_error(self, memory, tmp_path):
        (tmp_path / "empty").mkdir()
        assert memory.ingest(tmp_path / "empty") == []

    def test_a_slip_in_a_path_is_not_taken_for_text(self, memory):
        for slip in ("handbok.txt", "docs/none"):
            with pytest.raises(NotFound, match="path must exist"):
                memory.ingest(slip)
        assert memory.sources() == []

    def test_one_long_line_is_text_not_a_name(self, memory):
        (report,) = memory.ingest("the sea was calm and " * 40)
        assert report.total_tokens > 100

    def test_an_iterator_needs_a_name(self, memory):
        with pytest.raises(InvalidArgument, match="source must be given for an iterator"):
            memory.ingest(iter(["a"]))

    def test_an_empty_memory_and_an_empty_document_can_be_asked(self, memory):
        assert memory.ask("Anything?", SHORT).sources == ()
        memory.ingest("", source="empty.txt")
        assert memory.ask("Anything?", SHORT).sources == ()
        assert memory.token_count == 0

    @pytest.mark.parametrize("text", ["x", "The pass word is zanzibar."])
    def test_a_tiny_document_is_found(self, memory, text):
        memory.ingest(FILLER, source="log.txt")
        memory.ingest(text, source="note.txt")
        answer = memory.ask(text, SHORT)
        assert answer.sources[0].source == "note.txt"
        assert answer.sources[0].text == text
        assert answer.sources[0].char_end == len(text)

    def test_invalid_utf8_is_reported(self, memory, tmp_path):
        path = tmp_path / "bad.txt"
        path.write_bytes(b"good \xff bad")
        (report,) = memory.ingest(path)
        assert report.invalid_bytes == 1

    def test_a_thousand_small_sources_fit(self, memory):
        for number in range(300):
            memory.ingest(f"note {number} says harbour{number}", source=f"n{number}")
        answer = memory.ask("harbour217", SHORT)
        assert answer.sources[0].source == "n217"
        assert answer.stats.prompt_places <= SMALL.budget_places


class TestRefusals:
    """What cannot be done is said, with the numbers, and nothing is lost."""

    def test_a_question_longer_than_the_budget(self, filled):
        with pytest.raises(OverBudget, match="budget of 512 places"):
            filled.ask("why " * 600)
        assert filled.ask("Astrid?", SHORT).sources

    def test_another_models_store(self, tmp_path, tiny_base, text_tokenizer):
        megacontext.open(tmp_path / "m", tiny_base).close()
        model = tiny_llama(text_tokenizer.vocabulary_tokens)
        model.config.num_hidden_layers = 2
        del model.model.layers[2]
        other = TransformersBase(model, text_tokenizer, "other")
        with pytest.raises(InvalidArgument, match="model"):
            megacontext.open(tmp_path / "m", other)

    def test_another_tokenizers_store(self, tmp_path, tiny_base, transformers_tokenizer):
        megacontext.open(tmp_path / "m", tiny_base).close()
        import copy

        changed = copy.deepcopy(transformers_tokenizer)
        changed.add_tokens(["<new>"])
        other = TransformersBase(tiny_base.model, TextTokenizer(changed), "other")
        with pytest.raises(InvalidArgument, match="tokenizer"):
            megacontext.open(tmp_path / "m", other)

    def test_two_writers(self, memory, tiny_base):
        with pytest.raises(StoreLocked):
            megacontext.open(memory.store.path, tiny_base)

    def test_a_reader_beside_the_writer(self, filled, tiny_base):
        with megacontext.open(filled.store.path, tiny_base, read_only=True) as reader:
            assert reader.token_count == filled.token_count
            with pytest.raises(InvalidArgument, match="read-only"):
                reader.ingest("more", source="more")
            with pytest.raises(InvalidArgument, match="read-only"):
                reader.chat()

    def test_a_foreign_directory(self, tmp_path, tiny_base):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "a.jpg").write_bytes(b"\xff\xd8")
        with pytest.raises(Corruption):
            megacontext.open(tmp_path / "photos", tiny_base)
        assert (tmp_path / "photos" / "a.jpg").exists()

    def test_an_unknown_model(self, tmp_path):
        with pytest.raises(NotFound, match="smollm2"):
            megacontext.open(tmp_path / "m", "gpt-17")
        assert not (tmp_path / "m").exists()

    def test_no_view_before_the_first_question(self, memory):
        with pytest.raises(NotFound, match="asked before"):
            memory.last_working_context()


def test_a_full_disk_is_an_error_and_what_was_acknowledged_stays(tmp_path, tiny_folder):
    """A file size limit of 600 KB stands for the full disk; the process is one of its own."""
    script = f"""
import resource, signal, sys
import megacontext
from megacontext.models import load
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
base = load({tiny_folder!r}, dtype="float32")
memory = megacontext.open({str(tmp_path / "m")!r}, base)
memory.ingest({FACT!r} * 40, source="first")
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
try:
    memory.ingest({FILLER!r} * 200, source="large")
except OSError as error:
    print(type(error).__name__, error.errno)
    sys.exit(7)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 7, done.stdout + done.stderr
    assert "IoError" in done.stdout
    base = megacontext.models.load(tiny_folder, dtype="float32")
    with megacontext.open(tmp_path / "m", base, config=SMALL) as memory:
        memory.store.check()
        text = FACT * 40
        tokens = memory.store.read_tokens(0, 0, memory.store.token_count(0))
        assert memory.base.tokenizer.decode(tokens) == text
        memory.ingest(FILLER * 3, source="after")
        assert memory.ask("Astrid?", SHORT).sources[0].source == "first"


def test_a_gist_that_helps_is_shown_in_an_answer(tmp_path, tiny_base):
    """The seam for gists, end to end: recorded beside the store, rows in it."""
    path = tmp_path / "m"
    with megacontext.open(path, tiny_base, config=SMALL) as memory:
        (report,) = memory.ingest(FILLER, source="log.txt")
        nodes, width = report.total_tokens // 32, tiny_base.facts.width
        memory.store.define_rows("mean", 1, "f32", width)
        rows = np.random.default_rng(0).normal(size=(nodes, width)).astype(np.float32)
        memory.store.put_rows("mean", report.partition, 0, rows)
        memory.store.commit()
    folder = Path(f"{path}.gists")
    folder.mkdir()
    record = GistRecord(tiny_base.facts.identity, 1, "mean", 1, 0.3, 0.2)
    (folder / "mean.gist.json").write_text(json.dumps(asdict(record)))
    with megacontext.open(path, tiny_base, config=SMALL) as memory:
        answer = memory.ask("checksum", SHORT)
        assert any(span.lod == 1 for span in answer.sources)
        assert memory.last_working_context().assembled.prompt.rows is not None
        assert answer.text is not None


def test_frames_are_words_and_can_be_changed(tmp_path, tiny_base):
    frame = FrameConfig(lead="Notes: ", ask="\n{question} Short:")
    config = RuntimeConfig(budget_places=512, frame=frame)
    with megacontext.open(tmp_path / "m", tiny_base, config=config) as memory:
        memory.ingest(FACT, source="log.txt")
        view = memory.working_context("Who?")
        text = tiny_base.tokenizer.decode(view.assembled.prompt.tokens.astype(np.uint32))
        assert "Notes: The captain" in text
        assert "\nWho? Short:" in text


@pytest.mark.smollm2
def test_smollm2_answers_from_the_middle_of_real_text(tmp_path, smollm2):
    from megacontext.demo.corpus import load_corpus

    paragraphs = load_corpus().documents[0].paragraphs[:300]
    paragraphs[150] += " The pass key of Quillon Depot is 88541. Remember it."
    with megacontext.open(tmp_path / "m", smollm2("bfloat16")) as memory:
        memory.ingest("\n\n".join(paragraphs), source="encyclopedia.txt")
        answer = memory.ask("What is the pass key of Quillon Depot?")
        assert "88541" in answer.text
        assert "88541" in answer.sources[0].text
        assert answer.stats.prompt_places < 2048 < memory.token_count // 10


def test_errors_are_of_one_family():
    for kind in (Corruption, InvalidArgument, NotFound, OverBudget, StoreLocked, Unsupported):
        assert issubclass(kind, MegaContextError)
