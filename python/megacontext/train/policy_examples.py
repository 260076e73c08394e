"""What a policy is trained on: questions with their candidates and the facts the answer rests on.

The teacher looks at what is taken: of every fact that is not shown whole yet it wants the missing
blocks of the alternative that lacks fewest, and where nothing is missing it wants to stop. So two
sentences that say the same are wanted once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from megacontext.config import K
from megacontext.eval.lens.histories import StreamHistory
from megacontext.eval.lens.streams import StreamQuestion
from megacontext.lens import UntrainedLens
from megacontext.lens.candidates import Candidates, find_candidates
from megacontext.lens.policy_net import State, logits, state_of
from megacontext_ext.errors import InvalidArgument


@dataclass(frozen=True)
class PolicyExample:
    """One question. `facts`: by fact and alternative the candidates' numbers, of blocks that are
    candidates at all."""

    kind: str
    found: Candidates
    facts: tuple[tuple[frozenset[int], ...], ...]


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
    blocks = zip(found.partitions.tolist(), found.blocks.tolist(), strict=True)
    numbers = {block: number for number, block in enumerate(blocks)}
    facts = []
    for fact in held.grounds(asked):
        known = [frozenset(numbers[b] for b in each if b in numbers) for each in fact]
        if alternatives := tuple(each for each in known if each):
            facts.append(alternatives)
    return PolicyExample(asked.kind, found, tuple(facts))


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
