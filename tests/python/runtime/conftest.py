"""An open store with an ingestor over the tiny base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from megacontext.lens import Sketcher
from megacontext.models import TransformersBase
from megacontext.runtime import Ingestor, StoreHistory
from megacontext_ext import Store

STORY = (
    "The lighthouse keeper of Skagen wrote the number 48213 in the book. "
    "Every record has a checksum, so a torn write is seen and cut away. "
)


@dataclass
class Bench:
    store: Store
    base: TransformersBase
    sketcher: Sketcher
    ingestor: Ingestor

    def history(self) -> StoreHistory:
        return StoreHistory(self.store, self.base.tokenizer, self.sketcher)


@pytest.fixture(scope="session")
def sketcher(tiny_base: TransformersBase) -> Sketcher:
    return Sketcher(tiny_base)


@pytest.fixture
def bench(tmp_path: Path, tiny_base: TransformersBase, sketcher: Sketcher) -> Iterator[Bench]:
    with Store.create(str(tmp_path / "store"), {"model": "tiny"}) as store:
        yield Bench(store, tiny_base, sketcher, Ingestor(store, tiny_base.tokenizer, sketcher))
