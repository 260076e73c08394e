"""Focused attention against what PyTorch users have: SDPA over gathered blocks, and FlexAttention.

Useful work is counted: 4 * E operations for each query, head and place that the plan reads. On CUDA
the mask has 128-place grain, the best setting of FlexAttention; our lists name four blocks of 32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.harness import Bench, Call, Case
from megacontext_ext import ops
from megacontext_ext.entry_table import PLAIN_RULES, AttentionRules, EntryTable, ReadPlan, Rope

TESTS = "tests/kernels/test_focused_attention.py"
PLACES = 32
# Absolute goals on an H100 (bf16, head width 128, 16k tokens, 10-25% of blocks), in FLOP/s.
FORWARD_GOAL, BACKWARD_GOAL = 400e12, 300e12
CPU_BACKWARD_GOAL = 35e9
DECODE_BANDWIDTH_GOAL = 0.85  # of the copy rate measured in the same run
PLAN_GOAL_SECONDS = 30e-6


@dataclass(frozen=True)
class Problem:
    """Queries of one sequence over `blocks` blocks, each KV head with a selection of its own."""

    queries: int
    blocks: int
    query_heads: int
    kv_heads: int
    width: int
    density: float
    query_tile: int
    dtype: torch.dtype
    grain: int = 1  # blocks that are selected together

    @property
    def params(self) -> dict[str, Any]:
        return {
            "T": self.queries,
            "N": self.blocks,
            "H": f"{self.query_heads}/{self.kv_heads}",
            "E": self.width,
            "density": self.density,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    @property
    def read_blocks(self) -> int:
        units = self.blocks // self.grain
        return max(1, round(units * self.density)) * self.grain

    @property
    def flops(self) -> float:
        return 4.0 * self.width * self.queries * self.read_blocks * PLACES * self.query_heads


@dataclass(frozen=True)
class Inputs:
    q: Tensor
    keys: Tensor
    values: Tensor
    table: EntryTable
    plan: ReadPlan
    unit_mask: Tensor  # [Hkv, M, N / grain]


def _inputs(p: Problem, device: str) -> Inputs:
    draw = torch.Generator(device="cpu").manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(device, p.dtype)

    query_blocks = -(-p.queries // p.query_tile)
    noise = torch.rand(p.kv_heads, query_blocks, p.blocks // p.grain, generator=draw)
    chosen = noise.argsort(-1)[..., : p.read_blocks // p.grain]
    unit_mask = torch.zeros_like(noise, dtype=torch.bool).scatter_(-1, chosen, True).to(device)
    # Pages lie in the pool in another order than in the context, as after real paging.
    table = EntryTable.from_pages(torch.randperm(p.blocks, generator=draw).to(device))
    plan = ops.make_read_plan(
        table,
        ops.dense_query_starts([p.queries], p.query_tile, device),
        block_mask=unit_mask.repeat_interleave(p.grain, -1),
        query_tile=p.query_tile,
    )
    return Inputs(
        q=normal(p.queries, p.query_heads, p.width),
        keys=normal(p.blocks, p.kv_heads, PLACES, p.width),
        values=normal(p.blocks, p.kv_heads, PLACES, p.width),
        table=table,
        plan=plan,
        unit_mask=unit_mask,
    )


def _contiguous(pool: Tensor, table: EntryTable) -> Tensor:
    """[1, Hkv, N * 32, E]: what SDPA wants; made outside the timing."""
    pages = table.rows[:, 0] // PLACES
    return pool[pages.long()].transpose(0, 1).flatten(1, 2)[None].contiguous()


def _ours(x: Inputs, rules: AttentionRules = PLAIN_RULES) -> Call:
    return lambda: ops.focused_attention(x.q, x.keys, x.values, x.table, x.plan, rules)[0]


def _grouped(device: str, keys: Tensor, values: Tensor, group: int) -> tuple[Tensor, Tensor, bool]:
    """Keys, values and enable_gqa as SDPA is fastest: on CPU enable_gqa leaves the fused kernel."""
    if group == 1 or device == "cuda":
        return keys, values, group > 1
    return keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1), False


def _sdpa(x: Inputs, p: Problem) -> Call:
    q = x.q.transpose(0, 1)[None].contiguous()
    pools = _contiguous(x.keys, x.table), _contiguous(x.values, x.table)
    keys, values, gqa = _grouped(x.q.device.type, *pools, p.query_heads // p.kv_heads)
    return lambda: scaled_dot_product_attention(q, keys, values, enable_gqa=gqa)


def _gather_sdpa(x: Inputs, p: Problem) -> Call:
    """One query block: gathers the chosen blocks of each head, then SDPA."""
    pages = x.table.rows[:, 0] // PLACES
    chosen = torch.stack([pages[mask[0].repeat_interleave(p.grain)] for mask in x.unit_mask]).long()
    heads = torch.arange(p.kv_heads, device=x.q.device)[:, None]
    q = x.q.transpose(0, 1)[None].contiguous()

    def call() -> Tensor:
        gathered = (pool[chosen, heads].flatten(1, 2)[None] for pool in (x.keys, x.values))
        group = p.query_heads // p.kv_heads
        keys, values, gqa = _grouped(x.q.device.type, *gathered, group)
        return scaled_dot_product_attention(q, keys, values, enable_gqa=gqa)

    return call


def _flex(x: Inputs, p: Problem, leaves: bool = False) -> Any:
    """Compiled FlexAttention over the same mask, keys and values contiguous beforehand."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    torch._dynamo.reset()  # a second shape would otherwise compile a slower dynamic kernel
    compiled = torch.compile(flex_attention, dynamic=False)
    group = p.query_heads // p.kv_heads
    mask = x.unit_mask.repeat_interleave(group, 0)[None]
    counts = mask.sum(-1, dtype=torch.int32)
    order = mask.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    none = torch.zeros_like(counts)
    block_mask = BlockMask.from_kv_blocks(
        *(none, torch.zeros_like(order), counts, order),
        BLOCK_SIZE=(p.query_tile, p.grain * PLACES),
        seq_lengths=(p.queries, p.blocks * PLACES),
    )
    q = x.q.transpose(0, 1)[None].contiguous().requires_grad_(leaves)
    keys = _contiguous(x.keys, x.table).requires_grad_(leaves)
    values = _contiguous(x.values, x.table).requires_grad_(leaves)

    def call() -> Tensor:
        return compiled(q, keys, values, block_mask=block_mask, enable_gqa=group > 1)

    call()
    return (call, (q, keys, values)) if leaves else call


