"""page_gather and page_scatter against their reference, on every device."""

from __future__ import annotations

import mmap

import pytest
import torch

from megacontext_ext import errors
from megacontext_ext.ops import page_gather, page_gather_out, page_scatter
from megacontext_ext.reference import page_gather as ref
from tests.tolerances import assert_close

PLAIN = [torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn, torch.int64]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
CODES = [torch.int8, torch.float8_e4m3fn]
# Pool pages, rows a page, width, pages moved: empty, one, odd bytes, vector widths +-1, real.
SIZES = [
    (0, 1, 4, 3),
    (4, 2, 0, 2),
    (3, 1, 8, 0),
    (1, 1, 1, 1),
    (7, 3, 5, 11),
    (9, 1, 15, 5),
    (9, 2, 17, 9),
    (5, 4, 128, 6),
    (3, 1, 4104, 2),
]


def make_index(pages: int, count: int, distinct: bool = False) -> torch.Tensor:
    """Page numbers with -1 among them; only -1 where the pool is empty."""
    if pages == 0:
        return torch.full((count,), -1)
    index = torch.randperm(pages)[:count] if distinct else torch.randint(0, pages, (count,))
    index = torch.cat((index, torch.full((max(0, count - len(index)),), -1)))
    index[torch.rand(count) < 0.2] = -1
    return index


def make_values(shape, dtype) -> torch.Tensor:
    if dtype in (torch.int8, torch.int64):
        return torch.randint(-127, 128, shape).to(dtype)
    return (torch.randn(shape) * 20).to(dtype)


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = a.cpu().contiguous(), b.cpu().contiguous()
    return a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def test_reference_is_what_the_formula_says():
    pool = torch.tensor([[[1, -2]], [[3, 4]]], dtype=torch.int8)
    scales = torch.tensor([[0.5], [2.0]])
    gathered = ref.page_gather(pool, torch.tensor([1, -1, 0]), scales, torch.float32)
    assert gathered.tolist() == [[[6.0, 8.0]], [[0.0, 0.0]], [[0.5, -1.0]]]
    codes, row_scales = ref.encode(torch.tensor([[[254.0, -127.0, 1.0]]]), torch.int8)
    assert codes.tolist() == [[[127, -64, 0]]]
    assert row_scales.tolist() == [[2.0]]


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gather_copies_pages(device, size, dtype):
    pages, page_rows, width, count = size
    pool = make_values((pages, page_rows, width), dtype)
    index = make_index(pages, count)
    ours = device.ops.page_gather(device.put(pool), device.put(index))
    expected = ref.page_gather(pool.view(torch.uint8) if dtype in CODES else pool, index)
    assert same_bytes(ours, expected)


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_scatter_copies_pages_and_touches_no_other(device, size, dtype):
    pages, page_rows, width, count = size
    pool = make_values((pages, page_rows, width), dtype)
    rows = make_values((count, page_rows, width), dtype)
    index = make_index(pages, count, distinct=True)
    ours = device.put(pool)
    device.ops.page_scatter(device.put(rows), device.put(index), ours, None)
    ref.page_scatter(rows.view(torch.uint8), index, pool.view(torch.uint8))
    assert same_bytes(ours, pool)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gather_decodes(device, size, code, dtype):
    pages, page_rows, width, count = size
    pool = make_values((pages, page_rows, width), torch.float32).clamp(-400, 400).to(code)
    scales = torch.rand(pages, page_rows) + 0.01
    index = make_index(pages, count)
    rows = device.put(torch.full((count, page_rows, width), float("nan")).to(dtype))
    device.ops.page_gather_out(device.put(pool), device.put(index), device.put(scales), rows)
    if pages:
        assert_close(rows, ref.page_gather(pool.double(), index, scales))
    else:
        assert not rows.any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_scatter_encodes_as_the_reference_does(device, size, code, dtype):
    pages, page_rows, width, count = size
    pool = make_values((pages, page_rows, width), torch.float32).clamp(-400, 400).to(code)
    scales = torch.rand(pages, page_rows)
    rows = make_values((count, page_rows, width), dtype)
    if count:
        rows[0, 0] = 0
    index = make_index(pages, count, distinct=True)
    ours, our_scales = device.put(pool), device.put(scales)
    device.ops.page_scatter(device.put(rows), device.put(index), ours, our_scales)
    ref.page_scatter(rows, index, pool, scales)
    assert_close(our_scales, scales.double())
    off = ours.cpu().double() - pool.double()
    # Fast and exact division may fall on both sides of a tie: one code apart, hardly ever.
    step = 1.0 if code == torch.int8 else 32.0
    assert (off.abs() <= step).all()
    assert (off != 0).sum() <= 0.01 * off.numel() + 1


