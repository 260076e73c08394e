"""LensNet: how much each span is wanted for a question, learned.

The question's tokens are compared with the tokens of every entry and its neighbours (best match of
each question token, as in late interaction), pooled by learned weights, joined with what retrieval
knows, and then the entries are seen together, in one of two designs:

    cross        the question's tokens attend over the entries, the entries over what they found
    transformer  the entries, with the question before them, attend to each other

Both are non-causal: an entry's score depends on the question, which comes last, and on all entries.
`causal=True` is the ablation: an entry sees the entries before it, and no question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from megacontext.lens.features import FEATURES, QUESTION_FREE
from megacontext_ext.errors import InvalidArgument

Design = Literal["cross", "transformer"]
# Numbers that say what kind of token a token is.
_KIND_WIDTH = 16
_QUESTION_FREE = [name in QUESTION_FREE for name in FEATURES]


@dataclass(frozen=True)
class LensNetConfig:
    """Sizes. The defaults make about 50,000 parameters."""

    design: Design = "cross"
    # Of a sketch's token rows, and of the space in which tokens are compared.
    row_width: int = 192
    match_width: int = 48
    width: int = 64
    # Ways of weighing a question's tokens.
    pools: int = 4
    # Kinds of answer that a question may expect.
    kinds: int = 4
    layers: int = 2
    heads: int = 4
    # Blocks on each side of an entry that are compared with the question too.
    reach: int = 2
    causal: bool = False

    def __post_init__(self) -> None:
        if self.design not in ("cross", "transformer"):
            raise InvalidArgument(
                f"[lens_net] design must be cross or transformer, got {self.design!r}"
            )


@dataclass(frozen=True)
class Entries:
    """What the net reads of N entries, in timeline order.

    features [N, F]; index [N, 2 reach + 1] into the blocks (-1 where there is none); tokens [U, K]
    of the blocks, as row numbers of `rows` [R, W] (each distinct token once), with `there` [U, K];
    asked [Q, W], Q >= 1, rows of the question's tokens. `projected`: `rows` are
    `LensNet.token_table` of token rows, made once for the whole vocabulary.
    """

    features: Tensor
    index: Tensor
    tokens: Tensor
    there: Tensor
    rows: Tensor
    asked: Tensor
    projected: bool = False


@dataclass(frozen=True)
class Wanted:
    """`logit` [N] ranks entries; `gain_nats` [N] is what showing each should take off the
    answer."""

    logit: Tensor
    gain_nats: Tensor


class LensNet(nn.Module):
    """Scores entries for one question. Cost: R * Q * match_width for the words, U * K * Q for where
    they stand, and N * Q * width (cross) or N * N * width (transformer) for the entries."""

    calibration: Tensor
    visible: Tensor

    def __init__(self, config: LensNetConfig | None = None, seed: int = 0) -> None:
        super().__init__()
        self.config = config = config or LensNetConfig()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build(config)
        # Fitted after training: probability = sigmoid(scale * logit + shift).
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))
        self.register_buffer("visible", torch.tensor(_QUESTION_FREE), persistent=False)

    def _build(self, config: LensNetConfig) -> None:
        width, pools = config.width, config.pools
        self.match = nn.Linear(config.row_width, config.match_width, bias=False)
        nn.init.orthogonal_(self.match.weight)
        # What kind of token answers the question (a date, a name), and how much a token is of it.
        self.expect = nn.Sequential(
            nn.Linear(config.match_width, 32), nn.Tanh(), nn.Linear(32, config.kinds * _KIND_WIDTH)
        )
        self.kind = nn.Linear(config.row_width, _KIND_WIDTH)
        self.weigh = nn.Sequential(
            nn.Linear(config.match_width + 1, 32), nn.GELU(), nn.Linear(32, pools)
        )
        self.distance = nn.Parameter(torch.full((config.reach + 1,), 1.5))
        self.enter = nn.Sequential(
            nn.Linear(len(FEATURES) + 3 * pools + config.kinds, width), nn.GELU(),
            nn.Linear(width, width), nn.LayerNorm(width),
        )  # fmt: skip
        self.ask = nn.Linear(config.match_width, width)
        self.mix: nn.Module
        if config.design == "cross":
            self.mix = CrossMix(width, config.causal)
        else:
            self.mix = TransformerMix(width, config.layers, config.heads, config.causal)
        last = nn.Linear(width, 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.leave = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), last)
        # Starts as the untrained lens: the net learns what to add to its evidence.
        self.prior = nn.Parameter(torch.tensor([8.0, 2.0]))

    def token_table(self, rows: Tensor) -> Tensor:
        """[R, match_width + kind width] of token rows [R, W]: unit rows to match, rows of kind."""
        unit = normalize(rows, dim=-1)
        return torch.cat([normalize(self.match(rows), dim=-1), self.kind(unit)], dim=-1)

    def forward(self, entries: Entries) -> Wanted:
        features = entries.features
        table = entries.rows if entries.projected else self.token_table(entries.rows)
        asked = normalize(self.match(entries.asked), dim=-1)
        matches = torch.cat(
            [self._matches(entries, table, asked), self._kinds(entries, table, asked)], dim=-1
        )
        if self.config.causal:
            features = features * self.visible
            matches = torch.zeros_like(matches)
            asked = asked[:0]
        hidden = self.enter(torch.cat([features, matches], dim=-1))
        seen = self.mix(hidden, self.ask(asked))
        out = self.leave(torch.cat([hidden, seen], dim=-1))
        known = features[:, [FEATURES.index("lexical"), FEATURES.index("sketch")]]
        return Wanted(out[:, 0] + known @ self.prior, out[:, 1])

    def probability(self, logit: Tensor) -> Tensor:
        """Calibrated: how likely it is that an entry is needed."""
        return torch.sigmoid(self.calibration[0] * logit + self.calibration[1])

    def _matches(self, entries: Entries, table: Tensor, asked: Tensor) -> Tensor:
        """[N, 3 pools]: how well the question's tokens are matched in and near each entry, how
        sharply, and how many pairs of neighbours are matched by pairs."""
        by_word = table[:, : self.config.match_width] @ asked.T
        alike = by_word[entries.tokens].masked_fill(~entries.there[..., None], 0.0).clamp(min=0.0)
        best = alike.amax(dim=1)
        # A pair of the question's tokens found side by side; the last token has no successor.
        pairs = (alike[:, :-1, :-1] * alike[:, 1:, 1:]).amax(dim=1)
        pairs = torch.cat([pairs, pairs.new_zeros(len(pairs), 1)], dim=1)
        near, near_pairs = self._near(best, entries.index), self._near(pairs, entries.index)
        rarity = entries.asked.norm(dim=-1, keepdim=True).clamp(min=1e-6).log() / 10.0
        weight = torch.softmax(self.weigh(torch.cat([asked, rarity], dim=-1)), dim=0)
        return torch.cat([near @ weight, near.pow(4) @ weight, near_pairs @ weight], dim=1)

    def _kinds(self, entries: Entries, table: Tensor, asked: Tensor) -> Tensor:
        """[N, kinds]: the token in an entry that is most of the kind the question asks for."""
        wanted = self.expect(asked).mean(dim=0).view(self.config.kinds, _KIND_WIDTH)
        by_word = torch.sigmoid(table[:, self.config.match_width :] @ wanted.T)
        found = by_word[entries.tokens].masked_fill(~entries.there[..., None], 0.0).amax(dim=1)
        return self._near(found, entries.index)

    def _near(self, best: Tensor, index: Tensor) -> Tensor:
        """[N, Q]: the best match in an entry's window, worth less the further it is away."""
        padded = torch.cat([best, best.new_zeros(1, best.shape[1])])
        reach = self.config.reach
        away = (torch.arange(2 * reach + 1, device=best.device) - reach).abs()
        return (padded[index] * torch.sigmoid(self.distance)[away][None, :, None]).amax(dim=1)


