"""Lenses: which spans deserve detail for what is being asked now."""

from __future__ import annotations

from megacontext.lens.base import History, Hits, Lens, Passage, Question, Scores
from megacontext.lens.reader import QuestionReader
from megacontext.lens.sketch import SKETCH_WIDTH, Sketcher, similarity
from megacontext.lens.trained import TrainedLens, choose_lens
from megacontext.lens.untrained import UntrainedLens

__all__ = [
    "SKETCH_WIDTH",
    "History",
    "Hits",
    "Lens",
    "Passage",
    "Question",
    "QuestionReader",
    "Scores",
    "Sketcher",
    "TrainedLens",
    "UntrainedLens",
    "choose_lens",
    "similarity",
]