@pytest.mark.parametrize("code", CODES, ids=str)
def test_a_round_trip_loses_at_most_half_a_step(device, code):
    rows = torch.randn(16, 2, 64)
    pool = device.put(torch.zeros(16, 2, 64).to(code))
    scales, index = device.put(torch.zeros(16, 2)), device.put(torch.randperm(16))
    device.ops.page_scatter(device.put(rows), index, pool, scales)
    back = device.put(torch.zeros(16, 2, 64))
    device.ops.page_gather_out(pool, index, scales, back)
    peak = rows.abs().amax(-1, keepdim=True)
    # int8: half of peak/127. float8: 3 bits of mantissa, so half of 1/8 of the value; below 2^-6 of
    # the scale, half of 2^-9.
    allowed = peak / 127 / 2 if code == torch.int8 else rows.abs() / 16 + peak / 448 / 1024
    assert ((back.cpu() - rows).abs() <= allowed * 1.001).all()


def test_every_float8_code_survives(device):
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(1, 1, 256)
    rows = device.put(torch.zeros(1, 1, 256))
    one = device.put(torch.ones(1, 1))
    zero = device.put(torch.zeros(1, dtype=torch.int64))
    device.ops.page_gather_out(device.put(codes), zero, one, rows)
    expected = codes.float()
    assert torch.equal(rows.cpu().isnan(), expected.isnan())
    assert torch.equal(rows.cpu().nan_to_num(), expected.nan_to_num())
    pool, scales = device.put(torch.zeros(1, 1, 256).to(codes.dtype)), device.put(torch.zeros(1, 1))
    device.ops.page_scatter(device.put(expected.nan_to_num()), zero, pool, scales)
    assert scales.item() == 1
    assert torch.equal(pool.cpu().float(), expected.nan_to_num())


def test_addresses_go_beyond_two_to_the_31(device):
    if device.place == "cuda":
        pool = torch.zeros((1 << 20) + 2, 1, 4096, dtype=torch.int8, device="cuda")
    else:
        # Anonymous memory that is backed only where it is touched.
        space = mmap.mmap(-1, ((1 << 20) + 2) * 4096)
        pool = torch.frombuffer(space, dtype=torch.int8).view(-1, 1, 4096)
    page = make_values((2, 1, 4096), torch.int8)
    index = device.put(torch.tensor([1 << 20, (1 << 20) + 1]))
    device.ops.page_scatter(device.put(page), index, pool, None)
    assert pool.numel() > 2**32
    assert same_bytes(device.ops.page_gather(pool, index), page)
    assert same_bytes(pool[(1 << 20) + 1].cpu(), page[1])


def test_gradient_adds_up_over_repeated_pages(wrapper_device):
    pool = torch.randn(5, 2, 3)
    index = torch.tensor([4, 1, -1, 4, 4])
    factor = torch.randn(5, 2, 3)
    ours = wrapper_device.put(pool).clone().requires_grad_()
    out = page_gather(ours, wrapper_device.put(index))
    (out * wrapper_device.put(factor)).sum().backward()
    exact = pool.double().requires_grad_()
    (ref.page_gather(exact, index) * factor.double()).sum().backward()
    assert_close(ours.grad, exact.grad)


def test_wrappers_take_rows_and_pages(wrapper_device):
    pool = torch.randn(6, 10)
    index = torch.tensor([5, 0, -1])
    ours = wrapper_device.put(pool)
    expected = ref.page_gather(pool[:, None], index)[:, 0]
    assert same_bytes(page_gather(ours, wrapper_device.put(index)), expected)
    rows = wrapper_device.put(torch.zeros(3, 10))
    assert page_gather_out(ours, wrapper_device.put(index), rows) is rows
    assert same_bytes(rows, expected)
    codes, scales = torch.zeros(6, 10, dtype=torch.int8), torch.zeros(6)
    codes, scales = wrapper_device.put(codes), wrapper_device.put(scales)
    everything = wrapper_device.put(torch.arange(6))
    page_scatter(ours, everything, codes, scales=scales)
    back = page_gather(codes, everything, scales=scales, dtype=torch.float32)
    assert (back.cpu() - pool).abs().max() <= pool.abs().max() / 127


