"""Where text comes from: a string, a file, a folder, an iterator. All stream in bounded memory."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megacontext_ext.errors import InvalidArgument, IoError, NotFound

PORTION_BYTES = 1 << 18
# Files that hold no text by their first bytes: a zero byte among the first 4 KiB (as git does).
_PROBE_BYTES = 4096
_REPLACEMENT = "\ufffd".encode()


@dataclass(slots=True)
class Source:
    """One named text. `portions` may be read once; `invalid_bytes` counts what was not UTF-8."""

    name: str
    kind: str
    portions: Iterable[str]
    # Characters, where known beforehand; for files the bytes.
    length: int | None = None
    path: str | None = None
    invalid_bytes: int = 0
    metadata: dict[str, object] = field(default_factory=dict)


def text_source(name: str, text: str) -> Source:
    """A text in memory, in portions."""
    source = Source(name, "text", (), length=len(text))
    portions = (text[at : at + PORTION_BYTES] for at in range(0, len(text), PORTION_BYTES))
    source.portions = _clean(source, portions)
    return source


def iterator_source(name: str, texts: Iterable[str]) -> Source:
    """Texts as they come, joined without a separator."""
    source = Source(name, "iterator", ())
    source.portions = _clean(source, _checked(name, texts))
    return source


def file_source(path: Path, name: str | None = None) -> Source:
    """A file, read as UTF-8; bytes that are not UTF-8 become U+FFFD and are counted."""
    source = Source(name or str(path), "file", (), path=str(path.resolve()))
    try:
        source.length = path.stat().st_size
    except FileNotFoundError as error:
        raise NotFound(f"[ingest] path must exist, got {path}") from error
    source.portions = _file_portions(path, source)
    return source


def folder_sources(folder: Path) -> Iterator[Source]:
    """Every text file below a folder, in order of name; hidden files and folders are left out.

    A file's source name is its path below the folder's own name.
    """
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(name for name in files if not name.startswith(".")):
            path = Path(parent) / file
            if path.is_file() and not _is_binary(path):
                yield file_source(path, str(Path(folder.name) / path.relative_to(folder)))


def _file_portions(path: Path, source: Source) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    given = 0  # U+FFFD that the file itself holds
    seam = b""
    try:
        with path.open("rb") as file:
            while block := file.read(PORTION_BYTES):
                text = decoder.decode(block)
                given += (seam + block).count(_REPLACEMENT)
                seam = block[1 - len(_REPLACEMENT) :]
                source.invalid_bytes += text.count("\ufffd")
                yield text
            text = decoder.decode(b"", final=True)
            source.invalid_bytes += text.count("\ufffd") - given
            yield text
    except OSError as error:
        raise IoError(error.errno, f"{path}: cannot be read ({error.strerror})") from error


def _clean(source: Source, portions: Iterable[str]) -> Iterator[str]:
    """Lone surrogates, which no UTF-8 can hold, become U+FFFD and are counted."""
    for portion in portions:
        try:
            portion.encode("utf-8")
        except UnicodeEncodeError:
            before = portion.count("\ufffd")
            portion = portion.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            source.invalid_bytes += portion.count("\ufffd") - before
        yield portion


def _checked(name: str, texts: Iterable[str]) -> Iterator[str]:
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidArgument(
                f"[ingest] iterator of {name!r} must give str, got {type(text).__name__} at {place}"
            )
        yield text


def _is_binary(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"\0" in file.read(_PROBE_BYTES)
    except OSError as error:
        raise IoError(error.errno, f"{path}: cannot be read ({error.strerror})") from error
