"""Leaderboard entries: made from answers, checked against them, shown on one page."""

from __future__ import annotations

from megacontext.eval.board.entry import make_entry, write_entry
from megacontext.eval.board.page import read_entries, write_page
from megacontext.eval.board.validate import validate

__all__ = ["make_entry", "read_entries", "validate", "write_entry", "write_page"]
