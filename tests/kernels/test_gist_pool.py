"""gist_pool and gist_pool_tree against their reference, on every device."""

from __future__ import annotations

import math

import pytest
import torch

from megacontext_ext import errors
from megacontext_ext.ops.gist_pool import gist_pool, gist_pool_tree, gist_pool_tree_counts
from megacontext_ext.reference import gist_pool as ref
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# blocks, block_size, width: empty, one, primes, vector widths +-1, a real block.
SIZES = [
    (0, 32, 8),
    (3, 4, 0),
    (1, 1, 1),
    (5, 3, 7),
    (2, 32, 15),
    (3, 32, 17),
    (7, 5, 128),
    (2, 33, 129),
    (4, 32, 576),
    (1, 9, 4101),  # more columns than the CPU sums at a time, more rows than it reads at once
]
MODES = ["mean", "weighted", "attention", "weighted_attention"]


def make_inputs(size, mode, dtype):
    """Rows, weights (a third are 0, and those rows NaN), query, scale."""
    blocks, block_size, width = size
    rows = torch.randn(blocks * block_size, width, dtype=torch.float64).to(dtype)
    weights = query = None
    if "weighted" in mode:
        weights = torch.rand(blocks * block_size) + 0.25
        weights[torch.rand(blocks * block_size) < 0.33] = 0
        weights[:block_size] = 0  # a whole block without weight
        rows[weights == 0] = math.nan
    if "attention" in mode:
        query = torch.randn(width, dtype=torch.float64).to(dtype)
    return rows, weights, query, 1 / math.sqrt(max(width, 1))


