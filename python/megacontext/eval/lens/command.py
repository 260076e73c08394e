"""`megacontext eval lens`: trained against untrained lens, BM25, embedding, random, and an oracle.

Two measures on documents that no lens was trained on, at equal places:
recall  share of the blocks an answer rests on that stand in the chosen windows; needs no base
gain    nats that the chosen window takes off the answer, as a share of what the best window takes
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from megacontext.config import LensConfig
from megacontext.eval.lens.gains import GainMeter, Window
from megacontext.eval.lens.histories import StreamHistory, open_history
from megacontext.eval.lens.methods import Ranking, lenses, rankings, window_axis, windows
from megacontext.eval.lens.report import summarise, write_report
from megacontext.eval.lens.streams import SPLITS, StreamQuestion, make_stream
from megacontext.eval.long.manifest import write_manifest
from megacontext.lens import UntrainedLens
from megacontext.lens.trained import load_net, shipped_lenses
from megacontext.models import load

WINDOWS_MAX = 6
RECALL_AT = (1, 3, 6)


def choose(
    held: StreamHistory, questions: Sequence[StreamQuestion], ways: dict[str, Ranking]
) -> list[dict[str, list[Window]]]:
    """Each question's windows, best first, by method."""
    axis = window_axis(held)
    return [
        {name: windows(axis, way(held, asked), WINDOWS_MAX) for name, way in ways.items()}
        for asked in questions
    ]


def recall(held: StreamHistory, asked: StreamQuestion, chosen: Sequence[Window]) -> float:
    """Share of the question's gold blocks inside the windows."""
    gold = held.gold_blocks(asked)
    inside = [
        any(p == partition and start <= block < end for p, start, end in chosen)
        for partition, block in gold
    ]
    return float(np.mean(inside))


def recall_row(
    held: StreamHistory,
    asked: StreamQuestion,
    ways: dict[str, Ranking],
    by_name: dict[str, UntrainedLens],
) -> dict[str, Any]:
    """Kind and document of a question; recall at each count of windows by method; what each lens
    shows at run time, with the reader where it has one, in blocks, and the recall of that."""
    (chosen,) = choose(held, [asked], ways)
    row: dict[str, Any] = {"kind": asked.kind, "document": asked.group}
    row["recall"] = {
        name: {str(k): recall(held, asked, found[:k]) for k in RECALL_AT}
        for name, found in chosen.items()
    }
    row["shown"], row["blocks"] = {}, {}
    for name, lens in by_name.items():
        passages = lens.score(held.history, held.question(asked, reads=True)).passages
        shown = [(p.partition, p.start_block, p.end_block) for p in passages]
        row["shown"][name] = recall(held, asked, shown)
        row["blocks"][name] = sum(end - start for _, start, end in shown)
    return row


