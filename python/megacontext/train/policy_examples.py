"""What a policy is trained on: questions with their candidates and the facts the answer rests on.

The teacher looks at what is taken: of every fact that is not shown whole yet it wants the missing
blocks of the alternative that lacks fewest, and where nothing is missing it wants to stop. So two
sentences that say the same are wanted once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from megacontext.config import K
from megacontext.eval.lens.histories import Block, StreamHistory
from megacontext.eval.lens.oracle import OracleStep
from megacontext.eval.lens.streams import StreamQuestion
from megacontext.lens import UntrainedLens
from megacontext.lens.candidates import Candidates, find_candidates
from megacontext.lens.policy_net import State, logits, state_of
from megacontext_ext.errors import InvalidArgument

# Nats: blocks this much apart are wanted e times as much as each other; below the second a gain
# counts for noise (the base's own, of a marker more or less).
_GAIN_SCALE = 0.5
_LEAST_NATS = 0.3


@dataclass(frozen=True)
class PolicyExample:
    """One question. `facts`: by fact and alternative the candidates' numbers, of blocks that are
    candidates at all. `measured`: numbers of what was shown, and nats that others took off the
    answer beside it, by number."""

    kind: str
    found: Candidates
    facts: tuple[tuple[frozenset[int], ...], ...]
    measured: tuple[tuple[frozenset[int], dict[int, float]], ...] = ()


@dataclass(frozen=True)
class Walk:
    """States of one walk and what the teacher wants in each: float32 [B, N + 1], rows sum to 1."""

    states: list[State]
    wanted: Tensor


def make_policy_example(
    held: StreamHistory, asked: StreamQuestion, lens: UntrainedLens, count: int, reads: bool
) -> PolicyExample:
    """The example of one question; `lens` reads passages where it can and `reads` says so."""
    question = held.question(asked, reads=reads)
    found = find_candidates(held.history, question, lens.score(held.history, question), count)
    numbers, facts = _numbers(found), []
    for fact in held.grounds(asked):
        known = [frozenset(numbers[b] for b in each if b in numbers) for each in fact]
        if alternatives := tuple(each for each in known if each):
            facts.append(alternatives)
    return PolicyExample(asked.kind, found, tuple(facts))


def with_measured(example: PolicyExample, steps: Iterable[OracleStep]) -> PolicyExample:
    """The example with labels of the greedy oracle, of those blocks that are candidates."""
    numbers, measured = _numbers(example.found), []
    for step in steps:
        gains = zip(step.offered, step.gain_nats.tolist(), strict=True)
        known = {numbers[block]: nats for block, nats in gains if block in numbers}
        shown = frozenset(numbers[block] for block in step.shown if block in numbers)
        if known and len(shown) == len(step.shown):
            measured.append((shown, known))
    return replace(example, measured=tuple(measured))


def _numbers(found: Candidates) -> dict[Block, int]:
    blocks = zip(found.partitions.tolist(), found.blocks.tolist(), strict=True)
    return {block: number for number, block in enumerate(blocks)}


def make_policy_examples(
    held: StreamHistory, asked: Iterable[StreamQuestion], lens: UntrainedLens, count: int,
    reads: bool,
) -> list[PolicyExample]:  # fmt: skip
    return [make_policy_example(held, each, lens, count, reads) for each in asked]


def teach(example: PolicyExample, state: State) -> Tensor:
    """float32 [N + 1], sum 1: what the teacher does here; the last is to stop."""
    wanted = torch.zeros(len(example.found) + 1)
    for fact in example.facts:
        missing = [[n for n in each if not state.taken[n]] for each in fact]
        fewest = min(len(each) for each in missing)
        for each in missing:
            if len(each) == fewest:
                wanted[[n for n in each if state.may[n]]] = 1.0
    if not wanted.any():
        wanted[-1] = 1.0
    return wanted / wanted.sum()


def measured_walk(example: PolicyExample, blocks: int) -> Walk:
    """The measured states with places for `blocks` blocks in all, and what gains there: softmax
    of the nats by _GAIN_SCALE, or to stop where nothing gains _LEAST_NATS."""
    count = len(example.found)
    states, wanted = [], []
    for shown, gains in example.measured:
        taken = np.zeros(count, bool)
        taken[list(shown)] = True
        left = max(blocks - len(shown), 1) * K
        states.append(state_of(example.found, taken, np.full(count, K, np.int64), left))
        numbers, nats = list(gains), torch.tensor(list(gains.values()))
        row = torch.zeros(count + 1)
        if float(nats.max()) < _LEAST_NATS:
            row[-1] = 1.0
        else:
            row[numbers] = torch.softmax(nats / _GAIN_SCALE, dim=0)
        wanted.append(row)
    return Walk(states, torch.stack(wanted))


def walk(
    net: nn.Module,
    example: PolicyExample,
    blocks: int,
    follow: float,
    generator: torch.Generator,
) -> Walk:
    """A walk with places for `blocks` blocks. A step is the teacher's with chance `follow`, else
    the net's own (drawn by its logits), so that states after mistakes are learned from as well
    (DAgger, Ross et al. 2011). It ends where the teacher stops, one step later by chance."""
    count = len(example.found)
    if count == 0:
        raise InvalidArgument("[walk] example must have at least one candidate, got 0")
    taken, cost = np.zeros(count, bool), np.full(count, K, np.int64)
    states: list[State] = []
    wanted: list[Tensor] = []
    for left in range(blocks, 0, -1):
        state = state_of(example.found, taken, cost, left * K)
        if not state.may.any():
            break
        states.append(state)
        wanted.append(teach(example, state))
        done = bool(wanted[-1][-1])
        if done and float(torch.rand((), generator=generator)) < 0.5:
            break
        if not done and float(torch.rand((), generator=generator)) < follow:
            chances = wanted[-1][:-1]
        else:
            with torch.no_grad():
                chances = torch.softmax(logits(net, example.found, [state])[0, :-1], dim=0)
        taken[int(torch.multinomial(chances, 1, generator=generator))] = True
    return Walk(states, torch.stack(wanted))


def imitation(logit: Tensor, wanted: Tensor) -> Tensor:
    """Mean cross entropy of softmax(logit) [B, N + 1] with `wanted` [B, N + 1]."""
    chance = torch.log_softmax(logit, dim=-1).masked_fill(wanted == 0, 0.0)
    return -(wanted * chance).sum(dim=-1).mean()