def in_float64(*tensors):
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def test_reference_is_what_the_formula_says():
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0], [7.0, 9.0]], dtype=torch.float64)
    weights = torch.tensor([1.0, 3.0, 0.0, 0.0])
    query = torch.tensor([0.5, -1.0], dtype=torch.float64)
    expected_mean = torch.tensor([[2.0, 4.0], [6.0, 7.0]], dtype=torch.float64)
    torch.testing.assert_close(ref.gist_pool(rows, 2), expected_mean)
    expected_weighted = torch.tensor([[2.5, 5.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(ref.gist_pool(rows, 2, weights), expected_weighted)
    for block in range(2):
        masses = [math.exp(0.3 * float(rows[2 * block + i] @ query)) for i in range(2)]
        expected = sum(masses[i] * rows[2 * block + i] for i in range(2)) / sum(masses)
        torch.testing.assert_close(ref.gist_pool(rows, 2, None, query, 0.3)[block], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_forward_matches_the_reference(device, size, mode, dtype):
    rows, weights, query, scale = make_inputs(size, mode, dtype)
    expected = ref.gist_pool(*in_float64(rows)[:1], size[1], weights, *in_float64(query), scale)
    ours = device.ops.gist_pool(
        device.put(rows), size[1], device.put(weights), device.put(query), scale
    )
    assert ours.dtype == dtype
    assert_close(ours, expected, kind="product" if query is not None else "sum")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_match_the_reference(device, size, mode, dtype):
    rows, weights, query, scale = make_inputs(size, mode, dtype)
    exact_rows, exact_weights, exact_query = in_float64(rows, weights, query)
    out = ref.gist_pool(exact_rows, size[1], exact_weights, exact_query, scale)
    grad_gists = torch.randn(out.shape, dtype=torch.float64).to(dtype)
    wanted = [t for t in (exact_rows, exact_weights, exact_query) if t is not None]
    expected = dict(
        zip(map(id, wanted), torch.autograd.grad(out, wanted, grad_gists.double()), strict=False)
    )
    grads = device.ops.gist_pool_backward(
        device.put(grad_gists), device.put(rows), size[1], device.put(weights),
        device.put(query), scale, True, weights is not None, query is not None,
    )  # fmt: skip
    names = ("grad_rows", "grad_weights", "grad_query")
    for name, ours, exact in zip(
        names, grads, (exact_rows, exact_weights, exact_query), strict=True
    ):
        if exact is not None:
            assert_close(ours, expected[id(exact)], kind="product", dtype=dtype, what=name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row_count", [0, 1, 31, 32, 33, 1023, 1024, 1100])
def test_tree_has_the_bits_of_repeated_pooling(device, row_count, mode):
    rows, weights, query, scale = make_inputs((row_count, 1, 24), mode, torch.bfloat16)
    rows, weights, query = device.put(rows), device.put(weights), device.put(query)
    nodes, node_weights = device.ops.gist_pool_tree(rows, 32, weights, query, scale)
    counts = gist_pool_tree_counts(row_count, 32)
    assert nodes.shape == (sum(counts), 24)
    start = 0
    for count in counts:
        used = count * 32
        rows = rows[:used].contiguous()
        weights = None if weights is None else weights[:used].contiguous()
        pooled = device.ops.gist_pool(rows, 32, weights, query, scale)
        assert torch.equal(nodes[start : start + count].view(torch.int16), pooled.view(torch.int16))
        if weights is not None:
            weights = node_weights[start : start + count]
            reference_weights = ref.gist_pool_tree(rows.double(), 32, None)[0]
            assert reference_weights.shape[0] >= count
        rows = pooled
        start += count


@pytest.mark.parametrize("mode", MODES)
def test_autograd_goes_through_the_tree(wrapper_device, mode):
    rows, weights, query, scale = make_inputs((70, 1, 6), mode, torch.float32)
    ours = [wrapper_device.put(t) for t in (rows, weights, query)]
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in ours]
    nodes, node_weights = gist_pool_tree(
        leaves[0], 4, weights=leaves[1], query=leaves[2], scale=scale
    )
    exact = in_float64(rows, weights, query)
    exact_nodes, exact_weights = ref.gist_pool_tree(exact[0], 4, exact[1], exact[2], scale)
    assert_close(nodes, exact_nodes, kind="product")
    factor = torch.randn(exact_nodes.shape, dtype=torch.float64)
    loss = (nodes * factor.to(nodes)).sum()
    exact_loss = (exact_nodes * factor).sum()
    if weights is not None:
        mass = torch.randn(exact_weights.shape, dtype=torch.float64)
        loss = loss + (node_weights * mass.to(nodes)).sum()
        exact_loss = exact_loss + (exact_weights * mass).sum()
    loss.backward()
    exact_loss.backward()
    for name, leaf, want in zip(("rows", "weights", "query"), leaves, exact, strict=True):
        if leaf is not None:
            assert_close(leaf.grad, want.grad, kind="product", what=f"gradient of {name}")


@pytest.mark.parametrize("mode", MODES)
def test_autograd_through_the_wrapper(wrapper_device, mode):
    rows, weights, query, scale = make_inputs((6, 8, 20), mode, torch.float32)
    leaves = [wrapper_device.put(t) for t in (rows, weights, query)]
    leaves = [None if t is None else t.clone().requires_grad_() for t in leaves]
    gist_pool(
        leaves[0], 8, weights=leaves[1], query=leaves[2], scale=scale
    ).square().sum().backward()
    exact = in_float64(rows, weights, query)
    ref.gist_pool(exact[0], 8, exact[1], exact[2], scale).square().sum().backward()
    for leaf, want in zip(leaves, exact, strict=True):
        if leaf is not None:
            assert_close(leaf.grad, want.grad, kind="product")


BAD_CALLS = {
    "rows must be float32, bfloat16 or float16, got float64": {"rows": torch.zeros(4, 2).double()},
    "rows must have shape [any, any], got [4]": {"rows": torch.zeros(4)},
    "rows must be contiguous, got strides [1, 4] for [4, 2]": {"rows": torch.zeros(2, 4).t()},
    "rows.shape[0] must be a multiple of block_size=3, got 4": {"block_size": 3},
    "block_size must be in [1, 1024], got 0": {"block_size": 0},
    "block_size must be in [1, 1024], got 2000": {"block_size": 2000},
    "weights must be float32, got float64": {"weights": torch.zeros(4).double()},
    "weights must have shape [4], got [3]": {"weights": torch.zeros(3)},
    "query must be float32, got bfloat16": {"query": torch.zeros(2).bfloat16()},
    "query must have shape [2], got [3]": {"query": torch.zeros(3)},
}


@pytest.mark.parametrize("message", BAD_CALLS, ids=str)
def test_bad_calls_say_what_is_wrong(message):
    call = {"rows": torch.zeros(4, 2), "block_size": 2} | BAD_CALLS[message]
    with pytest.raises(errors.InvalidArgument) as caught:
        gist_pool(call.pop("rows"), call.pop("block_size"), **call)
    assert f"[gist_pool] {message}" in str(caught.value)


def test_the_tree_refuses_a_fan_out_of_one():
    with pytest.raises(errors.InvalidArgument, match="block_size must be >= 2, got 1"):
        gist_pool_tree(torch.zeros(4, 2), 1)


def test_two_runs_and_any_number_of_threads_give_the_same_bits(device):
    rows, weights, query, scale = make_inputs((300, 8, 96), "weighted_attention", torch.float32)
    inputs = (device.put(rows), 8, device.put(weights), device.put(query), scale)
    grads = device.put(torch.randn(300, 96))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        forward = device.ops.gist_pool(*inputs)
        backward = device.ops.gist_pool_backward(grads, *inputs, True, True, True)
        results.append([t.view(torch.int32).cpu() for t in (forward, *backward)])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_out_variant_writes_the_same_bits(device):
    rows, weights, query, scale = make_inputs((5, 8, 33), "weighted_attention", torch.float32)
    inputs = (device.put(rows), 8, device.put(weights), device.put(query), scale)
    gists = device.put(torch.full((5, 33), math.nan))
    device.ops.gist_pool_out(*inputs, gists)
    assert torch.equal(gists, device.ops.gist_pool(*inputs))


@pytest.mark.parametrize("mode", MODES)
def test_opcheck(wrapper_device, mode):
    rows, weights, query, scale = make_inputs((4, 8, 20), mode, torch.float32)
    rows = rows.nan_to_num()
    inputs = [
        None if t is None else wrapper_device.put(t).clone().requires_grad_()
        for t in (rows, weights, query)
    ]
    torch.use_deterministic_algorithms(False)
    args = (inputs[0], 8, inputs[1], inputs[2], scale)
    torch.library.opcheck(torch.ops.megacontext.gist_pool.default, args)
    torch.library.opcheck(torch.ops.megacontext.gist_pool_tree.default, args)


def test_compiles_without_a_graph_break(wrapper_device):
    rows, weights, query, scale = make_inputs((4, 8, 20), "weighted_attention", torch.float32)
    inputs = [wrapper_device.put(t).clone().requires_grad_() for t in (rows, weights, query)]

    def pooled(rows, weights, query):
        return gist_pool(rows * 2, 8, weights=weights, query=query, scale=scale).relu()

    compiled = torch.compile(pooled, fullgraph=True, backend="aot_eager")
    ours, plain = compiled(*inputs), pooled(*inputs)
    assert torch.equal(ours, plain)
    for a, b in zip(
        torch.autograd.grad(ours.sum(), inputs),
        torch.autograd.grad(plain.sum(), inputs),
        strict=True,
    ):
        assert torch.equal(a, b)
