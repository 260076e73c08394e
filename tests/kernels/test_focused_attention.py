"""Focused attention, read plans and merging: reference, CPU levels, emulated CUDA, CUDA."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megacontext_ext import ops as door
from megacontext_ext.entry_table import AttentionRules, EntryTable, ReadPlan, Rope
from megacontext_ext.errors import InvalidArgument
from megacontext_ext.reference import focused_attention as reference
from tests.conftest import kernel_device
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
device = kernel_device("amx_emu")


@dataclass(frozen=True)
class Case:
    """One problem; every field has a size or a feature that went wrong somewhere once."""

    lengths: tuple[int, ...] = (37, 80)
    query_tile: int = 64
    blocks: int = 7
    query_heads: int = 4
    kv_heads: int = 2
    width: int = 64
    page_rows: int = 32
    plan_heads: int = 1
    causal: bool = True
    window: int = 0
    softcap: float = 0.0
    bias_heads: int = 0
    rope_width: int = 0
    sink: bool = False
    density: float = 0.7
    empty_places: float = 0.1


@dataclass(frozen=True)
class Problem:
    q: Tensor
    keys: Tensor
    values: Tensor
    table: EntryTable
    plan: ReadPlan
    rules: AttentionRules

    def tensors(self) -> list[Any]:
        rope = self.rules.rope
        return [
            *(self.q, self.keys, self.values),
            *(self.table.rows, self.table.positions, self.table.bias),
            *(self.plan.query_starts, self.plan.query_positions),
            *(self.plan.counts, self.plan.blocks, self.rules.sink),
            *(None if rope is None else rope.keys, None if rope is None else rope.queries),
        ]

    def numbers(self) -> list[Any]:
        scale = self.rules.scale or 1.0 / math.sqrt(self.q.shape[-1])
        return [scale, self.rules.softcap, self.plan.window, self.plan.query_tile]

    def exact(self) -> Problem:
        """The same values in float64, as leaves that want gradients."""

        def leaf(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().double().requires_grad_()

        return replace(
            self,
            q=leaf(self.q),
            keys=leaf(self.keys),
            values=leaf(self.values),
            table=replace(self.table, bias=leaf(self.table.bias)),
            rules=replace(self.rules, sink=leaf(self.rules.sink)),
        )


def make(case: Case, dtype: torch.dtype = torch.float32, seed: int = 1) -> Problem:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    queries = sum(case.lengths)
    pages = -(-(case.blocks + 3) * 32 // case.page_rows)
    rows = torch.randperm(pages * case.page_rows, generator=draw)[: case.blocks * 32]
    rows = rows.reshape(case.blocks, 32).to(torch.int32)
    rows[torch.rand(rows.shape, generator=draw) < case.empty_places] = -1
    longest = max((*case.lengths, 1))
    positions = torch.randint(-1, longest, rows.shape, generator=draw, dtype=torch.int32)
    if case.blocks > 1:
        rows[1, 3] = rows[0, 0]  # one row at two places
        positions[0] = 0  # a block that every query sees fully
        if case.empty_places == 0:
            rows[0] = torch.arange(32, dtype=torch.int32)
    query_positions = torch.cat([torch.arange(n, dtype=torch.int32) for n in (*case.lengths, 0)])
    table = EntryTable(
        rows=rows,
        positions=positions if case.causal else None,
        bias=normal(case.bias_heads, case.blocks, 32) if case.bias_heads else None,
    )
    starts = door.dense_query_starts(list(case.lengths), case.query_tile)
    mask = (
        torch.rand(case.plan_heads, starts.shape[0] - 1, case.blocks, generator=draw) < case.density
    )
    if mask.shape[1] > 0:
        mask[:, 0] = False  # a query block that reads nothing
    seen = query_positions if case.causal else None
    counts, blocks = reference.make_read_plan(table, starts, seen, None, mask, case.window)
    plan = ReadPlan(starts, counts, blocks, seen, case.query_tile, case.window)
    rope = None
    if case.rope_width:
        frequencies = 10000.0 ** -torch.linspace(0, 1, case.rope_width // 2)
        sigmas = 3.0 * torch.rand(rows.shape, generator=draw)
        rope = Rope.gaussian(frequencies, positions, query_positions, sigmas)
    return Problem(
        q=normal(queries, case.query_heads, case.width).to(dtype),
        keys=normal(pages, case.kv_heads, case.page_rows, case.width).to(dtype),
        values=normal(pages, case.kv_heads, case.page_rows, case.width).to(dtype),
        table=table,
        plan=plan,
        rules=AttentionRules(
            softcap=case.softcap, sink=normal(case.query_heads) if case.sink else None, rope=rope
        ),
    )


CASES = {
    "plain": Case(),
    "prime_sizes": Case(lengths=(1, 0, 13, 67), blocks=5, query_heads=3, kv_heads=3, plan_heads=3),
    "one_query_one_block": Case(lengths=(1,), blocks=1, query_heads=1, kv_heads=1),
    "no_queries": Case(lengths=(), blocks=2),
    "no_blocks": Case(lengths=(5,), blocks=0),
    "not_causal_full_blocks": Case(causal=False, empty_places=0.0, lengths=(130,), query_tile=128),
    "window": Case(window=20, lengths=(150,), query_tile=128, blocks=11),
    "softcap_and_sink": Case(softcap=2.0, sink=True),
    "bias_for_each_entry": Case(bias_heads=1),
    "bias_for_each_head": Case(bias_heads=4, plan_heads=2, query_heads=4, kv_heads=2),
    "rope": Case(rope_width=64, bias_heads=2),
    "rope_on_a_part": Case(rope_width=32, width=128, blocks=4),
    "width_128": Case(width=128, blocks=6),
    "width_256": Case(width=256, blocks=5, lengths=(33,), rope_width=256),
    "decode": Case(lengths=(1,) * 3, query_tile=1, blocks=70, query_heads=8, kv_heads=2, width=128),
    "decode_all_features": Case(
        lengths=(9,),
        query_tile=1,
        blocks=40,
        query_heads=6,
        kv_heads=1,
        window=5,
        softcap=3.0,
        bias_heads=6,
        rope_width=64,
        sink=True,
    ),
    "decode_a_few_at_once": Case(lengths=(4, 3), query_tile=4, blocks=17, query_heads=8),
    "decode_width_256": Case(lengths=(2,), query_tile=1, blocks=9, width=256, kv_heads=1),
    "prefill_all_features": Case(
        lengths=(45, 9),
        query_tile=48,
        blocks=13,
        query_heads=6,
        kv_heads=2,
        window=30,
        softcap=3.0,
        bias_heads=6,
        rope_width=64,
        sink=True,
    ),
    "bias_of_shared_heads_and_rope": Case(
        lengths=(70,), bias_heads=2, rope_width=128, width=128, query_heads=8, window=40, blocks=9
    ),
    "rows_alone": Case(page_rows=1, blocks=3, query_heads=2, kv_heads=2),
    "long_list": Case(lengths=(64,), blocks=33, density=1.0, empty_places=0.0),
}
SMALL = ["plain", "softcap_and_sink", "bias_for_each_head", "rope", "window", "decode"]


# ---- reference against loops ---------------------------------------------------------------------


def by_loops(p: Problem, query: int, head: int) -> tuple[list[float], float]:
    """Output and lse of one query and head, one number at a time."""
    group, width = p.q.shape[1] // p.keys.shape[1], p.q.shape[2]
    kv = head // group
    scores, rows = [], []
    query_block = next(
        i
        for i in range(p.plan.counts.shape[1])
        if p.plan.query_starts[i] <= query < p.plan.query_starts[i + 1]
    )
    plan_head = kv * p.plan.counts.shape[0] // p.keys.shape[1]
    for i in range(int(p.plan.counts[plan_head, query_block])):
        block = int(p.plan.blocks[plan_head, query_block, i]) % (1 << 30)
        for place in range(32):
            row = int(p.table.rows[block, place])
            if row < 0:
                continue
            if p.plan.query_positions is not None:
                at, now = int(p.table.positions[block, place]), int(p.plan.query_positions[query])
                hidden = at > now or (p.plan.window > 0 and now - at >= p.plan.window)
                if at >= 0 and hidden:
                    continue
            page, slot = divmod(row, p.keys.shape[2])
            score = sum(
                float(p.q[query, head, e]) * float(p.keys[page, kv, slot, e]) for e in range(width)
            ) / math.sqrt(width)
            if p.rules.softcap > 0:
                score = p.rules.softcap * math.tanh(score / p.rules.softcap)
            if p.table.bias is not None:
                bias_head = head * p.table.bias.shape[0] // p.q.shape[1]
                score += float(p.table.bias[bias_head, block, place])
            scores.append(score)
            rows.append(p.values[page, kv, slot])
    total = sum(math.exp(s) for s in scores)
    if p.rules.sink is not None:
        total += math.exp(float(p.rules.sink[head]))
    if total == 0.0:
        return [0.0] * width, -math.inf
    out = [
        sum(math.exp(s) * float(r[e]) for s, r in zip(scores, rows, strict=True)) / total
        for e in range(width)
    ]
    return out, math.log(total)


@pytest.mark.parametrize("name", ["plain", "window", "softcap_and_sink", "bias_for_each_head"])
def test_the_reference_equals_loops(name: str) -> None:
    problem = make(replace(CASES[name], lengths=(5, 3), query_tile=4, blocks=3), torch.float64)
    out, lse = reference.focused_attention(
        problem.q, problem.keys, problem.values, problem.table, problem.plan, problem.rules
    )
    for query in range(problem.q.shape[0]):
        for head in range(problem.q.shape[1]):
            expected, expected_lse = by_loops(problem, query, head)
            assert_close(out[query, head], torch.tensor(expected, dtype=torch.float64), what="out")
            assert float(lse[query, head]) == pytest.approx(expected_lse, abs=1e-6)


def test_rope_depends_on_differences_of_positions_only() -> None:
    problem = make(replace(CASES["rope"], causal=False), torch.float64)
    frequencies = 10000.0 ** -torch.linspace(0, 1, 32)
    places, queries = problem.table.rows.float(), torch.arange(problem.q.shape[0]).float()
    outs = []
    for shift in (0.0, 1000.0):
        rules = AttentionRules(rope=Rope.gaussian(frequencies, places + shift, queries + shift))
        outs.append(
            reference.focused_attention(
                problem.q, problem.keys, problem.values, problem.table, problem.plan, rules
            )[0]
        )
    assert_close(outs[0], outs[1], kind="product", dtype=torch.float32)


def test_a_gaussian_of_width_zero_is_plain_rope() -> None:
    frequencies = 10000.0 ** -torch.linspace(0, 1, 16)
    positions = torch.arange(64).reshape(2, 32)
    plain = Rope.gaussian(frequencies, positions, torch.arange(3))
    zero = Rope.gaussian(frequencies, positions, torch.arange(3), torch.zeros(2, 32))
    assert torch.equal(plain.keys, zero.keys)
    wide = Rope.gaussian(frequencies, positions, torch.arange(3), torch.full((2, 32), 4.0))
    expected = plain.keys * torch.exp(-0.5 * (4.0 * frequencies) ** 2).repeat(2)
    assert_close(wide.keys, expected.double(), dtype=torch.float32)


# ---- every device against the reference ----------------------------------------------------------


def run(device: Any, p: Problem) -> tuple[Tensor, Tensor]:
    tensors = [device.put(t) for t in p.tensors()]
    return device.ops.focused_attention(*tensors, *p.numbers())


def check_forward(device: Any, case: Case, dtype: torch.dtype) -> None:
    problem = make(case, dtype)
    exact = problem.exact()
    expected, expected_lse = reference.focused_attention(
        exact.q, exact.keys, exact.values, exact.table, exact.plan, exact.rules
    )
    out, lse = run(device, problem)
    assert_close(out, expected, kind="product", what="out")
    assert_close(lse, expected_lse, kind="product", dtype=dtype, what="lse")


@pytest.mark.parametrize("name", CASES)
def test_forward_equals_the_reference(device: Any, name: str) -> None:
    check_forward(device, CASES[name], torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_forward_equals_the_reference_in_other_dtypes(
    device: Any, name: str, dtype: torch.dtype
) -> None:
    check_forward(device, CASES[name], dtype)


def test_a_list_longer_than_its_capacity_gives_nan(device: Any) -> None:
    problem = make(CASES["plain"])
    longest = int(problem.plan.counts.max())
    cut = replace(problem.plan, blocks=problem.plan.blocks[:, :, : longest - 1].contiguous())
    out, lse = run(device, replace(problem, plan=cut))
    kept, kept_lse = run(device, problem)
    for i in range(cut.counts.shape[1]):
        queries = slice(int(cut.query_starts[i]), int(cut.query_starts[i + 1]))
        if int(cut.counts[0, i]) == longest:
            assert out[queries].isnan().all()
            assert lse[queries].isnan().all()
        else:
            assert torch.equal(out[queries], kept[queries])
            assert torch.equal(lse[queries], kept_lse[queries])


@pytest.mark.parametrize("name", ["plain", "decode"])
def test_two_runs_give_the_same_bits(device: Any, name: str) -> None:
    problem = make(CASES[name], torch.bfloat16)
    for first, second in zip(run(device, problem), run(device, problem), strict=True):
        assert torch.equal(first, second)


# ---- gradients -----------------------------------------------------------------------------------


def expected_gradients(p: Problem, grad_out: Tensor, grad_lse: Tensor) -> list[Tensor]:
    exact = p.exact()
    out, lse = reference.focused_attention(
        exact.q, exact.keys, exact.values, exact.table, exact.plan, exact.rules
    )
    lse = lse.masked_fill(lse.isinf(), 0.0)
    (out * grad_out.double()).sum().add((lse * grad_lse.double()).sum()).backward()
    leaves = [exact.q, exact.keys, exact.values, exact.table.bias]
    return [x.grad for x in leaves if x is not None]


def gradients(device: Any, p: Problem, grad_out: Tensor, grad_lse: Tensor) -> list[Tensor]:
    out, lse = run(device, p)
    tensors = [device.put(t) for t in (grad_out, grad_lse, out, lse, *p.tensors())]
    grads = device.ops.focused_attention_backward(*tensors, *p.numbers())
    return list(grads) if p.table.bias is not None else list(grads[:3])


def check_backward(device: Any, case: Case, dtype: torch.dtype) -> None:
    problem = make(case, dtype)
    grad_out = torch.randn_like(problem.q)
    grad_lse = torch.randn(problem.q.shape[:2])
    expected = expected_gradients(problem, grad_out, grad_lse)
    again = gradients(device, problem, grad_out, grad_lse)
    for name, ours, second, wanted in zip(
        ("q", "keys", "values", "bias"),
        gradients(device, problem, grad_out, grad_lse),
        again,
        expected,
        strict=False,
    ):
        assert_close(ours, wanted, kind="product", dtype=dtype, what=f"grad of {name}")
        assert torch.equal(ours, second), f"grad of {name} differs between two runs"


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_the_reference(device: Any, name: str) -> None:
    check_backward(device, CASES[name], torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["plain", "rope", "bias_for_each_head"])
def test_gradients_equal_the_reference_in_other_dtypes(
    device: Any, name: str, dtype: torch.dtype
) -> None:
    check_backward(device, CASES[name], dtype)


def test_autograd_reaches_every_input(wrapper_device: Any) -> None:
    problem = make(replace(CASES["bias_for_each_head"], sink=True, softcap=4.0), torch.float32)
    place = wrapper_device.put
    leaves = [
        place(t).requires_grad_()
        for t in (problem.q, problem.keys, problem.values, problem.table.bias, problem.rules.sink)
    ]
    table = EntryTable(place(problem.table.rows), place(problem.table.positions), leaves[3])
    plan = replace(
        problem.plan,
        query_starts=place(problem.plan.query_starts),
        counts=place(problem.plan.counts),
        blocks=place(problem.plan.blocks),
        query_positions=place(problem.plan.query_positions),
    )
    out, lse = door.focused_attention(
        *leaves[:3], table, plan, replace(problem.rules, sink=leaves[4])
    )
    (out.square().sum() + lse.sum()).backward()
    exact = problem.exact()
    out, lse = reference.focused_attention(
        exact.q, exact.keys, exact.values, exact.table, exact.plan, exact.rules
    )
    (out.square().sum() + lse.sum()).backward()
    wanted = [exact.q, exact.keys, exact.values, exact.table.bias, exact.rules.sink]
    for name, ours, x in zip(("q", "keys", "values", "bias", "sink"), leaves, wanted, strict=True):
        assert_close(ours.grad, x.grad, kind="product", what=f"grad of {name}")


# ---- plans and merging ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_plan_reads_what_may_be_seen(device: Any, name: str) -> None:
    case = CASES[name]
    problem = make(case)
    plan = problem.plan
    draw = torch.Generator().manual_seed(5)
    mask = torch.rand(2, plan.counts.shape[1], case.blocks, generator=draw) < 0.6
    ranges = torch.tensor([[0, case.blocks - i % 2] for i in range(plan.counts.shape[1])])
    ranges = ranges.to(torch.int32).reshape(-1, 2)
    for block_mask, block_ranges in [(None, None), (mask, ranges)]:
        tensors = (problem.table.rows, problem.table.positions, plan.query_starts)
        tensors = (*tensors, plan.query_positions, block_ranges, block_mask)
        counts, blocks = device.ops.make_read_plan(
            *(device.put(t) for t in tensors), case.window, case.blocks
        )
        made = ReadPlan(
            plan.query_starts, counts.cpu(), blocks.cpu(), plan.query_positions, window=case.window
        )
        wanted = ReadPlan(
            plan.query_starts,
            *reference.make_read_plan(
                problem.table,
                plan.query_starts,
                plan.query_positions,
                block_ranges,
                block_mask,
                case.window,
            ),
            plan.query_positions,
            window=case.window,
        )
        # A plan may list a block whose places all turn out hidden; what is read must be equal.
        read = reference.read_mask(problem.table, made)
        assert torch.equal(read, reference.read_mask(problem.table, wanted))
        full = set(made.blocks[made.blocks >= reference.FULL].tolist())
        assert full >= set(wanted.blocks[wanted.blocks >= reference.FULL].tolist())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("parts", "queries"), [(0, 2), (1, 3), (3, 5), (2, 0)])
def test_merging_equals_the_reference(
    device: Any, parts: int, queries: int, dtype: torch.dtype
) -> None:
    outs = torch.randn(parts, queries, 2, 64).to(dtype)
    lses = torch.randn(parts, queries, 2)
    if parts > 0 and queries > 0:
        lses[:, 0, 0] = -math.inf  # no part saw anything
        outs[:, 0, 0] = 0
        lses[0, 1, 1] = -math.inf
    out, lse = device.ops.merge_attention(device.put(outs), device.put(lses))
    expected, expected_lse = reference.merge_attention(outs.double(), lses.double())
    assert_close(out, expected, what="out")
    assert_close(lse, expected_lse, dtype=torch.float32, what="lse")


def test_attention_in_two_parts_merges_to_the_whole() -> None:
    problem = make(replace(CASES["plain"], density=1.0))
    whole = door.focused_attention(
        problem.q, problem.keys, problem.values, problem.table, problem.plan
    )
    parts = []
    for part in range(2):
        mask = torch.zeros(1, problem.plan.counts.shape[1], 7, dtype=torch.bool)
        mask[:, 1:, part::2] = True
        counts, blocks = reference.make_read_plan(
            problem.table, problem.plan.query_starts, problem.plan.query_positions, None, mask
        )
        plan = replace(problem.plan, counts=counts, blocks=blocks)
        parts.append(
            door.focused_attention(problem.q, problem.keys, problem.values, problem.table, plan)
        )
    outs, lses = (torch.stack(x) for x in zip(*parts, strict=True))
    out, lse = door.merge_attention(outs, lses)
    assert_close(out, whole[0].double(), kind="product")
    assert_close(lse, whole[1].double(), kind="product")


def test_merging_has_gradients() -> None:
    outs = torch.randn(3, 4, 2, 16, requires_grad=True)
    lses = torch.randn(3, 4, 2, requires_grad=True)
    out, lse = door.merge_attention(outs, lses)
    (out.square().sum() + lse.square().sum()).backward()
    exact = [x.detach().double().requires_grad_() for x in (outs, lses)]
    out, lse = reference.merge_attention(*exact)
    (out.square().sum() + lse.square().sum()).backward()
    assert_close(outs.grad, exact[0].grad, kind="product")
    assert_close(lses.grad, exact[1].grad, kind="product")


# ---- bad calls -----------------------------------------------------------------------------------


def bad(p: Problem, **changes: Any) -> Problem:
    for name, value in changes.items():
        if name in ("q", "keys", "values"):
            p = replace(p, **{name: value})
        elif name in ("rows", "positions", "bias"):
            p = replace(p, table=replace(p.table, **{name: value}))
        elif name in ("softcap", "sink", "rope"):
            p = replace(p, rules=replace(p.rules, **{name: value}))
        else:
            p = replace(p, plan=replace(p.plan, **{name: value}))
    return p


BAD_CALLS = [
    (lambda p: {"q": p.q[0]}, r"q must be \[T, Hq, E\], got \[4, 64\]"),
    (lambda p: {"q": p.q[..., :48].contiguous()}, "head width 64, 128 or 256, got 48"),
    (lambda p: {"q": p.q.double()}, "q must be float32, bfloat16 or float16, got float64"),
    (lambda p: {"q": p.q.transpose(0, 1).contiguous().transpose(0, 1)}, "q must be contiguous"),
    (lambda p: {"keys": p.keys[:, :, :3].contiguous()}, "power of two of rows a page, got 3"),
    (lambda p: {"keys": p.keys[:, [0, 1, 0]].contiguous()}, "divides q's 4, got 3"),
    (lambda p: {"values": p.values[:-1]}, r"values must have shape \[10, 2, 32, 64\], got \[9"),
    (lambda p: {"values": p.values.bfloat16()}, "values must be float32, got bfloat16"),
    (lambda p: {"rows": p.table.rows.long()}, "rows must be int32, got int64"),
    (lambda p: {"rows": p.table.rows + 400}, "rows must be below the 320 rows of the pools, got"),
    (lambda p: {"positions": p.table.positions[:-1]}, r"positions must have shape \[7, 32\]"),
    (lambda p: {"positions": None}, "positions must be given when query_positions are"),
    (lambda p: {"bias": torch.zeros(3, 7, 32)}, "bias must have a number of heads that divides"),
    (lambda p: {"sink": torch.zeros(3)}, r"sink must have shape \[4\], got \[3\]"),
    (lambda p: {"softcap": -1.0}, "softcap must be >= 0, got -1"),
    (lambda p: {"window": -1}, "window must be 0, or positive with positions, got -1"),
    (lambda p: {"query_tile": 129}, "query_tile must be 1 to 128, got 129"),
    (lambda p: {"query_tile": 8}, "query_starts must ascend by at most query_tile=8"),
    (lambda p: {"query_starts": p.plan.query_starts + 1}, "query_starts must go from 0 to 117"),
    (lambda p: {"counts": p.plan.counts[:, :-1].contiguous()}, "blocks must have shape"),
    (lambda p: {"blocks": p.plan.blocks + 7}, "blocks must be below 7, got"),
    (
        lambda p: {"rope": Rope(torch.zeros(7, 32, 48), torch.zeros(117, 48))},
        "multiple of 32 up to 64, got 48",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD_CALLS, ids=[m[:40] for _, m in BAD_CALLS])
def test_a_bad_call_says_what_is_wrong(change: Any, message: str) -> None:
    problem = make(CASES["plain"])
    p = bad(problem, **change(problem))
    with pytest.raises(InvalidArgument, match=message):
        door.focused_attention(p.q, p.keys, p.values, p.table, p.plan, p.rules)


# ---- torch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bias_for_each_head", "rope", "decode"])
def test_opcheck(wrapper_device: Any, name: str) -> None:
    problem = make(replace(CASES[name], blocks=min(CASES[name].blocks, 4)))
    tensors = [wrapper_device.put(t) for t in problem.tensors()]
    for i in (0, 1, 2, 5, 10):
        if tensors[i] is not None:
            tensors[i].requires_grad_()
    torch.library.opcheck(
        torch.ops.megacontext.focused_attention.default, (*tensors, *problem.numbers())
    )


def test_opcheck_of_plans_and_merging(wrapper_device: Any) -> None:
    problem = make(CASES["plain"])
    put = wrapper_device.put
    table, plan = problem.table, problem.plan
    torch.library.opcheck(
        torch.ops.megacontext.make_read_plan.default,
        (
            *(put(table.rows), put(table.positions), put(plan.query_starts)),
            *(put(plan.query_positions), None, None, 0, 7),
        ),
    )
    outs = put(torch.randn(2, 3, 2, 64)).requires_grad_()
    lses = put(torch.randn(2, 3, 2)).requires_grad_()
    torch.library.opcheck(torch.ops.megacontext.merge_attention.default, (outs, lses))


def test_compiles_without_graph_breaks(wrapper_device: Any) -> None:
    problem = make(CASES["rope"])
    put = wrapper_device.put
    rope = Rope(put(problem.rules.rope.keys), put(problem.rules.rope.queries))
    table = EntryTable(*(put(x) for x in (problem.table.rows, problem.table.positions)))
    starts, positions = put(problem.plan.query_starts), put(problem.plan.query_positions)

    def step(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        plan = door.make_read_plan(table, starts, positions, query_tile=64)
        return door.focused_attention(q, keys, values, table, plan, AttentionRules(rope=rope))[0]

    inputs = [put(x).requires_grad_() for x in (problem.q, problem.keys, problem.values)]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    out = compiled(*inputs)
    assert torch.equal(out, step(*inputs))
    out.sum().backward()
    assert inputs[1].grad.abs().sum() > 0
