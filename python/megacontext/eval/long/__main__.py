"""python -m megacontext.eval.long"""

from __future__ import annotations

from megacontext.eval.long.command import app

if __name__ == "__main__":
    app()