def kept_rows(
    path: Path,
    questions: Sequence[StreamQuestion],
    make: Callable[[StreamQuestion], dict[str, Any]],
    most: int | None = None,
) -> list[dict[str, Any]]:
    """The row of each question, made only where `path` does not hold it yet; at most `most` new
    ones, and then as many rows as there are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:  # killed while the last line was written
        path.write_text(whole)
    known = dict(json.loads(line) for line in whole.splitlines())
    fresh = [asked for asked in questions if asked.question not in known][:most]
    with path.open("a") as file:
        for asked in fresh:
            known[asked.question] = make(asked)
            file.write(json.dumps([asked.question, known[asked.question]]) + "\n")
            file.flush()
    return [known[asked.question] for asked in questions if asked.question in known]


def gain_rows(
    held: StreamHistory,
    groups: Sequence[Sequence[StreamQuestion]],
    ways: dict[str, Ranking],
    folder: Path,
) -> list[dict[str, Any]]:
    """One row a question: the gain of each method's best window, and the oracle's over all windows
    that any method or the gold offers to any question of the group."""
    meter, rows, counts = GainMeter(held), [], held.history.block_counts()
    # A blind guess among thousands gains nothing; measuring it would cost as much as a method.
    ways = {name: way for name, way in ways.items() if name != "random"}
    for group in groups:
        chosen = [{n: w[0] for n, w in by.items() if w} for by in choose(held, group, ways)]
        pool = dict.fromkeys(w for by in chosen for w in by.values())
        for asked in group:
            for partition, block in held.gold_blocks(asked):
                gold = (partition, max(0, block - 2), min(counts[partition], block + 3))
                if not any(p == partition and abs(start - gold[1]) < 2 for p, start, _ in pool):
                    pool[gold] = None
        offered = list(pool)
        gains = meter.kept(folder, group, offered)
        for column, (asked, by) in enumerate(zip(group, chosen, strict=True)):
            row = {name: float(gains[offered.index(w), column]) for name, w in by.items()}
            row["oracle"] = max(0.0, float(gains[:, column].max()))
            rows.append({"kind": asked.kind, "document": asked.group, "gain": row})
        print(f"[lens] {len(rows)} questions measured", file=sys.stderr, flush=True)
    return rows


def sample(held: StreamHistory, limit: int, seed: int) -> list[StreamQuestion]:
    """Up to `limit` questions of each kind, the kinds in turn: a part of them is of all kinds."""
    questions = list(held.stream.questions)
    random.Random(seed).shuffle(questions)
    taken: dict[str, list[StreamQuestion]] = defaultdict(list)
    for asked in questions:
        if len(taken[asked.kind]) < limit:
            taken[asked.kind].append(asked)
    rounds = zip_longest(*(taken[kind] for kind in sorted(taken)))
    return [asked for round_ in rounds for asked in round_ if asked is not None]


def gain_groups(
    held: StreamHistory, count: int, size: int, seed: int
) -> list[list[StreamQuestion]]:
    """`count` groups of `size` questions about one document each, documents in turn by kind."""
    found: dict[str, list[StreamQuestion]] = defaultdict(list)
    for asked in held.stream.questions:
        found[asked.group].append(asked)
    chance = random.Random(f"gains|{seed}")
    kinds: dict[str, list[list[StreamQuestion]]] = defaultdict(list)
    for group in found.values():
        chance.shuffle(group)
        if len(group) >= size:
            kinds[group[0].group.split("/")[0]].append(group[:size])
    for of_kind in kinds.values():
        chance.shuffle(of_kind)
    # Two articles for one of each other kind: articles hold most of the questions.
    order = [kind for kind in sorted(kinds) for _ in range(2 if kind == "squad" else 1)]
    chosen: list[list[StreamQuestion]] = []
    while len(chosen) < count and any(kinds.values()):
        for kind in order:
            if kinds[kind] and len(chosen) < count:
                chosen.append(kinds[kind].pop())
    return chosen


def _folders(given: Sequence[str]) -> dict[str, Path]:
    """Folders of lenses by name, of `name=folder` or of what ships."""
    if not given:
        return {"trained": shipped_lenses()[0].path.parent}
    return {name: Path(where) for name, _, where in (each.partition("=") for each in given)}


def _digest(folders: dict[str, Path]) -> str:
    """Of all lenses: rows of other lenses are not mixed in."""
    digest = hashlib.sha256()
    for name, folder in folders.items():
        digest.update(name.encode() + (folder / "lens.safetensors").read_bytes())
    return digest.hexdigest()[:16]


def _settings() -> str:
    """Of what the reader changes: rows of other settings of the lens are not mixed in."""
    return f"-read-{hashlib.sha256(repr(LensConfig()).encode()).hexdigest()[:8]}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="megacontext eval lens", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lens", action="append", default=[], help="name=folder; default: shipped")
    parser.add_argument("--work", type=Path, default=Path("lens-work"), help="histories and gains")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--questions", type=int, default=400, help="of each kind, for recall")
    parser.add_argument("--most", type=int, help="new questions in this call; the next goes on")
    parser.add_argument("--gain-groups", type=int, default=8, help="0 leaves the gains out")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--read", action="store_true", help="the base reads passages, as at run time"
    )
    parser.add_argument("--model", default="smollm2")
    given = parser.parse_args(arguments)
    base = load(given.model)
    held = open_history(make_stream(given.split), given.work / "histories", base)
    folders = _folders(given.lens)
    nets = {
        name: load_net(folder / "lens.safetensors", json.loads((folder / "card.json").read_text()))
        for name, folder in folders.items()
    }
    ways, by_name = rankings(nets, held), lenses(nets, held, read=given.read)
    questions = sample(held, given.questions, given.seed)
    rows = kept_rows(
        given.work / "rows" / given.split / f"{_digest(folders)}{_settings() * given.read}.jsonl",
        questions,
        lambda asked: recall_row(held, asked, ways, by_name),
        given.most,
    )
    print(f"[lens] {len(rows)} of {len(questions)} questions", flush=True)
    groups = gain_groups(held, given.gain_groups, given.group_size, given.seed)
    gains = gain_rows(held, groups, ways, given.work / "gains" / given.split)
    given.out.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) for name, value in vars(given).items()}
    write_manifest(given.out, settings, base.facts.identity)
    blocks = sum(held.history.block_counts().values())
    result = {"history_blocks": blocks, "recall": rows, "gain": gains, "reader": given.read}
    (given.out / "rows.json").write_text(json.dumps(result))
    write_report(given.out, summarise(result))
    print(f"[lens] report: {given.out / 'report.md'}")


if __name__ == "__main__":
    main()
