"""The cycles' lens: which blocks should be raw, heard from the question's look at their gist rows.

It reads the working context alone (rows and question), so what it can know depends on the gists:
that is why the two are learned in turns. Non-causal: the question comes last.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from megacontext.gists.base import KeyValues
from megacontext.train import lens_losses as losses
from megacontext.train.cycles.config import Cut


def row_attention(cut: Cut, heard: Sequence[Tensor], rows: KeyValues) -> Tensor:
    """[B, blocks, layers * heads]: how strongly the question's queries look at each block's row.

    Log of the sum over the question's tokens of exp(score), less its mean over the blocks.
    """
    found = []
    for queries, keys in zip(heard, rows.keys, strict=True):
        asked = queries[:, :, : cut.question].float() * queries.shape[-1] ** -0.5
        keys = keys.float().repeat_interleave(queries.shape[1] // keys.shape[1], 1)
        strength = (asked @ keys.mT).logsumexp(2)
        found.append(strength - strength.mean(-1, keepdim=True))
    return torch.cat(found, 1).mT


class BlockLens(nn.Module):
    """Scores [.., blocks]: hundredths of a nat a token that a block should take off when raw.

    It begins as the mean attention of all heads: training learns which heads to trust.
    """

    def __init__(self, heads: int, width: int = 48, seed: int = 0) -> None:
        """heads: over all layers."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trust = nn.Linear(heads, 1, bias=False)
            self.enter = nn.Linear(heads, width)
            self.leave = nn.Linear(width, 1, bias=False)
        nn.init.constant_(self.trust.weight, 1.0 / heads)
        nn.init.zeros_(self.leave.weight)

    def forward(self, attention: Tensor) -> Tensor:
        hidden = torch.nn.functional.gelu(self.enter(attention))
        return (self.trust(attention) + self.leave(hidden))[..., 0]

    def choose(self, attention: Tensor, count: int) -> Tensor:
        """[B, count] blocks with the best scores, in timeline order."""
        return self(attention).topk(count, -1).indices.sort(-1).values


def lens_loss(score: Tensor, gain: Tensor) -> Tensor:
    """Of one window: score [blocks] against measured gain [blocks], nats a token.

    Order first, since the budget shows the best; the size keeps scores comparable.
    """
    wanted = gain * 100.0
    best = torch.softmax(wanted / wanted.abs().max().clamp(min=0.01) * 4.0, -1)
    return losses.listwise(score, best) + losses.regression(score, wanted)


def save_lens(lens: BlockLens, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({n: p.detach().contiguous() for n, p in lens.named_parameters()}, str(path))