class CrossMix(nn.Module):
    """Question tokens attend over entries, entries over what the question's tokens found."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.find = nn.Linear(width, 2 * width)
        self.tell = nn.Linear(width, 2 * width)
        self.own = nn.Linear(width, width)
        self.blank = nn.Parameter(torch.zeros(1, width))

    def forward(self, hidden: Tensor, asked: Tensor) -> Tensor:
        """hidden [N, D], asked [Q, D] -> [N, D]."""
        scale = hidden.shape[-1] ** -0.5
        keys, values = self.find(hidden).chunk(2, dim=-1)
        if self.causal:
            return _attend(self.own(hidden), keys, values, scale, causal=True)
        # A blank question token, so that a question of no known word still sees the entries.
        asked = torch.cat([asked, self.blank])
        found = asked + _attend(asked, keys, values, scale)
        told_keys, told_values = self.tell(found).chunk(2, dim=-1)
        return _attend(self.own(hidden), told_keys, told_values, scale)


class TransformerMix(nn.Module):
    """A small transformer over [question, entries]."""

    def __init__(self, width: int, layers: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True,
            norm_first=True,
        )  # fmt: skip
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.blank = nn.Parameter(torch.zeros(1, width))

    def forward(self, hidden: Tensor, asked: Tensor) -> Tensor:
        """hidden [N, D], asked [Q, D] -> [N, D]."""
        question = (asked.mean(dim=0, keepdim=True) if len(asked) else 0.0) + self.blank
        row = torch.cat([question, hidden])[None]
        mask = None
        if self.causal:
            ahead = torch.ones(row.shape[1], row.shape[1], dtype=torch.bool, device=row.device)
            mask = ahead.triu(1)
        return self.encoder(row, mask=mask)[0, 1:]


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float, causal: bool = False
) -> Tensor:
    score = queries @ keys.T * scale
    if causal:
        score = score.masked_fill(torch.ones_like(score, dtype=torch.bool).triu(1), -torch.inf)
    return torch.softmax(score, dim=-1) @ values