def _try_flex(bench: Bench, x: Inputs, p: Problem, leaves: bool = False) -> Any:
    """FlexAttention where it compiles; otherwise a line says that this peer is missing and why."""
    if bench.smoke:
        return None
    try:
        return _flex(x, p, leaves)
    except Exception as error:  # the compiler of a peer may fail in any way
        reason = str(error).strip().splitlines()
        print(f"    peer FlexAttention is MISSING here: {type(error).__name__}: {reason[:1]}")
        return None


def _forward(bench: Bench, p: Problem, name: str, goals: dict[str, float]) -> Inputs:
    x = _inputs(p, bench.device)
    peers: dict[str, Call] = {}
    if p.density == 1:
        peers["SDPA"] = _sdpa(x, p)
    elif p.queries <= p.query_tile:
        peers["gather and SDPA"] = _gather_sdpa(x, p)
        if bench.device == "cpu":
            peers["SDPA dense"] = _sdpa(x, p)
    else:
        peers["SDPA dense"] = _sdpa(x, p)
    flex = _try_flex(bench, x, p)
    if flex is not None:
        peers["FlexAttention"] = flex
    case = Case(name, p.params, flops=p.flops, dtype=p.params["dtype"])
    measured = bench.compare(case, _ours(x), peers, None if bench.smoke else goals)
    if bench.device == "cuda" and not bench.smoke and p.density < 1:
        rate = p.flops / measured["megacontext"].median
        bench.record_ratio(f"{name}: {rate / 1e12:.0f} TFLOP/s of 400", rate / FORWARD_GOAL, 1.0)
    return x


