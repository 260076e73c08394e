"""topk, score_topk, score_topk_at and score_beam against their reference, on every device."""

from __future__ import annotations

import math

import pytest
import torch

from megacontext_ext import errors
from megacontext_ext import ops as ours
from megacontext_ext.reference import score_topk as ref
from tests.tolerances import assert_close

# lists, scores, k: empty, one, primes, a vector's width +-1, one block of CUDA threads +-1.
SIZES = [
    (1, 0, 0),
    (0, 5, 2),
    (3, 1, 1),
    (1, 7, 0),
    (2, 15, 15),
    (2, 17, 3),
    (1, 63, 5),
    (3, 65, 64),
    (1, 257, 100),
    (2, 1021, 37),
    (1, 4097, 600),
]
KINDS = [
    "normal",
    "rising",
    "falling",
    "constant",
    "nan",
    "few_values",
    "zeros",
    "specials",
    "close",
]


def scores_of(kind: str, lists: int, count: int) -> torch.Tensor:
    noise = torch.randn(lists, count)
    ramp = torch.arange(count, dtype=torch.float32).expand(lists, count).contiguous()
    special = torch.where(noise > 1, math.inf, torch.where(noise < -0.5, -math.inf, noise.round()))
    return {
        "normal": noise,
        "rising": ramp,
        "falling": -ramp,
        "constant": torch.full_like(ramp, 1.5),
        "nan": torch.full_like(ramp, math.nan),
        "few_values": torch.randint(-3, 4, (lists, count)).float(),
        "zeros": torch.where(noise > 0, 0.0, -0.0),
        "specials": special.masked_fill(noise.abs() < 0.3, math.nan),
        "close": 1.0 + torch.randint(0, 50, (lists, count)) * 2.0**-23,
    }[kind]


def expect_same(got, want):
    assert torch.equal(got[1].cpu(), want[1].cpu())
    assert torch.equal(got[0].cpu(), want[0].float().cpu())


def test_reference_is_what_sorting_by_hand_gives():
    scores = [0.5, math.nan, 2.0, -math.inf, 2.0, -0.0, 0.0]

    def rank(position):
        value = -math.inf if math.isnan(scores[position]) else scores[position]
        return (-value, position)

    by_hand = sorted(range(6), key=rank)
    assert by_hand == [2, 4, 0, 5, 1, 3]
    allowed = torch.arange(7) < 6
    values, indices = ref.topk(torch.tensor([scores]), 7, allowed)
    assert indices[0].tolist() == [*by_hand, -1]
    assert values[0].tolist() == [2.0, 2.0, 0.5, 0.0, -math.inf, -math.inf, -math.inf]
    queries = torch.tensor([[1.0, 2.0]])
    rows = torch.tensor([[1, 1], [-3, 5], [4, 4]], dtype=torch.int8)
    values, indices = ref.score_topk(queries, rows, 2, torch.tensor([1.0, 2.0, 0.5]))
    assert indices.tolist() == [[1, 2]]
    assert values.tolist() == [[14.0, 6.0]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_topk_matches_the_reference(device, size, kind):
    lists, count, k = size
    scores = scores_of(kind, lists, count)
    expect_same(device.ops.topk(device.put(scores), k), ref.topk(scores, k))


@pytest.mark.parametrize("kind", ["normal", "specials", "constant"])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.9])
@pytest.mark.parametrize("one_mask", [True, False])
def test_topk_never_returns_a_masked_position(device, kind, share, one_mask):
    scores = scores_of(kind, 3, 517)
    mask = torch.rand(517 if one_mask else (3, 517)) < share
    got = device.ops.topk(device.put(scores), 40, device.put(mask))
    expect_same(got, ref.topk(scores, 40, mask))


@pytest.mark.parametrize("kind", KINDS)
def test_topk_of_a_long_list_matches_the_reference(device, kind):
    count, k = (20_007, 700) if device.name == "cuda_emu" else (300_007, 700)
    scores = scores_of(kind, 1, count)
    expect_same(device.ops.topk(device.put(scores), k), ref.topk(scores, k))
    mask = torch.arange(count) % 3 == 0
    got = device.ops.topk(device.put(scores), k, device.put(mask))
    expect_same(got, ref.topk(scores, k, mask))


@pytest.mark.parametrize("kind", ["normal", "close"])
def test_topk_of_more_than_one_sorting_tile_matches_the_reference(device, kind):
    scores = scores_of(kind, 2, 20_007)
    expect_same(device.ops.topk(device.put(scores), 16_500), ref.topk(scores, 16_500))


