"""Is a learned policy better than the greedy allocator at equal places? Held-out questions.

    python -m megacontext.eval.lens.policy --policy policy=run/export \
        --policy "learned scores=static/export" --work policy-work --out report

Every method fills a working context of the same places over the same history, and what is raw then
counts: the facts an answer rests on that are shown whole, and the NLL of the answer when the frozen
base reads just that. Rows are kept, so that a call goes on where one was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacontext.config import K
from megacontext.eval.lens.command import kept_rows, sample
from megacontext.eval.lens.gains import GainMeter
from megacontext.eval.lens.histories import Block, StreamHistory, open_history
from megacontext.eval.lens.kept_reader import KeptReader
from megacontext.eval.lens.methods import window_axis
from megacontext.eval.lens.oracle import greedy_oracle
from megacontext.eval.lens.policy_report import summarise_policy, write_policy_report
from megacontext.eval.lens.several import make_several
from megacontext.eval.lens.streams import SPLITS, StreamQuestion
from megacontext.eval.long.manifest import write_manifest
from megacontext.lens import Scores, TrainedLens, UntrainedLens
from megacontext.lens.candidates import Candidates, find_candidates
from megacontext.lens.policy_net import PolicyNet, load_policy
from megacontext.lens.trained import find_lens
from megacontext.models import load
from megacontext.runtime.policy import STOP_ABOVE, PolicyAllocator, raw_blocks
from megacontext_ext import Allocator, AllocatorConfig, ScoreField, WorkingContext
from megacontext_ext.focus import MAX_LOD

BLOCKS = (3, 5, 10, 15)
NATS_BLOCKS = (5, 10)
ORACLE_BLOCKS = 5
# Blocks offered to the oracle beside those of the facts: the best by score.
ORACLE_RIVALS = 6
ANSWER_TOKENS = 24
CANDIDATES = 64
# Gists are not shown at run time (DESIGN.md D5), so that only raw blocks take places.
GIST_PLACES = (0,) * MAX_LOD

Chosen = dict[str, list[Block]]


@dataclass(frozen=True)
class Asked:
    """A question with what every method starts from."""

    question: StreamQuestion
    scores: Scores
    found: Candidates
    # By name, of methods that take blocks by a number that is 0 or more.
    evidence: dict[str, dict[int, NDArray[np.float32]]]


class Chooser:
    """What each method shows of a history. One thread; `allocators` count their fallbacks."""

    def __init__(
        self,
        held: StreamHistory,
        lens: UntrainedLens,
        nets: dict[str, PolicyNet],
        trained: UntrainedLens | None = None,
    ) -> None:
        """trained: a lens whose evidence is compared as well."""
        self._held, self._lens = held, lens
        self._by_evidence = {"evidence": lens, **({"trained lens": trained} if trained else {})}
        self.allocators: dict[str, PolicyAllocator] = {}
        for name, net in nets.items():
            self.allocators[name] = PolicyAllocator(net, GIST_PLACES, stop_above=1.0)
            if net.config.sees_state:
                self.allocators[f"{name}, may stop"] = PolicyAllocator(net, GIST_PLACES)

    def asked(self, question: StreamQuestion, reads: bool) -> Asked:
        held = self._held
        asked = held.question(question, reads=reads)
        scores = self._lens.score(held.history, asked)
        axis = window_axis(held)
        evidence = {}
        for name, lens in self._by_evidence.items():
            by_place = lens.evidence(held.history, axis, asked)
            evidence[name] = {p: by_place[axis.span(p)] for p in held.history.block_counts()}
        found = find_candidates(held.history, asked, scores, CANDIDATES)
        return Asked(question, scores, found, evidence)

    def choose(self, asked: Asked, blocks: int) -> Chosen:
        """Raw blocks by method, in a working context of `blocks` * K places."""
        found = asked.found
        chosen = {
            "random": self._filled(_field_of(found, _chance(asked.question, len(found))), blocks),
            **{n: self._filled(_field(each), blocks) for n, each in asked.evidence.items()},
            "greedy": self._filled(_field_of(found, found.scores + 1.0), blocks),
            "greedy, may stop": self._greedy(_field(asked.scores.by_partition), blocks),
        }
        for name, allocator in self.allocators.items():
            context = self._context(blocks)
            allocator.refocus(context, _field(asked.scores.by_partition), found)
            context.check()
            chosen[name] = raw_blocks(context)
        chosen["facts first"] = self._filled(self._facts_first(asked), blocks)
        return chosen

    def _filled(self, field: ScoreField, blocks: int) -> list[Block]:
        return self._greedy(field, blocks, AllocatorConfig(cooldown_steps=0, expand_threshold=0.0))

    def _greedy(
        self, field: ScoreField, blocks: int, config: AllocatorConfig | None = None
    ) -> list[Block]:
        allocator = Allocator(config or AllocatorConfig(cooldown_steps=0))
        context = self._context(blocks)
        context.apply(allocator.plan(context, field))
        return raw_blocks(context)

    def _context(self, blocks: int) -> WorkingContext:
        context = WorkingContext(blocks * K, GIST_PLACES, 0)
        for partition, count in self._held.history.block_counts().items():
            context.set_partition(partition, count * K)
        return context

    def _facts_first(self, asked: Asked) -> ScoreField:
        """The lens's scores, and above them the blocks of each fact's first alternative."""
        values = {p: s.copy() for p, s in asked.scores.by_partition.items()}
        for array in values.values():
            array += 1.0
        for fact in self._held.grounds(asked.question):
            for partition, block in fact[0]:
                values[partition][block] = 4.0
        return _field(values)


def _field(by_partition: dict[int, NDArray[np.float32]] | Any) -> ScoreField:
    field = ScoreField()
    for partition, values in by_partition.items():
        field.set(partition, values)
    return field


def _field_of(found: Candidates, scores: NDArray[np.float32]) -> ScoreField:
    """Scores of candidates; every other block is not wanted."""
    values = {
        p: np.full(int(found.blocks[found.partitions == p].max()) + 1, -1.0, np.float32)
        for p in np.unique(found.partitions).tolist()
    }
    for partition, block, score in zip(found.partitions, found.blocks, scores, strict=True):
        values[int(partition)][block] = score
    return _field(values)


def _chance(question: StreamQuestion, count: int) -> NDArray[np.float32]:
    digest = hashlib.sha256(question.question.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    return 0.1 + 0.9 * rng.random(count, dtype=np.float32)


def facts_whole(held: StreamHistory, asked: StreamQuestion, shown: Collection[Block]) -> float:
    """Share of the facts of which one alternative is shown whole."""
    seen = set(shown)
    return float(np.mean([any(each <= seen for each in fact) for fact in held.grounds(asked)]))


def gold_begun(held: StreamHistory, asked: StreamQuestion, shown: Collection[Block]) -> float:
    """Share of the gold blocks, as in `eval lens`, that are shown."""
    seen = set(shown)
    return float(np.mean([block in seen for block in held.gold_blocks(asked)]))


def recall_row(chooser: Chooser, held: StreamHistory, question: StreamQuestion) -> dict[str, Any]:
    """Kind and document; by whether the base read the candidates and by blocks: what each method
    shows, `whole` and `gold` of it, and what the candidates hold."""
    row: dict[str, Any] = {"kind": question.kind, "document": question.group}
    for label, reads in (("unread", False), ("read", True)):
        asked = chooser.asked(question, reads)
        every = list(zip(asked.found.partitions.tolist(), asked.found.blocks.tolist(), strict=True))
        row[label] = {"candidates": facts_whole(held, question, every)}
        row["best"] = every[:ORACLE_RIVALS]
        for blocks in BLOCKS:
            chosen = chooser.choose(asked, blocks)
            row[label][str(blocks)] = {
                name: {
                    "whole": facts_whole(held, question, shown),
                    "gold": gold_begun(held, question, shown),
                    "used": len(shown),
                    "blocks": shown,
                }
                for name, shown in chosen.items()
            }
    return row


def nats_row(
    meter: GainMeter, held: StreamHistory, question: StreamQuestion, row: dict[str, Any],
    oracle: bool,
) -> dict[str, Any]:  # fmt: skip
    """NLL of the answer by blocks and method over the candidates that the base read, with nothing
    shown, and of the greedy oracle where it is wanted."""
    asked = meter.asked(question, ANSWER_TOKENS)
    known: dict[frozenset[Block], float] = {}

    def nats(sets: Sequence[Collection[Block]]) -> NDArray[np.float64]:
        wanted = [frozenset(blocks) for blocks in sets]
        fresh = list(dict.fromkeys(each for each in wanted if each not in known))
        if fresh:
            known.update(zip(fresh, meter.nats_of_sets(asked, fresh).tolist(), strict=True))
        return np.array([known[each] for each in wanted])

    made: dict[str, Any] = {"kind": row["kind"], "document": row["document"]}
    made["tokens"], made["nothing"] = len(asked.answer), float(nats([()])[0])
    for blocks in NATS_BLOCKS:
        shown = row["read"][str(blocks)]
        found = nats([each["blocks"] for each in shown.values()])
        made[str(blocks)] = dict(zip(shown, found.tolist(), strict=True))
    if oracle:
        offered = {b for fact in held.grounds(question) for each in fact for b in each}
        offered |= set(row["best"][:ORACLE_RIVALS])
        steps = greedy_oracle(nats, offered, ORACLE_BLOCKS)
        taken = [step.best for step in steps if step.gain_nats.max() > 0.0]
        made["oracle"] = float(nats([taken])[0])
        made["oracle_blocks"] = len(taken)
        made["oracle_whole"] = facts_whole(held, question, taken)
    return made


def _folders(given: Sequence[str]) -> dict[str, Path]:
    return {name: Path(where) for name, _, where in (each.partition("=") for each in given)}


def _digest(folders: dict[str, Path]) -> str:
    """Of what was measured: rows of other policies are not mixed in."""
    digest = hashlib.sha256(f"{STOP_ABOVE}|{BLOCKS}|{NATS_BLOCKS}".encode())
    for name, folder in folders.items():
        digest.update(name.encode() + (folder / "policy.safetensors").read_bytes())
    return digest.hexdigest()[:16]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", action="append", required=True, help="name=folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("policy-work"))
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--planted", type=int, default=40)
    parser.add_argument("--questions", type=int, default=30, help="of each kind")
    parser.add_argument("--nats", type=int, default=30, help="questions of each kind; 0: none")
    parser.add_argument("--oracle", type=int, default=9, help="questions of each kind; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="smollm2")
    given = parser.parse_args(arguments)
    base = load(given.model)
    held = open_history(
        make_several(given.split, planted=given.planted), given.work / "histories", base
    )
    lens = UntrainedLens(reader=KeptReader(base, given.work / "reads" / f"{given.split}.jsonl"))
    folders = _folders(given.policy)
    shipped = find_lens(base.facts)
    trained = TrainedLens(shipped.load(), held.sketcher, base.tokenizer) if shipped else None
    nets = {name: load_policy(where) for name, where in folders.items()}
    chooser = Chooser(held, lens, nets, trained)
    questions = sample(held, given.questions, given.seed)
    kept = given.work / "rows" / given.split
    rows = [recall_row(chooser, held, question) for question in questions]
    print(f"[policy] {len(rows)} questions", flush=True)
    measured = _measured(
        held, questions, rows, kept / f"{_digest(folders)}.jsonl", (given.nats, given.oracle)
    )
    given.out.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) for name, value in vars(given).items()}
    write_manifest(given.out, settings, base.facts.identity)
    counts = {
        name: {"plans": each.plans, "fallbacks": dict(each.fallbacks)}
        for name, each in chooser.allocators.items()
    }
    result = {"recall": rows, "nats": measured, "allocators": counts}
    _drop_blocks(rows)
    (given.out / "rows.json").write_text(json.dumps(result) + "\n")
    write_policy_report(given.out, summarise_policy(result))
    print(f"[policy] report: {given.out / 'report.md'}")


def _drop_blocks(rows: Sequence[dict[str, Any]]) -> None:
    """Of what was shown the figures are kept."""
    for row in rows:
        for label in ("unread", "read"):
            for blocks in map(str, BLOCKS):
                for shown in row[label][blocks].values():
                    del shown["blocks"]


def _measured(
    held: StreamHistory, questions: Sequence[StreamQuestion], rows: Sequence[dict[str, Any]],
    path: Path, limits: tuple[int, int],
) -> list[dict[str, Any]]:  # fmt: skip
    """NLL rows of the first `limits[0]` questions of each kind, with the oracle for the first
    `limits[1]`; those that `path` holds are not measured again."""
    meter, seen = GainMeter(held), dict[str, int]()
    by_question, with_oracle = {}, set()
    for question, row in zip(questions, rows, strict=True):
        number = seen[question.kind] = seen.get(question.kind, 0) + 1
        if number <= limits[0]:
            by_question[question.question] = row
        if number <= limits[1]:
            with_oracle.add(question.question)

    def make(question: StreamQuestion) -> dict[str, Any]:
        row, oracle = by_question[question.question], question.question in with_oracle
        made = nats_row(meter, held, question, row, oracle)
        print(f"[policy] {question.kind}: {question.question[:60]}", file=sys.stderr, flush=True)
        return made

    wanted = [question for question in questions if question.question in by_question]
    measure: Callable[[StreamQuestion], dict[str, Any]] = make
    return kept_rows(path, wanted, measure)


if __name__ == "__main__":
    main()
