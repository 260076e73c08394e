"""Stores that keep rows by number, at their best settings, behind one small interface.

A peer that is not installed (`pip install 'megacontext[bench]'` brings them all) is named in a line
of the output and left out.
"""

from __future__ import annotations

import importlib.util
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

Gather = Callable[[np.ndarray, np.ndarray], Any]  # (indices, out)


def _key(index: int) -> bytes:
    return int(index).to_bytes(8, "big")


class Peer:
    """`fill` writes once; `opened` gives a gather that reads through no cache of its own."""

    name = ""
    module = ""

    def fill(self, directory: Path, values: np.ndarray) -> None:
        raise NotImplementedError

    @contextmanager
    def opened(self, directory: Path, values: np.ndarray) -> Iterator[Gather]:
        raise NotImplementedError
        yield


class Lmdb(Peer):
    name, module = "LMDB", "lmdb"

    def fill(self, directory: Path, values: np.ndarray) -> None:
        import lmdb

        with lmdb.open(str(directory / "lmdb"), map_size=1 << 40, sync=False) as environment:
            with environment.begin(write=True) as transaction:
                for i, row in enumerate(values):
                    transaction.put(_key(i), row.tobytes(), append=True)
            environment.sync(True)

    @contextmanager
    def opened(self, directory: Path, values: np.ndarray) -> Iterator[Gather]:
        import lmdb

        def gather(indices: np.ndarray, out: np.ndarray) -> None:
            with environment.begin(buffers=True) as transaction:
                for place, index in enumerate(indices):
                    out[place] = np.frombuffer(transaction.get(_key(index)), out.dtype)

        path = str(directory / "lmdb")
        with lmdb.open(path, readonly=True, lock=False, readahead=False) as environment:
            yield gather


class RocksDb(Peer):
    name, module = "RocksDB", "rocksdict"

    def _open(self, directory: Path) -> Any:
        from rocksdict import DBCompressionType, Options, Rdict

        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_compression_type(DBCompressionType.none())
        return Rdict(str(directory / "rocksdb"), options)

    def fill(self, directory: Path, values: np.ndarray) -> None:
        database = self._open(directory)
        for i, row in enumerate(values):
            database[_key(i)] = row.tobytes()
        database.flush()
        database.close()

    @contextmanager
    def opened(self, directory: Path, values: np.ndarray) -> Iterator[Gather]:
        database = self._open(directory)

        def gather(indices: np.ndarray, out: np.ndarray) -> None:
            for place, row in enumerate(database[[_key(i) for i in indices]]):
                out[place] = np.frombuffer(row, out.dtype)

        yield gather
        database.close()


class Sqlite(Peer):
    name, module = "SQLite", "sqlite3"

    def fill(self, directory: Path, values: np.ndarray) -> None:
        database = sqlite3.connect(directory / "rows.db")
        database.execute("pragma page_size=8192")
        database.execute("create table row(id integer primary key, value blob)")
        rows = ((i, row.tobytes()) for i, row in enumerate(values))
        database.executemany("insert into row values (?, ?)", rows)
        database.commit()
        database.close()

    @contextmanager
    def opened(self, directory: Path, values: np.ndarray) -> Iterator[Gather]:
        database = sqlite3.connect(directory / "rows.db")
        database.execute("pragma mmap_size=0")

        def gather(indices: np.ndarray, out: np.ndarray) -> None:
            for place, index in enumerate(indices.tolist()):
                found = database.execute("select value from row where id=?", (index,))
                out[place] = np.frombuffer(found.fetchone()[0], out.dtype)

        yield gather
        database.close()


class TensorStore(Peer):
    name, module = "TensorStore", "tensorstore"

    def _spec(self, directory: Path) -> dict[str, Any]:
        path = str(directory / "tensorstore")
        return {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}

    def fill(self, directory: Path, values: np.ndarray) -> None:
        import tensorstore

        shard = {
            "name": "sharding_indexed",
            "configuration": {"chunk_shape": [1, values.shape[1]], "codecs": [{"name": "bytes"}]},
        }
        shape = [min(len(values), 4096), values.shape[1]]
        grid = {"name": "regular", "configuration": {"chunk_shape": shape}}
        metadata = {
            "shape": list(values.shape),
            "data_type": str(values.dtype),
            "chunk_grid": grid,
            "codecs": [shard],
        }
        spec = {**self._spec(directory), "metadata": metadata}
        store = tensorstore.open(spec, create=True).result()
        for start in range(0, len(values), shape[0]):
            store[start : start + shape[0]].write(values[start : start + shape[0]]).result()

    @contextmanager
    def opened(self, directory: Path, values: np.ndarray) -> Iterator[Gather]:
        import tensorstore

        store = tensorstore.open(self._spec(directory)).result()

        def gather(indices: np.ndarray, out: np.ndarray) -> None:
            out[:] = store[indices.astype(np.int64)].read().result()

        yield gather


class Safetensors(Peer):
    name, module = "safetensors", "safetensors"

    def fill(self, directory: Path, values: np.ndarray) -> None:
        from safetensors.numpy import save_file

        save_file({"rows": values}, directory / "rows.safetensors")

    @contextmanager
    def opened(self, directory: Path, values: np.ndarray) -> Iterator[Gather]:
        from safetensors import safe_open

        with safe_open(directory / "rows.safetensors", framework="np") as file:
            rows = file.get_slice("rows")

            def gather(indices: np.ndarray, out: np.ndarray) -> None:
                for place, index in enumerate(indices.tolist()):
                    out[place] = rows[index : index + 1][0]

            yield gather


class NumpyMap(Peer):
    name, module = "numpy memory map", "numpy"

    def fill(self, directory: Path, values: np.ndarray) -> None:
        if not (directory / "rows.bin").exists():
            values.tofile(directory / "rows.bin")

    @contextmanager
    def opened(self, directory: Path, values: np.ndarray) -> Iterator[Gather]:
        mapped = np.memmap(directory / "rows.bin", values.dtype, mode="r", shape=values.shape)
        yield lambda indices, out: np.take(mapped, indices, axis=0, out=out, mode="clip")


class TorchMap(NumpyMap):
    name, module = "torch memory map", "torch"

    @contextmanager
    def opened(self, directory: Path, values: np.ndarray) -> Iterator[Gather]:
        path = str(directory / "rows.bin")
        mapped = torch.from_file(path, size=values.size, dtype=torch.int32).view(values.shape)

        def gather(indices: np.ndarray, out: np.ndarray) -> None:
            target = torch.from_numpy(out.view(np.int32))
            torch.index_select(mapped, 0, torch.from_numpy(indices.astype(np.int64)), out=target)

        yield gather


def installed_peers() -> list[Peer]:
    """All of them; one that is missing is printed."""
    found: list[Peer] = []
    for peer in (
        Lmdb(),
        RocksDb(),
        Sqlite(),
        TensorStore(),
        Safetensors(),
        NumpyMap(),
        TorchMap(),
    ):
        if importlib.util.find_spec(peer.module) is None:
            print(f"  {peer.name}: left out, {peer.module} is not installed")
        else:
            found.append(peer)
    return found


def forget(directory: Path) -> None:
    """Writes everything below to the disk and drops it from the system's page cache."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