def test_topk_survives_a_sample_that_misleads(cpu_level):
    """The best sit in one place that a sample may miss, or that may fill the whole sample."""
    for position in (0, 150_000, 299_000):
        scores = torch.zeros(1, 300_007)
        scores[0, position : position + 1000] = torch.rand(1000) + 1
        expect_same(ours.topk(scores, 900), ref.topk(scores, 900))
        expect_same(ours.topk(-scores, 900), ref.topk(-scores, 900))


ROW_TYPES = [torch.float32, torch.bfloat16, torch.int8]
# queries, rows, width, k
SCORED_SIZES = [
    (1, 1, 1, 1),
    (2, 37, 7, 5),
    (3, 131, 64, 20),
    (9, 70, 33, 70),
    (5, 0, 8, 0),
    (0, 5, 8, 2),
    (1, 300, 160, 31),
    (2, 12, 0, 3),
    (9, 70, 192, 70),  # from here on several queries share a row on the tensor cores
    (17, 45, 64, 9),
    (2, 700, 320, 15),
]


def whole_numbers(queries: int, rows: int, width: int, dtype: torch.dtype):
    """Small whole numbers: every sum is exact in float32, so that the order can be compared."""
    scales = torch.randint(1, 4, (rows,)).float() if dtype == torch.int8 else None
    return (
        torch.randint(-4, 5, (queries, width)).float(),
        torch.randint(-4, 5, (rows, width)).to(dtype),
        scales,
    )


@pytest.mark.parametrize("dtype", ROW_TYPES, ids=str)
@pytest.mark.parametrize("size", SCORED_SIZES, ids=str)
def test_score_topk_matches_the_reference(device, size, dtype):
    count, row_count, width, k = size
    queries, rows, scales = whole_numbers(count, row_count, width, dtype)
    for typed in (queries, queries.bfloat16()):
        got = device.ops.score_topk(device.put(typed), device.put(rows), k, device.put(scales))
        expect_same(got, ref.score_topk(queries, rows, k, scales))


@pytest.mark.parametrize("dtype", ROW_TYPES, ids=str)
@pytest.mark.parametrize("width", [24, 128])
def test_score_topk_honours_masks(device, dtype, width):
    queries, rows, scales = whole_numbers(5, 203, width, dtype)
    put = [device.put(t) for t in (queries, rows)]
    for mask in (torch.rand(203) < 0.3, torch.rand(5, 203) < 0.1):
        got = device.ops.score_topk(*put, 33, device.put(scales), device.put(mask))
        expect_same(got, ref.score_topk(queries, rows, 33, scales, mask))


@pytest.mark.parametrize("dtype", ROW_TYPES, ids=str)
@pytest.mark.parametrize("width", [5, 64, 96])
def test_scores_are_near_the_float64_reference(device, dtype, width):
    queries = torch.randn(3, width)
    rows = (torch.randn(200, width) * 20).to(dtype)
    scales = torch.rand(200) if dtype == torch.int8 else None
    values, indices = device.ops.score_topk(
        device.put(queries), device.put(rows), 25, device.put(scales)
    )
    exact = ref.score_topk(queries.double(), rows, 25, scales)[0]
    assert_close(values, exact, kind="product")
    chosen = rows.double()[indices.cpu()]
    again = (queries.double().unsqueeze(1) * chosen).sum(-1)
    if scales is not None:
        again = again * scales.double()[indices.cpu()]
    assert_close(values, again, kind="product")


