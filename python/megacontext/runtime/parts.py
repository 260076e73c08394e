"""What one open memory consists of, handed to everything that works on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from megacontext.config import RuntimeConfig
from megacontext.lens import Lens, Sketcher
from megacontext.models import FrozenBase
from megacontext.runtime.access import AccessCounts
from megacontext.runtime.gist_records import ShownGists
from megacontext.runtime.history import StoreHistory
from megacontext_ext import Store


@dataclass(frozen=True, slots=True)
class Parts:
    """An open store, the base that reads it, and the policy between them."""

    store: Store
    base: FrozenBase
    sketcher: Sketcher
    history: StoreHistory
    lens: Lens
    gists: ShownGists
    config: RuntimeConfig
    access: AccessCounts = field(default_factory=AccessCounts)
