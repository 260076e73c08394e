"""Windows repeat exactly, cover the documents and refuse broken shards."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from megacontext.eval.held_out import held_out_spans, read_shard
from megacontext.train.tokens import TokenWindows, open_windows
from megacontext_ext.errors import InvalidArgument


def write(path: Path, documents: list[int]) -> Path:
    """Documents of these lengths; a token's value is its document's number + 1."""
    parts = [np.append(np.full(n, i + 1, np.uint16), 0) for i, n in enumerate(documents)]
    raw = np.concatenate(parts).astype("<u2").tobytes()
    path.write_bytes(lzma.compress(raw) if path.suffix == ".xz" else raw)
    return path


def test_packed_and_plain_shards_read_alike(tmp_path: Path) -> None:
    plain = read_shard(write(tmp_path / "a.u16", [5, 3]))
    assert np.array_equal(plain, read_shard(write(tmp_path / "a.u16.xz", [5, 3])))


def test_windows_stay_in_long_documents_and_repeat(tmp_path: Path) -> None:
    shard = write(tmp_path / "a.u16", [1050, 10, 750, 350])
    windows = TokenWindows([shard], 100, seed=3, min_document=100)
    assert len(windows) == 10 + 7 + 3
    starts = windows.starts(0, 60)
    assert np.array_equal(starts, TokenWindows([shard], 100, 3, 100).starts(0, 60))
    assert np.array_equal(starts[17:42], windows.starts(17, 25))
    for start in starts:
        window = windows.tokens[start : start + 100]
        assert len(set(window.tolist())) == 1
        assert window[0] in (1, 3, 4)
    assert not np.array_equal(np.sort(starts[:20]), np.sort(starts[20:40]))


def test_a_short_document_gives_a_window_that_runs_on(tmp_path: Path) -> None:
    shard = write(tmp_path / "a.u16", [60, 400])
    windows = TokenWindows([shard], 100, seed=0, min_document=50)
    assert 0 in windows.starts(0, len(windows))


def test_broken_shards_are_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.u16").write_bytes(b"abc")
    (tmp_path / "empty.u16").write_bytes(b"")
    for name in ("odd.u16", "empty.u16"):
        with pytest.raises(ValueError, match="positive even number of bytes"):
            TokenWindows([tmp_path / name], 10, 0)
    with pytest.raises(ValueError, match="got none"):
        TokenWindows([write(tmp_path / "short.u16", [5, 5])], 4, 0, min_document=10)


def test_held_out_spans_are_balanced_and_do_not_overlap(tmp_path: Path) -> None:
    write(tmp_path / "test.u16", [500, 500, 90])
    rows = [["x", "prose", "a", 0, 501], ["y", "prose", "b", 501, 1002]]
    rows.append(["z", "code", "c", 1002, 1093])
    (tmp_path / "test.json").write_text(json.dumps({"documents": rows}))
    spans = held_out_spans(tmp_path / "test.u16", 40, 6)
    assert [s.domain for s in spans] == ["code"] * 2 + ["prose"] * 6
    assert sorted(s.source for s in spans[2:]) == ["x"] * 3 + ["y"] * 3
    assert all(len(set(s.ids.tolist())) == 1 for s in spans)


def test_a_folder_without_shards_or_of_another_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"must hold train-.*got none"):
        open_windows(tmp_path, 20, 0, 10, 100)
    write(tmp_path / "train-00.u16", [50, 60])
    assert len(open_windows(tmp_path, 20, 0, 10, 3)) == 5
    with pytest.raises(InvalidArgument, match="below the base's vocabulary of 2, got 2"):
        open_windows(tmp_path, 20, 0, 10, 2)
