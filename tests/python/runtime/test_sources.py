"""Reading: bytes become text in bounded memory, and what is lost is counted."""

from __future__ import annotations

import pytest

from megacontext.runtime import file_source, folder_sources, iterator_source, text_source
from megacontext.runtime.sources import PORTION_BYTES
from megacontext_ext.errors import InvalidArgument, NotFound


def read(source) -> str:
    return "".join(source.portions)


def test_invalid_utf8_is_replaced_and_counted(tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"good \xff\xfe bad \xe2\x82 end")
    source = file_source(path)
    assert read(source) == "good \ufffd\ufffd bad \ufffd end"
    assert source.invalid_bytes == 3


def test_replacement_characters_of_the_file_itself_are_not_counted(tmp_path):
    path = tmp_path / "fffd.txt"
    # One stands across the border of two portions.
    path.write_bytes(b"x" * (PORTION_BYTES - 1) + "\ufffd".encode() + b" \xff")
    source = file_source(path)
    assert read(source).endswith("\ufffd \ufffd")
    assert source.invalid_bytes == 1


def test_a_character_across_portions_is_whole(tmp_path):
    path = tmp_path / "seam.txt"
    text = "x" * (PORTION_BYTES - 1) + "日本"
    path.write_text(text)
    source = file_source(path)
    assert read(source) == text
    assert source.invalid_bytes == 0


def test_lone_surrogates_are_replaced_and_counted():
    source = text_source("t", "a\ud800b")
    assert read(source) == "a\ufffdb"
    assert source.invalid_bytes == 1


def test_a_folder_gives_its_text_files_in_order(tmp_path):
    for name, content in {
        "b.txt": b"2",
        "a/z.md": b"1",
        ".hidden": b"no",
        "c.bin": b"\0\1",
    }.items():
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    found = {source.name: read(source) for source in folder_sources(tmp_path / "docs")}
    assert found == {"docs/b.txt": "2", "docs/a/z.md": "1"}
    assert list(found) == ["docs/b.txt", "docs/a/z.md"]


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(NotFound, match="path must exist"):
        file_source(tmp_path / "none.txt")


def test_an_iterator_must_give_texts():
    with pytest.raises(InvalidArgument, match="must give str, got int at 1"):
        read(iterator_source("log", ["ok", 3]))  # type: ignore[list-item]
