"""An export holds everything that cannot be made again; an import answers like the original."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

import megacontext
from megacontext.config import GenerationConfig, RuntimeConfig
from megacontext.curate import AuditLog, Plan, Step, apply_plan, restore
from megacontext.runtime import SKETCH_ROWS
from megacontext.transfer import backup, backup_memory, import_lines, portable
from megacontext_ext import Store
from megacontext_ext.errors import Corruption, InvalidArgument, NotFound

SMALL = RuntimeConfig(budget_places=512)
FILLER = "Every record has a checksum, so a torn write is seen and cut away. " * 200
TEXTS = {
    "log.txt": FILLER + "Où est le quokka? " + FILLER[:500],
    "empty.txt": "",
    "note.txt": "A lighthouse.",
}


@pytest.fixture
def memory(tmp_path, tiny_base, monkeypatch):
    monkeypatch.setattr(portable, "_CHUNK_TOKENS", 1024)
    with megacontext.open(tmp_path / "m", tiny_base, config=SMALL) as opened:
        for name, text in TEXTS.items():
            opened.ingest(text, source=name, metadata={"tags": [name[0]]})
        opened.annotate("log.txt", 5, 40, ["intro"])
        opened.store.set_hidden(2, True)
        yield opened


def exported(memory, **options) -> list[str]:
    out = io.StringIO()
    assert memory.export(out, **options) == 3
    return out.getvalue().splitlines(keepends=True)


def contents(store) -> list:
    found = []
    for p in store.partitions():
        sketches = store.read_rows(SKETCH_ROWS, p.id, 0, store.row_count(SKETCH_ROWS, p.id))
        blocks = -(-p.token_count // 32)
        found.append(
            (
                p.source,
                json.loads(p.metadata_json),
                p.hidden,
                sketches.tobytes(),
                store.read_tokens(p.id, 0, p.token_count).tolist(),
                store.block_char_starts(p.id, 0, blocks).tolist(),
            )
        )
    hits = [array.tolist() for array in store.search("checksum quokka", 1000)]
    return [*found, hits]


def test_an_import_is_the_original(memory, tmp_path, tiny_base):
    lines = exported(memory, text=False)
    assert all("text" not in json.loads(line) for line in lines)
    with megacontext.open(tmp_path / "copy", tiny_base, config=SMALL) as copy:
        report = copy.import_lines(lines)
        assert (report.sources, report.tokens) == (3, memory.token_count)
        assert not report.retokenised
        assert contents(copy.store) == contents(memory.store)
        # The source is as good as ingested: what is there is known, what grew goes on.
        (again,) = copy.ingest(TEXTS["log.txt"] + " More.", source="log.txt")
        assert 0 < again.added_tokens < 10
        with pytest.raises(InvalidArgument, match=r"got 'log\.txt' again"):
            copy.import_lines(lines)


def test_another_tokenizer_reads_the_text(memory, tmp_path, tiny_base):
    lines = exported(memory)
    texts = [json.loads(line).get("text", "") for line in lines]
    assert "".join(texts) == "".join(TEXTS.values())
    foreign = [lines[0].replace(tiny_base.tokenizer.hash, "another"), *lines[1:]]
    with megacontext.open(tmp_path / "copy", tiny_base, config=SMALL) as copy:
        assert copy.import_lines(foreign).retokenised
        assert copy.store.search("quokka", 9)[0].tolist() == [0]
        assert copy.info("log.txt").tags == ("l",)
        assert copy.info("log.txt").spans == ()
        assert copy.sources() == ["log.txt", "empty.txt"]
    bare = [foreign[0], *exported(memory, text=False)[1:]]
    with (
        megacontext.open(tmp_path / "bare", tiny_base, config=SMALL) as copy,
        pytest.raises(InvalidArgument, match="must hold text"),
    ):
        copy.import_lines(bare)


def test_a_cut_or_damaged_export_is_refused_and_can_be_finished(memory, tmp_path, tiny_base):
    lines = exported(memory, text=False)
    with megacontext.open(tmp_path / "copy", tiny_base, config=SMALL) as copy:
        for count in (0, 2, len(lines) - 1):
            with pytest.raises(Corruption, match=f"line {count + 1}"):
                import_lines(lines[:count], copy.store, copy._ingestor, tiny_base.tokenizer.hash)
        assert copy.sources() == ["log.txt", "empty.txt"]
    with megacontext.open(tmp_path / "other", tiny_base, config=SMALL) as copy:
        with pytest.raises(Corruption, match="line 2"):
            copy.import_lines([*lines[:1], "{]"])
        with pytest.raises(Corruption):
            copy.import_lines(lines[:3])  # in the middle of the first source
        copy.import_lines(lines)
        assert [p.source for p in copy.store.partitions()] == list(TEXTS)


def test_a_backup_answers_like_the_original(memory, tmp_path, tiny_base):
    memory.backup(tmp_path / "backup")
    memory.replace("log.txt", "All new.")
    with megacontext.open(tmp_path / "backup", tiny_base, config=SMALL) as copy:
        assert copy.token_count > memory.token_count
        answer = copy.ask("quokka", GenerationConfig(max_new_tokens=2))
        assert "quokka" in answer.sources[0].text
        np.testing.assert_array_equal(
            copy.store.read_rows(SKETCH_ROWS, 0, 0, 5),
            copy._ingestor._sketcher.block_rows(copy.store.read_tokens(0, 0, 160).reshape(-1, 32)),
        )


def test_a_backup_has_what_lies_beside_the_memory_but_not_its_place_as_writer(
    memory, tmp_path, tiny_base
):
    store = memory.store
    rows = store.read_rows(SKETCH_ROWS, 0, 0, store.row_count(SKETCH_ROWS, 0))
    step = Step("compact", "log.txt", 0, store.token_count(0), (SKETCH_ROWS,), 0, "")
    (entry,) = apply_plan(store, Plan((step,)), "me").done
    for folder, name in (("gists", "a.gist.json"), ("remote", "writer-1.json")):
        (tmp_path / f"m.{folder}").mkdir()
        (tmp_path / f"m.{folder}" / name).write_text("{}")
    backup_memory(store, tmp_path / "copy")
    made = {path.name for path in tmp_path.iterdir() if path.name.startswith("copy")}
    assert made == {"copy", "copy.curate", "copy.gists"}
    assert (tmp_path / "copy.gists" / "a.gist.json").read_text() == "{}"
    with Store.open(tmp_path / "copy") as copy:
        assert copy.row_count(SKETCH_ROWS, 0) == 0
        restore(copy, entry.number, "me")  # by the copied log, from the copied rows
        np.testing.assert_array_equal(copy.read_rows(SKETCH_ROWS, 0, 0, len(rows)), rows)
    with pytest.raises(InvalidArgument, match="copy must be new or empty"):
        backup_memory(store, tmp_path / "copy")


@pytest.mark.parametrize("stop", ["copytree", "rename"])
def test_a_backup_that_stops_is_no_memory_and_is_made_again(memory, tmp_path, monkeypatch, stop):
    step = Step("archive", "log.txt", 0, memory.store.token_count(0), (), 0, "")
    assert apply_plan(memory.store, Plan((step,)), "me").done

    def fail(*_: object) -> None:
        raise OSError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(backup.shutil if stop == "copytree" else backup.os, stop, fail)
        with pytest.raises(OSError, match="stopped"):
            backup_memory(memory.store, tmp_path / "copy")
    with pytest.raises(NotFound):
        Store.open(tmp_path / "copy", read_only=True)
    backup_memory(memory.store, tmp_path / "copy")
    with Store.open(tmp_path / "copy", read_only=True) as copy:
        assert copy.partition(0).hidden
    assert len(AuditLog(str(tmp_path / "copy")).entries()) == 1
    (tmp_path / "other.curate").mkdir()
    (tmp_path / "other.curate" / "audit.jsonl").write_text("")
    with pytest.raises(InvalidArgument, match=r"other\.curate must be new"):
        backup_memory(memory.store, tmp_path / "other")
