"""The working context and the allocator in plain Python: lists, sorting, no cleverness.

Written from ``csrc/focus/README.md``, not from the C++: a partition is a list of (lod, index) in
timeline order, LOD 0 being a raw block. Slow on purpose.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

K = 32
MAX_LOD = 8
EXPAND, COLLAPSE = 0, 1

Node = tuple[int, int]  # lod, index


class Refused(Exception):
    """The engine must refuse this too."""


def width(lod: int) -> int:
    return K ** max(lod, 1)


@dataclass
class Partition:
    tokens: int
    tail: int
    entries: list[Node] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)
    excluded: set[int] = field(default_factory=set)

    @property
    def blocks(self) -> int:
        return -(-self.tokens // K)

    @property
    def root(self) -> Node:
        lod = 2
        while K**lod < self.tokens:
            lod += 1
        return lod, 0

    def end(self, node: Node) -> int:
        return min((node[1] + 1) * width(node[0]), self.tokens)

    def distance(self, node: Node) -> int:
        return self.tokens - self.end(node)

    def children(self, node: Node) -> list[Node]:
        lod, index = node
        if lod == 1:
            return [(0, index)]
        each = width(lod - 1)
        nodes = [(lod - 1, index * K + i) for i in range(K)]
        return [n for n in nodes if n[1] * each < self.tokens]

    def must_be_raw(self, block: int) -> bool:
        if block in self.excluded:
            return False
        protected = self.tail > 0 and block >= max(0, self.tokens - self.tail) // K
        return protected or block in self.pinned

    def cover(self, block: int) -> Node:
        return next(n for n in self.entries if block * K < self.end(n) and self.starts(n, block))

    @staticmethod
    def starts(node: Node, block: int) -> bool:
        return node[1] * width(node[0]) <= block * K


class Model:
    def __init__(self, budget: int, gist_places: tuple[int, ...], tail: int) -> None:
        self.budget, self.tail = budget, tail
        self.gist_places = list(gist_places)
        while self.gist_places and self.gist_places[-1] == 0:
            self.gist_places.pop()
        self.partitions: dict[int, Partition] = {}
        self.step = 0
        self.done: dict[tuple[int, Node], tuple[int, int]] = {}  # -> (action, step)

    # ---- costs ----

    def cost(self, p: Partition, node: Node) -> int:
        lod, index = node
        start, end = index * width(lod), p.end(node)
        if lod == 0:
            return end - start
        if end - start < width(lod) or lod > len(self.gist_places):
            return 0
        return self.gist_places[lod - 1]

    def expand_cost(self, p: Partition, node: Node) -> int:
        return sum(self.cost(p, c) for c in p.children(node)) - self.cost(p, node)

    @property
    def places(self) -> int:
        return sum(self.cost(p, n) for p in self.partitions.values() for n in p.entries)

    @property
    def free(self) -> int:
        return self.budget - self.places

    # ---- swaps ----

    @staticmethod
    def expand(p: Partition, node: Node) -> None:
        at = p.entries.index(node)
        p.entries[at : at + 1] = p.children(node)

    @staticmethod
    def collapse(p: Partition, node: Node) -> None:
        children = p.children(node)
        at = p.entries.index(children[0])
        assert p.entries[at : at + len(children)] == children
        p.entries[at : at + len(children)] = [node]

    def collapsible(self, p: Partition) -> list[Node]:
        entries = set(p.entries)
        parents = {(lod + 1, i if lod == 0 else i // K) for lod, i in p.entries}
        return [
            n
            for n in parents
            if n[0] <= p.root[0]
            and all(c in entries for c in p.children(n))
            and not (n[0] == 1 and p.must_be_raw(n[1]))
        ]

    def path(self, p: Partition, block: int) -> list[Node]:
        """The nodes to expand, top down, to make a block raw."""
        lod, _ = p.cover(block)
        return [(at, block // K ** (at - 1)) for at in range(lod, 0, -1)]

    def make_raw(self, p: Partition, block: int) -> None:
        for node in self.path(p, block):
            self.expand(p, node)

    # ---- partitions ----

    def coarsest(self, p: Partition, start: int) -> list[Node]:
        """Coarsest full nodes with gists from `start` on, then the unfinished block."""
        nodes: list[Node] = []
        while start < p.tokens:
            lod = len(self.gist_places)
            while lod > 0 and (start % K**lod or start + K**lod > p.tokens):
                lod -= 1
            nodes.append((max(lod, 1), start // width(lod)))
            start += width(lod)
        return nodes

    def fits(self, p: Partition, nodes: list[Node]) -> bool:
        return 0 < sum(self.cost(p, n) for n in nodes) <= self.free

    def tile_new(self, p: Partition) -> None:
        p.entries = [p.root]
        if self.cost(p, p.root) == 0:
            nodes = self.coarsest(p, 0)
            if self.fits(p, nodes):
                p.entries = nodes

    def set_partition(self, partition: int, tokens: int, tail: int | None) -> None:
        known = self.partitions.get(partition)
        if known and tokens < known.tokens:
            raise Refused
        if tokens == 0:
            return
        if tail is None:
            tail = known.tail if known else self.tail
        if min(tail, tokens) > self.budget:
            raise Refused
        with self.undone_if_refused():
            p = self.partitions.setdefault(partition, Partition(tokens, tail))
            p.tail = tail
            if not p.entries:
                self.tile_new(p)
            elif tokens > p.tokens:
                self.extend(p, tokens)
            self.enforce_raw(p)
            self.make_room()

    def extend(self, p: Partition, tokens: int) -> None:
        first_new = p.blocks
        is_hidden = p.entries == [p.root] and self.cost(p, p.root) == 0
        p.tokens = tokens
        if is_hidden:
            p.entries = [p.root]
        position = p.end(p.entries[-1])
        while position < tokens:
            lod = 1
            while position % K ** (lod + 1) == 0:
                lod += 1
            p.entries.append((lod, position // K**lod))
            position = p.end(p.entries[-1])
        for block in range(p.blocks - 1, first_new - 1, -1):
            if p.tail == 0:
                break
            if block in p.excluded:
                continue
            entries = list(p.entries)
            self.make_raw(p, block)
            if self.places > self.budget:
                p.entries = entries
                break
        self.open_last(p, first_new)

    def open_last(self, p: Partition, first_new: int) -> None:
        last = p.entries[-1]
        start = last[1] * width(last[0])
        is_full = p.end(last) == start + width(last[0])
        if last[0] == 0 or is_full or start < first_new * K:
            return
        nodes = self.coarsest(p, start)
        if self.fits(p, nodes):
            p.entries[-1:] = nodes

    def enforce_raw(self, p: Partition) -> None:
        for block in range(p.blocks):
            if p.must_be_raw(block):
                self.make_raw(p, block)

    def make_room(self) -> None:
        while self.free < 0:
            candidates = [
                (n[0], -p.distance(n), -partition, n[0], -n[1], p, n)
                for partition, p in self.partitions.items()
                for n in self.collapsible(p)
                if self.expand_cost(p, n) >= 0
            ]
            if not candidates:
                raise Refused
            *_, p, node = min(candidates, key=lambda c: c[:5])
            self.collapse(p, node)

    def undone_if_refused(self) -> UndoneIfRefused:
        return UndoneIfRefused(self)

    def remove_partition(self, partition: int) -> None:
        if partition not in self.partitions:
            raise Refused
        del self.partitions[partition]
        self.done = {key: value for key, value in self.done.items() if key[0] != partition}

    def reset(self) -> None:
        with self.undone_if_refused():
            for p in self.partitions.values():
                p.entries = []
            for _, p in sorted(self.partitions.items()):
                self.tile_new(p)
                self.enforce_raw(p)
            self.make_room()
        self.done = {}

    # ---- pins ----

    def span_blocks(self, partition: int, start: int, end: int) -> tuple[Partition, set[int]]:
        p = self.partitions.get(partition)
        if p is None or not start < end <= p.tokens:
            raise Refused
        return p, set(range(start // K, -(-end // K)))

    def pin(self, partition: int, start: int, end: int) -> None:
        p, blocks = self.span_blocks(partition, start, end)
        if blocks & p.excluded or len(blocks) > self.budget:
            raise Refused
        with self.undone_if_refused():
            p = self.partitions[partition]
            p.pinned |= blocks
            self.enforce_raw(p)
            self.make_room()

    def unpin(self, partition: int, start: int, end: int) -> None:
        p, blocks = self.span_blocks(partition, start, end)
        p.pinned -= blocks

    def exclude(self, partition: int, start: int, end: int) -> None:
        p, blocks = self.span_blocks(partition, start, end)
        if blocks & p.pinned:
            raise Refused
        p.excluded |= blocks
        p.entries = [(1, i) if lod == 0 and i in blocks else (lod, i) for lod, i in p.entries]

    def include(self, partition: int, start: int, end: int) -> None:
        _, blocks = self.span_blocks(partition, start, end)
        with self.undone_if_refused():
            p = self.partitions[partition]
            p.excluded -= blocks
            self.enforce_raw(p)
            self.make_room()

    # ---- plans ----

    def apply(self, actions: list[tuple[int, int, Node]]) -> None:
        with self.undone_if_refused():
            for action, partition, node in actions:
                self.apply_one(action, partition, node)
        self.step += 1
        for action, partition, node in actions:
            self.done[partition, node] = (action, self.step)

    def apply_one(self, action: int, partition: int, node: Node) -> None:
        p = self.partitions.get(partition)
        if p is None:
            raise Refused
        if action == COLLAPSE:
            if node not in self.collapsible(p):
                raise Refused
            self.collapse(p, node)
        else:
            if node[0] == 0 or node not in p.entries or (node[0] == 1 and node[1] in p.excluded):
                raise Refused
            self.expand(p, node)
        if self.free < 0:
            raise Refused

    def is_cooling(self, action: int, partition: int, node: Node, steps: int) -> bool:
        done = self.done.get((partition, node))
        return done is not None and done[0] == action and done[1] + steps > self.step

    def copy(self) -> Model:
        return copy.deepcopy(self)

    def rows(self) -> list[tuple[int, int, int, int, int, int]]:
        return [
            (partition, n[0], n[1], n[1] * width(n[0]), p.end(n), self.cost(p, n))
            for partition, p in sorted(self.partitions.items())
            for n in p.entries
        ]


class UndoneIfRefused:
    def __init__(self, model: Model) -> None:
        self.model, self.before = model, copy.deepcopy(model.partitions)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: object, trace: object) -> None:
        if kind is Refused:
            self.model.partitions = self.before


class ModelAllocator:
    """The greedy of the README on a copy of the model."""

    def __init__(self, model: Model, scores: dict[int, list[float]], config: object) -> None:
        self.original, self.model = model, model.copy()
        self.scores, self.config = scores, config
        self.target = model.budget - min(config.reserve_places, model.budget)
        self.actions: list[tuple[int, int, Node, float]] = []

    def score(self, partition: int, node: Node) -> float:
        p = self.model.partitions[partition]
        each = width(node[0]) // K
        blocks = range(node[1] * each, min((node[1] + 1) * each, p.blocks))
        scores = self.scores.get(partition, [])
        known = scores[blocks.start : blocks.stop]
        return max([*known, 0.0] if len(known) < len(blocks) else known)

    def plan(self) -> list[tuple[int, int, Node, float]]:
        skipped: set[tuple[int, Node]] = set()
        while self.model.places > self.target and self.left > 0:
            lowest = self.lowest(skipped, needs_room=True)
            if lowest is None:
                break
            self.collapse(*lowest)
        self.expand_best()
        self.tidy()
        return self.actions

    @property
    def left(self) -> int:
        return self.config.max_actions - len(self.actions)

    def lowest(
        self, skipped: set[tuple[int, Node]], needs_room: bool = False
    ) -> tuple[float, int, Node] | None:
        m, best = self.model, None
        for partition, p in m.partitions.items():
            for n in m.collapsible(p):
                refund = m.expand_cost(p, n)
                cooling = m.is_cooling(EXPAND, partition, n, self.config.cooldown_steps)
                if refund < 0 or (refund > 0 and cooling and not needs_room):
                    continue
                if (partition, n) in skipped:
                    continue
                key = (self.score(partition, n), -p.distance(n), -partition, n[0], -n[1])
                if best is None or key < best[0]:
                    best = key, partition, n
        return None if best is None else (best[0][0], best[1], best[2])

    def collapse(self, score: float, partition: int, node: Node) -> None:
        self.model.collapse(self.model.partitions[partition], node)
        self.actions.append((COLLAPSE, partition, node, score))

    def expand_best(self) -> None:
        m = self.model
        order = sorted(
            (-score, p.tokens - p.end((0, block)), partition, block)
            for partition, p in m.partitions.items()
            for block, score in enumerate(self.scores.get(partition, []))
            if score > self.config.expand_threshold
        )
        whole = max(K - (m.gist_places[0] if m.gist_places else 0), 0)
        hopeless = 1 << 60
        for negative, _, partition, block in order:
            if hopeless <= whole or self.left <= 0:
                return
            p = m.partitions[partition]
            path = m.path(p, block)
            costs = [m.expand_cost(p, n) for n in path]
            peak = max([0, *(sum(costs[: i + 1]) for i in range(len(costs)))])
            if block in p.excluded or not path or peak >= hopeless:
                continue
            if self.is_blocked(partition, path, costs):
                continue
            if not self.make_room(len(path), peak, -negative):
                hopeless = peak
                continue
            for node in path:
                m.expand(p, node)
                self.actions.append((EXPAND, partition, node, -negative))

    def is_blocked(self, partition: int, path: list[Node], costs: list[int]) -> bool:
        before = self.original.partitions[partition]
        for node, cost in zip(path, costs, strict=True):
            if cost == 0:
                continue
            steps = self.config.cooldown_steps
            if self.model.is_cooling(COLLAPSE, partition, node, steps):
                return True
            covering = before.cover(node[1] * width(node[0]) // K)
            if covering[0] < node[0]:  # it was expanded, so this plan has collapsed it
                return True
        return False

    def make_room(self, needed_actions: int, peak: int, score: float) -> bool:
        before, actions = copy.deepcopy(self.model.partitions), list(self.actions)
        loss = 0.0
        fits = needed_actions <= self.left
        while fits and peak > self.target - self.model.places:
            lowest = self.lowest(set())
            fits = False
            if lowest is None:
                break
            refund = self.model.expand_cost(self.model.partitions[lowest[1]], lowest[2])
            if refund > 0:
                loss += max(lowest[0], 0.0)
            if lowest[0] >= score or score - loss <= self.config.hysteresis:
                break
            self.collapse(*lowest)
            fits = needed_actions <= self.left
        if not fits:
            for partition, p in before.items():  # keep the objects: callers hold them
                self.model.partitions[partition].entries = p.entries
            self.actions = actions
        return fits

    def tidy(self) -> None:
        skipped: set[tuple[int, Node]] = set()
        while self.left > 0:
            lowest = self.lowest(skipped)
            if lowest is None or lowest[0] > self.config.expand_threshold:
                return
            refund = self.model.expand_cost(self.model.partitions[lowest[1]], lowest[2])
            if lowest[0] < -self.config.collapse_threshold or refund == 0:
                self.collapse(*lowest)
            else:
                skipped.add(lowest[1:])
