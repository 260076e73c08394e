"""Windows of tokens out of flat shards, in an order that depends only on seed and index."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from megacontext.eval.held_out import read_shard
from megacontext_ext.errors import InvalidArgument

END_OF_DOCUMENT = 0


class TokenWindows:
    """Fixed-width windows of the documents in shards, reshuffled every epoch.

    A window starts inside a document of at least `min_document` tokens. Long documents are cut
    into windows at a fresh offset each epoch; a short one gives a window that may run into the
    next document, as text in a stream does.
    """

    def __init__(self, shards: list[Path], width: int, seed: int, min_document: int = 512) -> None:
        if not shards:
            raise ValueError("[TokenWindows] shards must not be empty")
        self.tokens = np.concatenate([read_shard(path) for path in sorted(shards)])
        self.width, self.seed = width, seed
        ends = np.flatnonzero(self.tokens == END_OF_DOCUMENT)
        starts = np.concatenate(([0], ends + 1))
        stops = np.concatenate((ends, [len(self.tokens)]))
        keep = (stops - starts >= min_document) & (starts + width <= len(self.tokens))
        self._starts, self._lengths = starts[keep], (stops - starts)[keep]
        if not len(self._starts):
            raise ValueError(
                f"[TokenWindows] shards must have a document of {min_document} tokens, got none"
                f" in {len(self.tokens)} tokens"
            )
        self._epoch, self._order = -1, np.empty(0, np.int64)
        self._counts = np.maximum(1, self._lengths // width)
        names = "".join(path.name for path in sorted(shards))
        digest = hashlib.sha256(self.tokens.tobytes() + names.encode() + bytes(str(width), "ascii"))
        self.signature = digest.hexdigest()

    def __len__(self) -> int:
        """Windows in an epoch."""
        return int(self._counts.sum())

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, epoch))
            slack = np.maximum(0, self._lengths - self._counts * self.width)
            first = self._starts + (rng.random(len(slack)) * (slack + 1)).astype(np.int64)
            within = np.arange(len(self)) - np.repeat(
                np.cumsum(self._counts) - self._counts, self._counts
            )
            starts = np.repeat(first, self._counts) + within * self.width
            starts = np.minimum(starts, len(self.tokens) - self.width)
            self._order, self._epoch = rng.permutation(starts), epoch
        return self._order

    def starts(self, index: int, count: int) -> np.ndarray:
        """Token offsets [count] of windows index .. index + count of the endless sequence."""
        found = []
        while count:
            epoch, at = divmod(index, len(self))
            part = self._epoch_order(epoch)[at : at + count]
            found.append(part)
            index, count = index + len(part), count - len(part)
        return np.concatenate(found)


def open_windows(
    folder: Path, width: int, seed: int, min_document: int, vocabulary: int
) -> TokenWindows:
    """Windows of the training shards that `tools/prepare_corpus.py` wrote to `folder`.

    Raises: InvalidArgument when there is none, or when a token lies beyond the base's vocabulary.
    """
    paths = sorted(folder.glob("train-*.u16*"))
    if not paths:
        raise InvalidArgument(f"[shards] {folder} must hold train-*.u16 or .u16.xz, got none")
    windows = TokenWindows(paths, width, seed, min_document)
    if (highest := int(windows.tokens.max())) >= vocabulary:
        raise InvalidArgument(
            f"[shards] tokens of {folder} must be below the base's vocabulary of {vocabulary}, got "
            f"{highest}: shards of another tokenizer?"
        )
    return windows
