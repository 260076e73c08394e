"""One object store behind one small interface, through `obstore`.

    s3://bucket/prefix?endpoint=http://127.0.0.1:8333&region=us-east-1
    file:///srv/memories/notes
    memory:///notes                     this process only

Keys and secrets come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
AWS_ENDPOINT_URL), never from the URL. gs:// and az:// URLs go through obstore as they are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

from megacontext.config import RemoteConfig
from megacontext.remote.errors import ObjectExists, RemoteError
from megacontext_ext.errors import Corruption, InvalidArgument, NotFound, Unsupported

__all__ = ["ObjectInfo", "Objects", "is_url", "open_objects"]

_SCHEMES = ("s3", "file", "memory", "gs", "az", "azure", "abfs", "abfss")
_PARAMETERS = {"endpoint", "region"}
_memories: dict[str, Any] = {}


def is_url(text: str | os.PathLike[str]) -> bool:
    """Whether a memory named like this lies in an object store."""
    return isinstance(text, str) and urlsplit(text).scheme in _SCHEMES and "://" in text


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object of a listing. `key` is below the prefix of the store."""

    key: str
    byte_count: int
    modified_s: float  # since 1970-01-01 UTC, by the clock of the store
    tag: str | None


class Objects:
    """The objects below one URL. Thread safe. Every method raises RemoteError when the store does
    not answer or refuses, after the retries of RemoteConfig."""

    def __init__(self, url: str, store: Any, config: RemoteConfig) -> None:
        self.url, self.config = url.rstrip("/"), config
        self._store = store

    def __repr__(self) -> str:
        return f"Objects({self.url!r})"

    def where(self, key: str) -> str:
        """`key` in full, for messages."""
        base, _, query = self.url.partition("?")
        return f"{base}/{key}" + (f"?{query}" if query else "")

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFound."""
        return self.get_tagged(key)[0]

    def get_tagged(self, key: str) -> tuple[bytes, str | None]:
        """The whole object and its ETag. Raises NotFound."""
        with self._told("get", key):
            found = self._store.get(key)
            tag = found.meta["e_tag"]
            return bytes(found.bytes()), tag

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes [start, end). Raises NotFound."""
        with self._told("get range", key):
            return bytes(self._store.get_range(key, start=start, end=end))

    def head(self, key: str) -> ObjectInfo | None:
        """Length and age of an object, None where there is none."""
        try:
            with self._told("head", key):
                return _info(self._store.head(key))
        except NotFound:
            return None

    def put(self, key: str, content: bytes | Path) -> None:
        """Writes an object; a large file goes in parts. Nobody sees a part of it."""
        with self._told("put", key):
            self._store.put(key, content, chunk_size=self.config.part_bytes)

    def create(self, key: str, content: bytes) -> str | None:
        """Writes an object that must not exist yet; its ETag. Raises ObjectExists."""
        with self._told("create", key):
            return self._store.put(key, content, mode="create")["e_tag"]

    def swap(self, key: str, content: bytes, tag: str) -> str | None:
        """Replaces an object whose ETag is still `tag`; the new one. Raises ObjectExists."""
        with self._told("swap", key):
            return self._store.put(key, content, mode={"e_tag": tag})["e_tag"]

    def list(self, folder: str, after: str | None = None) -> Iterator[ObjectInfo]:
        """Objects below `folder/`, ascending in most stores, those after key `after` only."""
        with self._told("list", folder):
            for chunk in self._store.list(f"{folder}/", offset=after):
                yield from map(_info, chunk)

    def delete(self, key: str) -> None:
        """Removes an object; one that is not there is fine."""
        try:
            with self._told("delete", key):
                self._store.delete(key)
        except NotFound:
            return

    def download(self, key: str, path: Path, byte_count: int, sha256: str) -> None:
        """Writes the object to `path`, going on where an earlier attempt stopped.

        Read in ranges of `part_bytes`. Raises NotFound, Corruption when length or SHA-256 differ;
        the file is then removed.
        """
        have = path.stat().st_size if path.exists() else 0
        if have > byte_count:
            path.unlink()
            have = 0
        with path.open("ab") as file:
            while have < byte_count:
                end = min(have + self.config.part_bytes, byte_count)
                part = self.get_range(key, have, end)
                if len(part) != end - have:
                    break
                file.write(part)
                have += len(part)
            file.flush()
            os.fsync(file.fileno())
        found = file_sha256(path)
        if have != byte_count or found != sha256:
            path.unlink()
            raise Corruption(
                f"{self.where(key)}:0: expected {byte_count} bytes with SHA-256 {sha256[:16]}..., "
                f"got {have} bytes with {found[:16]}..."
            )

    @contextmanager
    def _told(self, op: str, key: str) -> Iterator[None]:
        """Turns what obstore raises into our errors, with the operation and the place."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        place = f"[{op}] {self.where(key)}"
        try:
            yield
        except FileNotFoundError:
            raise NotFound(f"{place}: there is no such object") from None
        except (AlreadyExistsError, PreconditionError) as error:
            raise ObjectExists(f"{place}: {_reason(error)}") from error
        except (BaseError, NotImplementedError, OSError) as error:
            raise RemoteError(f"{place}: {_reason(error)}") from error


def open_objects(url: str, config: RemoteConfig | None = None) -> Objects:
    """The object store at `url`; no request is made yet.

    Raises: InvalidArgument for a URL that cannot be one, Unsupported without the package `obstore`.
    """
    chosen = config or RemoteConfig()
    parts = urlsplit(url)
    if not is_url(url):
        raise InvalidArgument(f"[remote] URL must begin with one of {', '.join(_SCHEMES)} and "
                              f"'://', got {url!r}")  # fmt: skip
    try:
        from obstore import store as stores
    except ImportError:
        raise Unsupported("[remote] object stores need the package obstore: "
                          "pip install 'megacontext[remote]'") from None  # fmt: skip
    given = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if unknown := set(given) - _PARAMETERS:
        raise InvalidArgument(f"[remote] parameters of {url!r} must be of {sorted(_PARAMETERS)}, "
                              f"got {sorted(unknown)}")  # fmt: skip
    path = unquote(parts.path).strip("/")
    if parts.scheme == "memory":
        name = f"{parts.netloc}/{path}"
        return Objects(url, _memories.setdefault(name, stores.MemoryStore()), chosen)
    if parts.scheme == "file":
        return Objects(url, _Folder(Path("/" + path)), chosen)
    if parts.scheme == "s3":
        return Objects(url, _s3(parts.netloc, path, given, chosen), chosen)
    plain = urlunsplit(parts._replace(query=""))
    settings = _settings(chosen)
    return Objects(url, stores.from_url(plain, **settings), chosen)


class _Folder:
    """A local folder that only a put makes: who looks leaves nothing behind."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inner: Any = None

    def __getattr__(self, name: str) -> Any:
        from obstore.store import LocalStore

        if self._inner is None:
            if name == "list" and not self._path.is_dir():
                return lambda *_, **__: iter(())
            if name != "put" and not self._path.is_dir():
                raise FileNotFoundError(self._path)
            self._inner = LocalStore(self._path, mkdir=True)
        return getattr(self._inner, name)