@pytest.mark.parametrize("where", ["query", "rows", "beyond bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_infinities_score_as_a_plain_sum_would(device, dtype, where):
    """Several queries share a row in three bf16 parts on CUDA; inf - inf must not get in."""
    queries, rows, _ = whole_numbers(3, 130, 64, torch.float32)
    if where == "query":
        queries[1, 5], queries[2, 9] = math.inf, -math.inf
        rows[:40, [5, 9]] = 0  # inf * 0 is NaN, which counts as -inf
    elif where == "rows":
        rows[7, 3], rows[50, 4] = math.inf, -math.inf
        queries[:, 3:5] = 2.0
    else:  # rounds to infinity in bfloat16
        queries[0, 0] = 3.4e38
        rows[:, 0] = torch.randint(-1, 2, (130,)) / 4
    rows = rows.to(dtype)
    got = device.ops.score_topk(device.put(queries), device.put(rows), 130)
    exact = (queries.double() @ rows.double().mT).float()
    expect_same(got, ref.topk(exact, 130))


@pytest.mark.parametrize("dtype", ROW_TYPES, ids=str)
def test_score_topk_at_matches_the_reference(device, dtype):
    queries, rows, scales = whole_numbers(4, 90, 48, dtype)
    candidates = torch.randint(-20, 110, (4, 77))
    got = device.ops.score_topk_at(
        device.put(queries), device.put(rows), device.put(candidates), 70, device.put(scales)
    )
    expect_same(got, ref.score_topk_at(queries, rows, candidates, 70, scales))
    assert (got[1] == -1).any(), "some candidates are not rows, so 70 cannot be found"


def test_score_topk_at_of_no_rows_finds_nothing(device):
    candidates = device.put(torch.zeros(2, 4, dtype=torch.int64))
    got = device.ops.score_topk_at(
        device.put(torch.ones(2, 8)), device.put(torch.ones(0, 8)), candidates, 3
    )
    assert (got[1] == -1).all()
    assert (got[0] == -math.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_score_beam_matches_the_reference(wrapper_device, dtype):
    lods, scales = [], []
    for count in (3, 12, 45, 170):
        queries, rows, scale = whole_numbers(2, count, 16, dtype)
        lods.append(rows)
        scales.append(scale)
    scales = scales if dtype == torch.int8 else None
    put = wrapper_device.put
    on_device = None if scales is None else [put(scale) for scale in scales]
    got = ours.score_beam(put(queries), [put(r) for r in lods], 9, 5, scales=on_device, fan_out=4)
    want = ref.score_beam(queries, lods, 9, 5, scales=scales, fan_out=4)
    for got_lod, want_lod in zip(got, want, strict=True):
        expect_same(got_lod, want_lod)


def test_a_beam_as_wide_as_the_tree_finds_the_best(wrapper_device):
    queries, fine, _ = whole_numbers(2, 200, 16, torch.float32)
    coarse = torch.zeros(7, 16)
    put = wrapper_device.put
    beam = ours.score_beam(put(queries), [put(coarse), put(fine)], 11, 7)
    expect_same(beam[-1], ref.score_topk(queries, fine, 11))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("named", [False, True])
def test_gradients_match_the_reference(wrapper_device, dtype, named):
    queries, rows, _ = whole_numbers(3, 40, 16, torch.float32)
    candidates = torch.randint(-5, 45, (3, 20))
    grad = torch.randn(3, 6)
    exact = [queries.double().requires_grad_(), rows.double().requires_grad_()]
    mine = [wrapper_device.put(t.to(dtype)).requires_grad_() for t in (queries, rows)]
    if named:
        want = ref.score_topk_at(*exact, candidates, 6)[0]
        got = ours.score_topk_at(*mine, wrapper_device.put(candidates), 6)[0]
    else:
        want, got = ref.score_topk(*exact, 6)[0], ours.score_topk(*mine, 6)[0]
    want.backward(grad.double())
    got.backward(wrapper_device.put(grad))
    for name, leaf, reference in zip(("queries", "rows"), mine, exact, strict=True):
        assert_close(leaf.grad, reference.grad, kind="product", what=f"gradient of {name}")


def test_gradients_reach_scores_and_queries_of_int8_rows(wrapper_device):
    scores = torch.randn(2, 50)
    mine = wrapper_device.put(scores).requires_grad_()
    exact = scores.double().requires_grad_()
    mask = torch.arange(50) < 4
    ours.topk(mine, 6, wrapper_device.put(mask))[0].nan_to_num(0, 0, 0).square().sum().backward()
    ref.topk(exact, 6, mask)[0].nan_to_num(0, 0, 0).square().sum().backward()
    assert_close(mine.grad, exact.grad)
    queries, rows, scales = whole_numbers(2, 30, 8, torch.int8)
    mine = wrapper_device.put(queries).requires_grad_()
    exact = queries.double().requires_grad_()
    put = wrapper_device.put
    ours.score_topk(mine, put(rows), 5, scales=put(scales))[0].sum().backward()
    ref.score_topk(exact, rows, 5, scales)[0].sum().backward()
    assert_close(mine.grad, exact.grad)


SCORES, QUERIES, ROWS = torch.zeros(2, 9), torch.zeros(2, 4), torch.zeros(9, 4)
WORDS = ROWS.to(torch.int8)
BAD_CALLS = {
    "[topk] scores must be float32, got float64": lambda: ours.topk(SCORES.double(), 1),
    "[topk] k must be between 0 and 9, got 10": lambda: ours.topk(SCORES, 10),
    "[topk] k must be between 0 and 9, got -1": lambda: ours.topk(SCORES, -1),
    "[topk] scores must be contiguous": lambda: ours.topk(torch.zeros(9, 2).t(), 1),
    "[topk] mask must be [9] or [2, 9], got [8]": lambda: ours.topk(SCORES, 1, torch.zeros(8) > 0),
    "[topk] mask must be bool, got int64": lambda: ours.topk(SCORES, 1, torch.zeros(9).long()),
    "[score_topk] queries must be float32, got float64": lambda: ours.score_topk(
        QUERIES.double(), ROWS, 1
    ),
    "[score_topk] rows must be bfloat16, int8 or float32, got float16": lambda: ours.score_topk(
        QUERIES, ROWS.half(), 1
    ),
    "[score_topk] rows must be [N, 4] as queries are [2, 4], got [9, 5]": lambda: ours.score_topk(
        QUERIES, torch.zeros(9, 5), 1
    ),
    "[score_topk] scales must be given with int8 rows": lambda: ours.score_topk(QUERIES, WORDS, 1),
    "[score_topk] scales must not be given with float32 rows": lambda: ours.score_topk(
        QUERIES, ROWS, 1, scales=torch.ones(9)
    ),
    "[score_topk] scales must be [9], got [8]": lambda: ours.score_topk(
        QUERIES, WORDS, 1, scales=torch.ones(8)
    ),
    "[score_topk_at] candidates must be [2, C], got [3, 4]": lambda: ours.score_topk_at(
        QUERIES, ROWS, torch.zeros(3, 4).long(), 1
    ),
    "[score_topk_at] k must be between 0 and 4, got 5": lambda: ours.score_topk_at(
        QUERIES, ROWS, torch.zeros(2, 4).long(), 5
    ),
    "[score_beam] queries must be [Q, D], got (4,)": lambda: ours.score_beam(
        QUERIES[0], [ROWS], 1, 1
    ),
}


@pytest.mark.parametrize("message", BAD_CALLS, ids=str)
def test_bad_calls_say_what_is_wrong(message):
    with pytest.raises(errors.InvalidArgument) as caught:
        BAD_CALLS[message]()
    assert message in str(caught.value)


def test_two_runs_and_any_number_of_threads_give_the_same_bits(device):
    count = 9_001 if device.name == "cuda_emu" else 700_000
    scores = device.put(torch.randint(0, 500, (1, count)).float())
    queries, rows = device.put(torch.randn(3, 40)), device.put(torch.randn(5_003, 40).bfloat16())
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((*device.ops.topk(scores, 300), *device.ops.score_topk(queries, rows, 50)))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_vector_is_a_list_of_its_own(device):
    scores, queries, rows = torch.randn(40), torch.randn(8), torch.randn(30, 8)
    values, indices = device.ops.topk(device.put(scores), 4)
    assert values.shape == indices.shape == (4,)
    expect_same((values, indices), [t[0] for t in ref.topk(scores[None], 4)])
    assert device.ops.score_topk(device.put(queries), device.put(rows), 3)[0].shape == (3,)


def test_out_variant_writes_the_same_bits(device):
    scores = device.put(torch.randn(3, 100))
    values, indices = device.put(torch.full((3, 7), math.nan)), device.put(torch.full((3, 7), -5))
    mask = device.put(torch.rand(100) < 0.5)
    device.ops.topk_out(scores, mask, values, indices)
    expect_same((values, indices), device.ops.topk(scores, 7, mask))


def test_opcheck(wrapper_device):
    torch.use_deterministic_algorithms(False)
    put, ops, check = wrapper_device.put, torch.ops.megacontext, torch.library.opcheck
    queries, rows, scales = whole_numbers(2, 30, 8, torch.int8)
    mask = put(torch.arange(30) > 3)
    check(ops.topk.default, (put(torch.randn(2, 30)).requires_grad_(), 4, mask))
    check(ops.score_topk.default, (put(queries), put(rows), 4, put(scales), mask))
    leaves = [put(queries).requires_grad_(), put(rows.float()).requires_grad_()]
    check(ops.score_topk.default, (*leaves, 4))
    candidates = put(torch.randint(-2, 32, (2, 9)))
    check(ops.score_topk_at.default, (*leaves, candidates, 4))


def test_compiles_without_a_graph_break(wrapper_device):
    queries, rows, _ = whole_numbers(2, 64, 8, torch.float32)
    leaves = [wrapper_device.put(t).requires_grad_() for t in (queries, rows)]
    coarse = wrapper_device.put(torch.randn(2, 8))

    def search(queries, rows):
        beam = ours.score_beam(queries, [coarse, rows], 5, 1)
        best = ours.topk(beam[-1][0] * 2, 3)
        return best[0] + ours.score_topk(queries, rows, 3)[0], beam[-1][1]

    compiled = torch.compile(search, fullgraph=True, backend="aot_eager")
    got, want = compiled(*leaves), search(*leaves)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    for a, b in zip(
        torch.autograd.grad(got[0].sum(), leaves),
        torch.autograd.grad(want[0].sum(), leaves),
        strict=True,
    ):
        assert torch.equal(a, b)
