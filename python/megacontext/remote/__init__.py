"""Memories beyond one machine, in object stores. See README.md."""

from __future__ import annotations

from megacontext.remote.cache import Cache, View
from megacontext.remote.erase import EraseReport, erase, erase_everywhere
from megacontext.remote.errors import (
    ErasureIncomplete,
    Fenced,
    ObjectExists,
    QuorumMissed,
    RemoteError,
)
from megacontext.remote.objects import Objects, is_url, open_objects
from megacontext.remote.place import Remote, open_remote
from megacontext.remote.probe import Capabilities, probe
from megacontext.remote.reader import Reader
from megacontext.remote.record import Blob, Commit
from megacontext.remote.writer import PushReport, Writer, promote

__all__ = [
    "Blob",
    "Cache",
    "Capabilities",
    "Commit",
    "EraseReport",
    "ErasureIncomplete",
    "Fenced",
    "ObjectExists",
    "Objects",
    "PushReport",
    "QuorumMissed",
    "Reader",
    "Remote",
    "RemoteError",
    "View",
    "Writer",
    "erase",
    "erase_everywhere",
    "is_url",
    "open_objects",
    "open_remote",
    "probe",
    "promote",
]
