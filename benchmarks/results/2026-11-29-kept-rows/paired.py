"""Paired with earlier runs over the same spans: python benchmarks/results/DATE/paired.py"""

from __future__ import annotations

import importlib.util
from pathlib import Path

HERE = Path(__file__).parent
EARLIER = HERE.parent / "2026-11-26-kept-rows"


def main() -> None:
    spec = importlib.util.spec_from_file_location("paired", EARLIER / "paired.py")
    assert spec is not None
    assert spec.loader is not None
    paired = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(paired)
    here, before = paired.suite(HERE / "gists.json"), paired.suite(EARLIER / "gists.json")
    learned, gap = paired.suite(paired.LEARNED), paired.loss(here, "drop")
    for count in (16, 64):
        kept = paired.loss(here, f"kept rows @ {count}")
        for name, run in [
            ("kept rows", before),
            ("kept rows, oracle queries", before),
            ("attention matching", before),
            ("most recent tokens", before),
            ("gist rows", learned),
            ("kept rows, oracle queries", here),
        ]:
            other = paired.loss(run, f"{name} @ {count}")
            when = "today" if run is here else "before"
            print(f"{count}: use - {name}, {when}: {paired.compare(kept, other, gap)}")


if __name__ == "__main__":
    main()