@pytest.mark.cuda
def test_pinned_host_memory_is_read_and_written_by_the_device():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device on this machine")
    pool = torch.randn(64, 2, 100).pin_memory()
    index = torch.randperm(64, device="cuda")[:20]
    gathered = page_gather(pool, index)
    assert gathered.is_cuda
    assert torch.equal(gathered.cpu(), pool[index.cpu()])
    page_scatter(gathered + 1, index, pool)
    torch.cuda.synchronize()
    assert torch.equal(pool[index.cpu()], gathered.cpu() + 1)


BAD_CALLS = {
    "index must be int64, got int32": {"index": torch.zeros(2, dtype=torch.int32)},
    "index must have shape [any], got [1, 2]": {"index": torch.zeros(1, 2, dtype=torch.int64)},
    "index must be in [-1, 4), got 4 at 1": {"index": torch.tensor([0, 4])},
    "index must be in [-1, 4), got -2 at 0": {"index": torch.tensor([-2, 1])},
    "pool must have shape [any, any, any], got [4]": {"pool": torch.zeros(4)},
    "rows must be float32, got bfloat16": {"rows": torch.zeros(2, 1, 3).bfloat16()},
    "rows must have shape [2, 1, 3], got [2, 1, 4]": {"rows": torch.zeros(2, 1, 4)},
    "pool must be int8 or float8_e4m3fn to have scales, got float32": {"scales": torch.ones(4, 1)},
    "scales must have shape [4, 1], got [4, 2]": {
        "pool": torch.zeros(4, 1, 3, dtype=torch.int8),
        "scales": torch.ones(4, 2),
    },
}


@pytest.mark.parametrize("message", BAD_CALLS, ids=str)
def test_bad_calls_say_what_is_wrong(message):
    call = {
        "pool": torch.zeros(4, 1, 3),
        "index": torch.tensor([0, 1]),
        "rows": torch.zeros(2, 1, 3),
        "scales": None,
    } | BAD_CALLS[message]
    with pytest.raises(errors.InvalidArgument) as caught:
        page_gather_out(call["pool"], call["index"], call["rows"], scales=call["scales"])
    assert f"[page_gather] {message}" in str(caught.value)
    with pytest.raises(errors.InvalidArgument) as caught:
        page_scatter(call["rows"], call["index"], call["pool"], scales=call["scales"])
    assert f"[page_scatter] {message}" in str(caught.value)


def test_an_index_outside_reads_nothing_on_cuda(device):
    if not device.is_cuda:
        return  # refused on CPU, see the bad calls
    index = device.put(torch.tensor([7, 0, -5]))
    rows = device.ops.page_gather(device.put(torch.ones(2, 1, 4)), index)
    assert rows.sum(-1).flatten().tolist() == [0, 4, 0]


def test_two_runs_give_the_same_bits(device):
    rows = make_values((7, 3, 65), torch.bfloat16)
    index = device.put(torch.randperm(7))
    pools = []
    for _ in range(2):
        pool, scales = (
            device.put(torch.zeros(7, 3, 65).to(torch.int8)),
            device.put(torch.zeros(7, 3)),
        )
        device.ops.page_scatter(device.put(rows), index, pool, scales)
        pools.append((pool, scales))
    assert all(torch.equal(a, b) for a, b in zip(*pools, strict=True))


def test_opcheck(wrapper_device):
    torch.use_deterministic_algorithms(False)
    put = wrapper_device.put
    pool, index = put(torch.randn(5, 2, 3)).clone(), put(torch.tensor([4, 1, -1]))
    ops = torch.ops.megacontext
    torch.library.opcheck(ops.page_gather.default, (pool.clone().requires_grad_(), index))
    torch.library.opcheck(
        ops.page_gather_out.default, (pool, index, None, torch.zeros_like(pool[:3]))
    )
    codes, scales = put(torch.zeros(5, 2, 3).to(torch.int8)), put(torch.zeros(5, 2))
    rows = put(torch.randn(3, 2, 3))
    torch.library.opcheck(ops.page_scatter.default, (rows, index, codes, scales))


def test_compiles_without_a_graph_break(wrapper_device):
    put = wrapper_device.put
    pool, index = put(torch.randn(5, 2, 3)).clone(), put(torch.tensor([4, 1, -1]))

    def moved(pool, rows):
        pool = pool + 0
        page_scatter(rows * 2, index, pool)
        return page_gather(pool, index).relu()

    rows = put(torch.randn(3, 2, 3))
    compiled = torch.compile(moved, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(pool, rows), moved(pool, rows))
