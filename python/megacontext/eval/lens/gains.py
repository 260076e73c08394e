"""What the frozen base gains from a window: nats taken off the answer, kept on disk once measured.

Every window is read once and every question of a group is asked behind it, so that the oracle over
a group's windows costs little more than reading them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megacontext.config import RuntimeConfig
from megacontext.eval.lens.histories import Block, StreamHistory
from megacontext.eval.lens.streams import StreamQuestion
from megacontext.lens.counterfactual import AnswerCost, AskedTokens
from megacontext.models import TokenArray
from megacontext.runtime.frame import question_frame

Window = tuple[int, int, int]  # partition, first block, block behind the last
ANSWER_TOKENS_MAX = 12


class GainMeter:
    """Measures windows of one history with the runtime's own frame. One thread."""

    def __init__(self, held: StreamHistory) -> None:
        self._held = held
        self._config = RuntimeConfig()
        self._tokenizer = held.base.tokenizer
        self._marker = self._tokenizer.encode(self._config.frame.short_marker)
        self._cost = AnswerCost(
            held.base, question_frame(self._tokenizer, "?", self._config).before
        )

    def asked(
        self, question: StreamQuestion, answer_tokens: int = ANSWER_TOKENS_MAX
    ) -> AskedTokens:
        """The question in its frame, and the beginning of its answer."""
        frame = question_frame(self._tokenizer, question.question, self._config)
        return AskedTokens(frame.after, self._tokenizer.encode(question.answer)[:answer_tokens])

    def nats_of_sets(
        self, asked: AskedTokens, sets: Sequence[Collection[Block]]
    ) -> NDArray[np.float64]:
        """NLL of the answer [n] behind each set of blocks, shown in timeline order with a short
        marker where something is left out between them."""
        return self._cost.nats_each([self._shown(blocks) for blocks in sets], asked)

    def _shown(self, blocks: Collection[Block]) -> TokenArray:
        parts: list[TokenArray] = []
        last = None
        for partition, block in sorted(blocks):
            if last is not None and (partition, block - 1) != last:
                parts.append(self._marker)
            parts.append(self._held.history.tokens(partition, block, block + 1))
            last = partition, block
        return np.concatenate(parts) if parts else np.zeros(0, np.uint32)

    def measure(
        self, asked: Sequence[AskedTokens], windows: Sequence[Window]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """NLL with nothing shown [Q], and gains [W, Q], in nats."""
        nothing = self._cost.nats(np.zeros(0, np.uint32), asked)
        shown = [self._cost.nats(self._held.history.tokens(*w), asked) for w in windows]
        return nothing, nothing[None] - np.stack(shown)

    def kept(
        self, folder: Path, questions: Sequence[StreamQuestion], windows: Sequence[Window]
    ) -> NDArray[np.float64]:
        """Gains [W, Q] of a group, measured only where `folder` does not hold them yet."""
        folder.mkdir(parents=True, exist_ok=True)
        label = json.dumps(
            [self._held.base.facts.identity, [q.question for q in questions]]
        ).encode()
        path = folder / f"{hashlib.sha256(label).hexdigest()[:16]}.json"
        known: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
        missing = [w for w in windows if _key(w) not in known]
        if missing:
            _, gains = self.measure([self.asked(q) for q in questions], missing)
            known.update({_key(w): row.tolist() for w, row in zip(missing, gains, strict=True)})
            part = path.with_suffix(".part")
            part.write_text(json.dumps(known))
            part.replace(path)
        return np.array([known[_key(w)] for w in windows])


def _key(window: Window) -> str:
    return "-".join(map(str, window))
