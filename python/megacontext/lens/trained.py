"""The trained lens: retrieval proposes candidates, LensNet weighs them, the rest is as untrained.

Weights ship with the package, one folder a base, found by the base's fingerprint.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from megacontext.config import LensConfig
from megacontext.lens.base import History, Question
from megacontext.lens.block_axis import BlockAxis
from megacontext.lens.features import Fields, block_fields, block_tokens, neighbours
from megacontext.lens.hops import Hops
from megacontext.lens.net import Entries, LensNet, LensNetConfig
from megacontext.lens.reader import QuestionReader
from megacontext.lens.sketch import Sketcher
from megacontext.lens.untrained import Evidence, UntrainedLens
from megacontext.models import BaseFacts, FrozenBase, TextTokenizer
from megacontext_ext.errors import NotFound

WEIGHTS = Path(__file__).parent / "weights"
# Of a long question, its end: what is asked stands last.
QUESTION_TOKENS_MAX = 64
# Evidence of a block that the net has not seen, by its untrained evidence: below any it has.
_UNSEEN = 1e-4


class TrainedLens(UntrainedLens):
    """Scores blocks by a LensNet. The match table (10 MB) is built at first use."""

    def __init__(
        self,
        net: LensNet,
        sketcher: Sketcher,
        tokenizer: TextTokenizer,
        config: LensConfig | None = None,
        reader: QuestionReader | None = None,
        hops: Hops | None = None,
        entry_count: int = 256,
    ) -> None:
        super().__init__(config, reader, hops)
        self.net = net.eval()
        self.entry_count = entry_count
        self._sketcher = sketcher
        self._tokenizer = tokenizer
        self._table: Tensor | None = None

    def evidence(self, history: History, axis: BlockAxis, question: Question) -> Evidence:
        fields = block_fields(history, question)
        places = fields.candidates(self.entry_count)
        found = np.zeros(axis.length, np.float32)
        mask = axis.block_mask()
        # Both axes hold the same blocks in the same order, with different room between sources.
        seen = np.zeros(fields.axis.length, np.float32)
        seen[fields.mask] = _UNSEEN * fields.evidence[fields.mask]
        seen[places] = self.probabilities(history, fields, question)
        found[mask] = seen[fields.mask]
        return found

    @torch.inference_mode()
    def probabilities(
        self, history: History, fields: Fields, question: Question
    ) -> NDArray[np.float32]:
        """Calibrated probability that each candidate of `fields` is needed, float32 [N]."""
        if self._table is None:
            tokens = np.arange(self._tokenizer.vocabulary_tokens, dtype=np.uint32)
            self._table = self.net.token_table(self._sketcher.token_rows(tokens))
        asked = self._tokenizer.encode(f" {question.text}")[-QUESTION_TOKENS_MAX:]
        if len(asked) == 0:
            asked = np.zeros(1, np.uint32)
        places = fields.candidates(self.entry_count)
        near = neighbours(fields, places, self.net.config.reach)
        tokens_of, there = block_tokens(history, fields, near.places)
        entries = Entries(
            features=torch.from_numpy(fields.features[places]),
            index=torch.from_numpy(near.index),
            tokens=torch.from_numpy(tokens_of),
            there=torch.from_numpy(there),
            rows=self._table,
            asked=self._sketcher.token_rows(asked),
            projected=True,
        )
        return self.net.probability(self.net(entries).logit).numpy()


def choose_lens(base: FrozenBase, config: LensConfig, folder: Path = WEIGHTS) -> UntrainedLens:
    """The lens that `config.kind` asks for, with the base as its reader.

    Raises: NotFound for "trained" when none was trained for this base.
    """
    reader, hops = QuestionReader(base), Hops(base, config.hops)
    shipped = None if config.kind == "untrained" else find_lens(base.facts, folder)
    if config.kind == "trained" and shipped is None:
        raise NotFound(f"[lens] a lens trained for {base.facts.identity} must be in {folder}")
    if shipped is None or (config.kind == "auto" and not shipped.is_better):
        return UntrainedLens(config, reader, hops)
    return TrainedLens(shipped.load(), Sketcher(base), base.tokenizer, config, reader, hops)


@dataclass(frozen=True)
class ShippedLens:
    """One lens file and its card: base, data, command, metrics."""

    path: Path
    card: dict[str, Any]

    @property
    def is_better(self) -> bool:
        """Measured ahead of the untrained lens on held-out documents, by the whole interval, in the
        way that the runtime uses it: passages with the reader behind."""
        ahead = self.card.get("metrics", {}).get("lead_with_reader", {})
        return float(ahead.get("low", -1.0)) > 0.0

    def load(self) -> LensNet:
        return load_net(self.path, self.card)


def save_net(folder: Path, net: LensNet, card: dict[str, Any]) -> Path:
    """Write lens.safetensors and card.json below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lens.safetensors"
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, path)
    whole = {"format": "megacontext.lens.1", "net": asdict(net.config), **card}
    (folder / "card.json").write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n")
    return path


def load_net(path: Path, card: dict[str, Any]) -> LensNet:
    """The net of a file and its card."""
    net = LensNet(LensNetConfig(**card["net"]))
    net.load_state_dict(load_file(path))
    return net.eval().requires_grad_(False)


def shipped_lenses(folder: Path = WEIGHTS) -> list[ShippedLens]:
    """All lenses below a folder, one subfolder each."""
    return [
        ShippedLens(card.parent / "lens.safetensors", json.loads(card.read_text()))
        for card in sorted(folder.glob("*/card.json"))
    ]


def find_lens(facts: BaseFacts, folder: Path = WEIGHTS) -> ShippedLens | None:
    """The lens trained for this base, or None."""
    for shipped in shipped_lenses(folder):
        if shipped.card.get("base") == facts.identity:
            return shipped
    return None
