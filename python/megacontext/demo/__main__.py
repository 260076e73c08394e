"""`python -m megacontext.demo`: what `make demo` runs."""

from __future__ import annotations

from pathlib import Path

from megacontext.demo.run import run_demo

if __name__ == "__main__":
    run_demo(Path("demo-output"))