def _backward(bench: Bench, p: Problem, name: str) -> None:
    x = _inputs(p, bench.device)
    leaves = [t.requires_grad_() for t in (x.q, x.keys, x.values)]
    out = ops.focused_attention(*leaves, x.table, x.plan)[0]
    grad = torch.randn_like(out)

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, leaves, grad, retain_graph=True)

    peers: dict[str, Call] = {}
    if bench.device == "cuda":  # FlexAttention has no backward on CPU
        flex = _try_flex(bench, x, p, leaves=True)
        if flex is not None:
            call, flex_leaves = flex
            flex_out = call()
            flex_grad = torch.randn_like(flex_out)
            peers["FlexAttention"] = lambda: torch.autograd.grad(
                flex_out, flex_leaves, flex_grad, retain_graph=True
            )
    case = Case(name, p.params, flops=2.5 * p.flops, dtype=p.params["dtype"])
    measured = bench.compare(case, ours, peers, {"FlexAttention": 1.3})
    if not bench.smoke:
        goal = BACKWARD_GOAL if bench.device == "cuda" else CPU_BACKWARD_GOAL
        rate = 2.5 * p.flops / measured["megacontext"].median
        bench.record_ratio(f"{name}: {rate / 1e9:.0f} GFLOP/s of {goal / 1e9:.0f}", rate / goal, 1)


