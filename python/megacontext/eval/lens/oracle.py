"""Which block is best when some are shown already: counterfactual gains, one block a step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megacontext.eval.lens.histories import Block


@dataclass(frozen=True)
class OracleStep:
    """One step of the greedy oracle: what was shown, and nats that each block offered takes off
    the answer beside it."""

    shown: tuple[Block, ...]
    offered: tuple[Block, ...]
    gain_nats: NDArray[np.float64]

    @property
    def best(self) -> Block:
        return self.offered[int(self.gain_nats.argmax())]


def greedy_oracle(
    nats: Callable[[Sequence[Collection[Block]]], NDArray[np.float64]],
    offered: Collection[Block],
    blocks: int,
    least_nats: float = 0.0,
) -> list[OracleStep]:
    """Takes the block with the highest gain beside what is taken, up to `blocks` of them, while it
    is above `least_nats`; the last step may be one whose best gain is not.

    Args:
        nats: NLL of the answer [n] behind each of n sets of blocks.

    Cost: one read of every block offered a step.
    """
    shown: tuple[Block, ...] = ()
    (before,) = nats([shown])
    left, steps = sorted(offered), []
    while left and len(shown) < blocks:
        behind = nats([(*shown, block) for block in left])
        step = OracleStep(shown, tuple(left), before - behind)
        steps.append(step)
        if step.gain_nats.max() <= least_nats:
            break
        before = behind[int(step.gain_nats.argmax())]
        shown = (*shown, step.best)
        left.remove(step.best)
    return steps