def _s3(bucket: str, prefix: str, given: dict[str, str], config: RemoteConfig) -> Any:
    from obstore.store import S3Store

    endpoint = given.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL")
    settings = _settings(config)
    if endpoint is not None:
        settings["endpoint"] = endpoint
        settings["client_options"]["allow_http"] = endpoint.startswith("http://")
    region = given.get("region") or os.environ.get("AWS_REGION") or "us-east-1"
    return S3Store(bucket, prefix=prefix or None, region=region, **settings)


def _settings(config: RemoteConfig) -> dict[str, Any]:
    return {
        "client_options": {
            "timeout": timedelta(seconds=config.request_timeout_s),
            "connect_timeout": timedelta(seconds=config.connect_timeout_s),
        },
        "retry_config": {
            "max_retries": config.retries,
            "retry_timeout": timedelta(seconds=config.retry_timeout_s),
            "backoff": {"init_backoff": timedelta(milliseconds=50)},
        },
    }


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file. Cost: about a second for 1.5 GB."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _info(meta: Any) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], meta["last_modified"].timestamp(), meta["e_tag"])


def _reason(error: Exception) -> str:
    """What the store said, without the debug print that follows it."""
    said = " ".join(str(error).split("\n\nDebug source")[0].split())
    return said if len(said) <= 400 else f"{said[:400]}..."
