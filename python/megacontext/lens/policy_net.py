"""PolicyNet: which block to expand next, beside what is expanded already, or none. An experiment.

The greedy allocator takes blocks by their scores, each as if it were alone. PolicyNet sees all
candidates together, each with how it stands to what has been taken (`Candidates.view`), in two
layers of attention without positions: exchanging two candidates exchanges their logits and changes
no other. It starts as the greedy allocator, and learns what to add.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from megacontext.lens.candidates import STATIC, VIEW, Candidates
from megacontext_ext.errors import InvalidArgument

FORMAT = "megacontext.policy.1"
# Columns of a view that tell what has been taken; the places a block costs are no state.
_STATE = [name != "cost" for name in VIEW]


@dataclass(frozen=True)
class PolicyNetConfig:
    """Sizes. The defaults make about 45,000 parameters."""

    width: int = 48
    heads: int = 4
    layers: int = 2
    # False is the ablation: a learned score of each block that does not see what was taken.
    sees_state: bool = True

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise InvalidArgument(
                f"[policy_net] width must be a multiple of heads, got {self.width}, {self.heads}"
            )


class PolicyNet(nn.Module):
    """Logits of N candidates and of stopping. Cost: N * N * width a layer and state."""

    state: Tensor

    def __init__(self, config: PolicyNetConfig | None = None, seed: int = 0) -> None:
        super().__init__()
        self.config = config = config or PolicyNetConfig()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = config.width
            self.enter = nn.Sequential(
                nn.Linear(len(STATIC) + len(VIEW), width), nn.GELU(), nn.Linear(width, width)
            )
            layer = nn.TransformerEncoderLayer(
                width, config.heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True,
                norm_first=True,
            )  # fmt: skip
            self.mix = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
            last, stop = nn.Linear(width, 1), nn.Linear(width, 1)
            self.leave = nn.Sequential(nn.LayerNorm(width), last)
            self.stop = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), stop)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(stop.weight)
        # Starts as the greedy allocator, which stops at scores below a threshold.
        self.prior = nn.Parameter(torch.tensor([4.0, 4.0]))
        self.register_buffer("state", torch.tensor(_STATE), persistent=False)

    def forward(self, static: Tensor, view: Tensor, may: Tensor) -> Tensor:
        """[B, N + 1] logits of taking each candidate, -inf where it may not be, and of stopping.

        Args:
            static: [N, STATIC] float32.
            view: [B, N, VIEW] float32, one for each state.
            may: [B, N] bool: neither taken nor too large for what is left.
        """
        if not self.config.sees_state:
            view = view * ~self.state
        seen = torch.cat([static.expand(len(view), -1, -1), view], dim=-1)
        hidden = self.mix(self.enter(seen))
        known = static[:, :2] @ self.prior
        logit = (self.leave(hidden)[..., 0] + known).masked_fill(~may, -torch.inf)
        pooled = torch.cat([hidden.mean(dim=1), hidden.amax(dim=1)], dim=-1)
        return torch.cat([logit, self.stop(pooled)], dim=-1)


@dataclass(frozen=True)
class State:
    """Where a choice stands: `taken` bool [N], `may` bool [N], `view` float32 [N, VIEW]."""

    taken: NDArray[np.bool_]
    may: NDArray[np.bool_]
    view: NDArray[np.float32]


def state_of(
    found: Candidates, taken: NDArray[np.bool_], cost: NDArray[np.int64], places_left: int
) -> State:
    """The state after `taken`; `cost` [N] is what each candidate would take, in places."""
    return State(taken.copy(), ~taken & (cost <= places_left), found.view(taken, cost, places_left))


def logits(net: nn.Module, found: Candidates, states: Sequence[State]) -> Tensor:
    """[B, N + 1] of a net that is called as PolicyNet is."""
    return net(
        torch.from_numpy(found.static),
        torch.from_numpy(np.stack([state.view for state in states])),
        torch.from_numpy(np.stack([state.may for state in states])),
    )


def save_policy(folder: Path, net: PolicyNet, card: dict[str, Any]) -> Path:
    """Write policy.safetensors and card.json below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "policy.safetensors"
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, path)
    whole = {"format": FORMAT, "net": asdict(net.config), **card}
    (folder / "card.json").write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n")
    return path


def load_policy(folder: Path) -> PolicyNet:
    """What `save_policy` wrote. Raises: InvalidArgument for a card of another format."""
    card = json.loads((folder / "card.json").read_text())
    if card.get("format") != FORMAT:
        raise InvalidArgument(
            f"{folder / 'card.json'}: format: expected {FORMAT}, got {card.get('format')}"
        )
    net = PolicyNet(PolicyNetConfig(**card["net"]))
    net.load_state_dict(load_file(folder / "policy.safetensors"))
    return net.eval().requires_grad_(False)