def _decode(bench: Bench, sequences: int, blocks: int, heads: tuple[int, int], width: int) -> None:
    """One query a sequence, each over `blocks` blocks of its own."""
    dtype, device = torch.bfloat16, bench.device
    query_heads, kv_heads = heads
    total = sequences * blocks
    q = torch.randn(sequences, query_heads, width, device=device).to(dtype)
    keys = torch.randn(total, kv_heads, PLACES, width, device=device, dtype=dtype)
    values = torch.randn(total, kv_heads, PLACES, width, device=device, dtype=dtype)
    table = EntryTable.from_pages(torch.randperm(total, device=device))
    starts = torch.arange(sequences + 1, dtype=torch.int32, device=device)
    ranges = torch.stack((starts[:-1] * blocks, starts[1:] * blocks), dim=1).contiguous()
    plan = ops.make_read_plan(table, starts, block_ranges=ranges, query_tile=1, capacity=blocks)
    pages = (table.rows[:, 0] // PLACES).long().view(sequences, blocks)
    dense = [
        pool[pages].transpose(2, 3).flatten(1, 2).transpose(1, 2).contiguous()
        for pool in (keys, values)
    ]
    keys_d, values_d, gqa = _grouped(device, *dense, query_heads // kv_heads)
    params = {"B": sequences, "W": blocks * PLACES, "H": f"{query_heads}/{kv_heads}", "E": width}
    moved = 2.0 * total * PLACES * kv_heads * width * 2
    case = Case(f"decode B={sequences}", {**params, "dtype": "bfloat16"}, moved_bytes=moved)
    rules = PLAIN_RULES
    measured = bench.compare(
        case,
        lambda: ops.focused_attention(q, keys, values, table, plan, rules)[0],
        {
            "SDPA, contiguous": lambda: scaled_dot_product_attention(
                q[:, :, None], keys_d, values_d, enable_gqa=gqa
            )
        },
    )
    if device == "cuda" and not bench.smoke:
        share = bench.ceilings.share_of_copy(moved / measured["megacontext"].median)
        bench.record_ratio(f"{case.name}: share of copy bandwidth", share, DECODE_BANDWIDTH_GOAL)


def _features(bench: Bench, p: Problem) -> None:
    """What bias and Gaussian rotary tables add to a forward; the goal is 5% at most."""
    x = _inputs(p, bench.device)
    table = x.table
    bias = torch.randn(p.kv_heads, p.blocks, PLACES, device=bench.device)
    positions = torch.arange(p.blocks * PLACES, device=bench.device).view(-1, PLACES)
    frequencies = 10000.0 ** -torch.linspace(0, 1, p.width // 2, device=bench.device)
    query_positions = torch.arange(p.queries, device=bench.device)
    rope = Rope.gaussian(frequencies, positions, query_positions, torch.ones_like(positions))
    case = Case("with bias and rope", p.params, flops=p.flops, dtype=p.params["dtype"])
    biased = EntryTable(table.rows, table.positions, bias)
    rules = AttentionRules(rope=rope)
    bench.compare(
        case,
        lambda: ops.focused_attention(x.q, x.keys, x.values, biased, x.plan, rules)[0],
        {
            "plain": _ours(x),
            "with bias": _ours(Inputs(x.q, x.keys, x.values, biased, x.plan, bias)),
        },
        None if bench.smoke else {"plain": 1 / 1.05},
    )


def _plan(bench: Bench, p: Problem) -> None:
    x = _inputs(p, bench.device)
    mask = x.unit_mask.repeat_interleave(p.grain, -1)
    starts = x.plan.query_starts
    positions = torch.arange(p.queries, dtype=torch.int32, device=bench.device)
    place_positions = torch.arange(p.blocks * PLACES, dtype=torch.int32, device=bench.device)
    table = EntryTable(x.table.rows, place_positions.view(-1, PLACES))
    measured = bench.compare(
        Case("read plan, causal, from a mask", p.params),
        lambda: ops.make_read_plan(table, starts, positions, block_mask=mask).blocks,
    )
    if bench.device == "cuda" and not bench.smoke:
        seconds = measured["megacontext"].median
        bench.record_ratio("read plan: 30 us over ours", PLAN_GOAL_SECONDS / seconds, 1.0)


def _run_cpu(bench: Bench) -> None:
    small = bench.smoke
    for dtype, goals in (
        (torch.float32, {"gather and SDPA": 3.0, "SDPA": 0.9, "FlexAttention": 1.3}),
        (torch.bfloat16, {"gather and SDPA": 6.0, "SDPA": 0.9}),
    ):
        tag = str(dtype).removeprefix("torch.")
        heads, blocks = (2, 8) if small else (16, 256)
        _forward(
            bench, Problem(32, blocks, heads, heads, 64, 0.125, 32, dtype), f"1/8 {tag}", goals
        )
        _forward(
            bench, Problem(32, blocks, heads, heads, 64, 1.0, 32, dtype), f"dense {tag}", goals
        )
        queries, blocks = (64, 8) if small else (1024, 128)
        prefill = Problem(queries, blocks, 8, 2, 64, 0.125, 64, dtype)
        _forward(bench, prefill, f"prefill 1/8 {tag}", goals)
        _backward(bench, prefill, f"backward 1/8 {tag}")
        _features(bench, prefill)
    _decode(bench, 1, 4 if small else 256, (8, 2), 64)
    _plan(bench, prefill)


def _run_cuda(bench: Bench) -> None:
    dtype, small = torch.bfloat16, bench.smoke
    queries, heads = (256, 2) if small else (16384, 16)
    blocks = queries // PLACES
    for density in (0.125, 0.25):
        p = Problem(queries, blocks, heads, heads, 128, density, 128, dtype, grain=4)
        _forward(bench, p, f"prefill {density}", {"FlexAttention": 1.25})
        _backward(bench, p, f"backward {density}")
    p = Problem(queries, blocks, heads, heads, 128, 0.125, 128, dtype, grain=4)
    _features(bench, p)
    _forward(
        bench,
        Problem(queries // 2, blocks // 2, heads, heads, 128, 1.0, 128, dtype, grain=4),
        "dense",
        {"SDPA": 0.6},
    )
    _forward(
        bench,
        Problem(queries, blocks, heads, heads // 2, 64, 0.125, 128, dtype, grain=4),
        "prefill width 64",
        {"FlexAttention": 1.25},
    )
    for sequences in (1, 8, 32):
        _decode(bench, sequences, 4 if small else 256, (32, 8), 128)
    _plan(bench, p)


def run(bench: Bench) -> None:
    if bench.device == "cuda":
        _run_cuda(bench)
    else:
        _run_cpu(bench)
    _checked_against_sdpa(bench)


def _checked_against_sdpa(bench: Bench) -> None:
    """The peer computes the same: a benchmark of two different things would say nothing."""
    p = Problem(64, 8, 4, 4, 64, 1.0, 64, torch.float32)
    x = _inputs(p, bench.device)
    ours, theirs = _ours(x)(), _sdpa(x, p)()[0].transpose(0, 1)
    error = (ours - theirs).abs().max().item()
    if not math.isfinite(error) or error > 1e-3:
        raise AssertionError(f"focused attention and SDPA differ by {error}")
