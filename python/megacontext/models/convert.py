"""Turns a GGUF file into a folder of safetensors, once, and keeps it in the cache.

The folder appears by one rename, so a reader never sees half of it; a lock file lets one process do
the work while others wait; `megacontext.json` remembers the checksum of source and weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from megacontext_ext.errors import Corruption, IoError

try:
    import fcntl
except ImportError:  # Windows: two first runs at once may then both convert; the rename decides.
    fcntl = None  # type: ignore[assignment]

_RECORD = "megacontext.json"
_WEIGHTS = "model.safetensors"
# Part of the folder's name: raised when the conversion itself changes.
_CONVERSION_VERSION = 1


@dataclass(frozen=True, slots=True)
class GgufSource:
    """A GGUF file, whole or in parts that make it when joined in order."""

    name: str
    parts: tuple[Path, ...]
    # Of the whole file; empty: not checked.
    sha256: str = ""

    @classmethod
    def of(cls, path: Path) -> GgufSource:
        return cls(path.name, (path,))

    @property
    def size_bytes(self) -> int:
        return sum(part.stat().st_size for part in self.parts)

    def whole(self, folder: Path) -> Path:
        """The file itself; parts are joined in `folder`. Raises Corruption for other bytes."""
        if len(self.parts) == 1:
            return self.parts[0]
        path, digest = folder / self.name, hashlib.sha256()
        with path.open("wb") as joined:
            for part in self.parts:
                portion = part.read_bytes()
                digest.update(portion)
                joined.write(portion)
        if self.sha256 and digest.hexdigest() != self.sha256:
            raise Corruption(f"{path}:0: expected sha256 {self.sha256}, got {digest.hexdigest()}")
        return path


def convert_gguf(gguf: GgufSource, cache: Path, say: Callable[[str], None] | None = None) -> Path:
    """Folder with the converted model of `gguf`; converts it on first use (about half a minute for
    135M parameters, a minute and a half for 270M).

    Raises: IoError where the cache cannot be written, Corruption where a kept file has changed.
    """
    folder = cache / "models" / f"{Path(gguf.name).stem}-v{_CONVERSION_VERSION}"
    if (folder / _RECORD).is_file():
        _check(folder, gguf)
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(f"{folder.name}.lock")):
            if not (folder / _RECORD).is_file():
                if say is not None:
                    say(f"converting {gguf.name} to safetensors, once, in {folder}")
                _convert(gguf, folder)
    except OSError as error:
        message = f"{folder}: cannot keep the converted model ({error.strerror})"
        raise IoError(
            error.errno, f"{message}; set MEGACONTEXT_CACHE to a writable folder"
        ) from error
    return folder


def _convert(gguf: GgufSource, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    joined = Path(tempfile.mkdtemp(prefix=f".{folder.name}.gguf.", dir=folder.parent))
    try:
        whole = gguf.whole(joined)
        # Dequantised to bfloat16: 8 bits of mantissa hold the 4-bit weights' products well, and the
        # folder is half as large as float32.
        model = AutoModelForCausalLM.from_pretrained(
            whole.parent,
            gguf_file=whole.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.save_pretrained(work)
        AutoTokenizer.from_pretrained(whole.parent, gguf_file=whole.name).save_pretrained(work)
        record = {
            "source": gguf.name,
            "source_bytes": gguf.size_bytes,
            "weights_sha256": sha256_of(work / _WEIGHTS),
            "weights_bytes": (work / _WEIGHTS).stat().st_size,
        }
        (work / _RECORD).write_text(json.dumps(record, indent=2) + "\n")
        # Made private by mkdtemp and save_pretrained; a cache may be shared by users.
        work.chmod(0o755)
        (work / _WEIGHTS).chmod(0o644)
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(joined, ignore_errors=True)


def verify(folder: Path) -> None:
    """Compare the kept weights with their checksum (0.3 s for 270 MB). Raises Corruption."""
    record = json.loads((folder / _RECORD).read_text())
    got = sha256_of(folder / _WEIGHTS)
    if got != record["weights_sha256"]:
        raise Corruption(
            f"{folder / _WEIGHTS}:0: expected sha256 {record['weights_sha256']}, got {got}; "
            "remove the folder and it is made again"
        )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(folder: Path, gguf: GgufSource) -> None:
    """Sizes on every load; checksums are for `verify`, which `megacontext doctor` calls."""
    record = json.loads((folder / _RECORD).read_text())
    weights = folder / _WEIGHTS
    got = (gguf.size_bytes, weights.stat().st_size if weights.is_file() else 0)
    expected = (record["source_bytes"], record["weights_bytes"])
    if got != expected:
        raise Corruption(
            f"{folder}:0: expected source and weights of {expected} bytes, got {got}; "
            "remove the folder and it is made again"
        )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
