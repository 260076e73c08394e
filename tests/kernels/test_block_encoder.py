"""block_encoder and its pieces against their reference, on every device."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from megacontext_ext import errors, ops
from megacontext_ext.reference import block_encoder as ref
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Rows, width: none, one, primes, one more and one less than a group of warps, a realistic width.
NORM_SIZES = [(0, 64), (1, 64), (7, 128), (9, 192), (65, 320), (130, 64), (3, 1024)]
# Windows, width, head width.
ATTENTION_SIZES = [
    (0, 64, 64),
    (1, 64, 64),
    (1, 64, 32),
    (3, 128, 128),
    (5, 192, 64),
    (2, 320, 32),
    (2, 512, 128),
]


def exact(tensor):
    return None if tensor is None else tensor.detach().double().requires_grad_()


def randn(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def test_reference_norm_is_what_the_formula_says():
    x, delta = torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 3.0]])
    total, y = ref.add_norm(x, delta, torch.tensor([1.0, 2.0]), 0.0)
    root = math.sqrt((9 + 16) / 2)
    torch.testing.assert_close(total, torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(y, torch.tensor([[3 / root, 8 / root]]))


def test_reference_attention_is_what_the_formula_says():
    qkv, table = torch.randn(64, 96, dtype=torch.float64), ref.rope_table(32).double()
    out = ref.window_attention(qkv, table)

    def rotated(row, part, place):
        values = qkv[row, 32 * part : 32 * part + 32].tolist()
        turned = list(values)
        for e in range(16):
            angle = place * 10_000 ** (-e / 16)
            cosine, sine = math.cos(angle), math.sin(angle)
            turned[e] = values[e] * cosine - values[e + 16] * sine
            turned[e + 16] = values[e + 16] * cosine + values[e] * sine
        return torch.tensor(turned, dtype=torch.float64)

    row = 41  # place 9 of window 1
    scores = [float(rotated(row, 0, 9) @ rotated(32 + j, 1, j)) / math.sqrt(32) for j in range(32)]
    masses = [math.exp(score) for score in scores]
    expected = sum(masses[j] / sum(masses) * qkv[32 + j, 64:] for j in range(32))
    torch.testing.assert_close(out[row], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", NORM_SIZES, ids=str)
@pytest.mark.parametrize("with_delta", [False, True])
def test_add_norm_matches_the_reference(device, size, dtype, with_delta):
    x, gain, grad_y, grad_sum = (
        randn(*shape, dtype=dtype) for shape in (size, size[1:], size, size)
    )
    delta = randn(*size, dtype=dtype) if with_delta else None
    # The sum is rounded to the dtype, and what follows is a function of the rounded sum.
    rounded = exact(x if delta is None else (x.float() + delta.float()).to(dtype))
    exact_gain = exact(gain)
    want = ref.add_norm(rounded, None, exact_gain, 1e-5)[1]
    put = device.put
    total, y, inverse = device.ops.add_norm(put(x), put(delta), put(gain), 1e-5)
    assert_close(y, want)
    if with_delta:
        assert torch.equal(total.cpu(), rounded.detach().to(dtype))
    grads = device.ops.add_norm_backward(
        put(grad_y), put(grad_sum), total if with_delta else put(x), put(gain), inverse
    )
    want_grads = torch.autograd.grad(want, (rounded, exact_gain), grad_y.double())
    assert_close(grads[0], want_grads[0] + grad_sum.double(), kind="product", what="grad_s")
    if size[0] > 0:
        assert_close(grads[1], want_grads[1], kind="product", what="grad_gain")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", ATTENTION_SIZES, ids=str)
def test_window_attention_matches_the_reference(device, size, dtype):
    windows, width, head_width = size
    qkv, grad = randn(windows * 32, 3 * width, dtype=dtype), randn(windows * 32, width, dtype=dtype)
    table = ref.rope_table(head_width)
    exact_qkv = exact(qkv)
    want = ref.window_attention(exact_qkv, table.double())
    got = device.ops.window_attention(device.put(qkv), device.put(table))
    assert_close(got, want, kind="product")
    (want_grad,) = torch.autograd.grad(want, exact_qkv, grad.double())
    got_grad = device.ops.window_attention_backward(
        device.put(grad), device.put(qkv), device.put(table)
    )
    for part in range(3):
        columns = slice(part * width, (part + 1) * width)
        assert_close(got_grad[:, columns], want_grad[:, columns], kind="product", what="qkv"[part])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", NORM_SIZES, ids=str)
def test_gated_act_matches_the_reference(device, size, dtype):
    rows, width = size
    gate_up, grad = randn(rows, 2 * width, dtype=dtype) * 3, randn(rows, width, dtype=dtype)
    exact_input = exact(gate_up)
    want = ref.gated_act(exact_input)
    assert_close(device.ops.gated_act(device.put(gate_up)), want, kind="product")
    (want_grad,) = torch.autograd.grad(want, exact_input, grad.double())
    got = device.ops.gated_act_backward(device.put(grad), device.put(gate_up))
    assert_close(got, want_grad, kind="product")


def test_gated_act_is_right_far_from_zero(device):
    gate_up = torch.ones(1, 128)
    gate_up[0, :4] = torch.tensor([-200.0, -90.0, 90.0, 200.0])
    got = device.ops.gated_act(device.put(gate_up))
    assert_close(got, ref.gated_act(gate_up.double()), kind="product")
    grad = device.ops.gated_act_backward(device.put(torch.ones(1, 64)), device.put(gate_up))
    assert grad.isfinite().all()


def make_encoder(width, dtype, *, layer_count=2, head_width=64):
    weights = ops.init_block_encoder(width, layer_count, head_width=head_width)
    layers = [[1.0 + 0.1 * torch.randn_like(t) if t.dim() == 1 else t for t in layer]
              for layer in weights.layers]  # fmt: skip
    flat = [t.to(dtype) for layer in layers for t in layer] + [weights.final_norm.to(dtype)]
    return flat, weights.table


def as_weights(flat, table):
    layers = [flat[i : i + 6] for i in range(0, len(flat) - 1, 6)]
    return layers, flat[-1], table


def run_ours(x, flat, table):
    layers, final_norm, table = as_weights(flat, table)
    weights = ops.BlockEncoderWeights(
        tuple(ops.BlockEncoderLayer(*layer) for layer in layers), final_norm, table
    )
    return ops.block_encoder(x, weights)


@pytest.mark.parametrize("size", [(3, 64, 0), (2, 64, 1), (3, 192, 2)], ids=str)
@pytest.mark.parametrize("head_width", [32, 64])
def test_block_encoder_and_its_gradients_match_the_reference(wrapper_device, size, head_width):
    windows, width, layer_count = size
    flat, table = make_encoder(width, torch.float32, layer_count=layer_count, head_width=head_width)
    x = torch.randn(windows, 32, width)
    mine = [wrapper_device.put(t).requires_grad_() for t in (x, *flat)]
    rows, pooled = run_ours(mine[0], mine[1:], wrapper_device.put(table))
    leaves = [exact(t) for t in (x, *flat)]
    want_rows, want_pooled = ref.block_encoder(leaves[0], *as_weights(leaves[1:], table.double()))
    assert_close(rows, want_rows, kind="product")
    assert_close(pooled, want_pooled, kind="product")
    factors = torch.randn_like(want_rows), torch.randn_like(want_pooled)
    loss = (rows * factors[0].to(rows)).sum() + (pooled * factors[1].to(rows)).sum()
    want_loss = (want_rows * factors[0]).sum() + (want_pooled * factors[1]).sum()
    grads = torch.autograd.grad(loss, mine)
    want_grads = torch.autograd.grad(want_loss, leaves)
    for number, (got, want) in enumerate(zip(grads, want_grads, strict=True)):
        assert_close(got, want, kind="deep", what=f"gradient of tensor {number}")


@pytest.mark.parametrize("level", ["portable", "avx512"])
def test_block_encoder_in_bf16_is_as_near_as_torch_in_bf16(level):
    """Against float64, our error is no larger than that of the same formula in torch's bf16."""
    before = ops.cpu_level()
    if not ops.set_cpu_level(level):
        pytest.skip(f"this CPU has no {level}")
    flat, table = make_encoder(128, torch.bfloat16)
    x = torch.randn(4, 32, 128).bfloat16()
    ours = run_ours(x, flat, table)[0].double()
    plain = ref.block_encoder(x, *as_weights(flat, table))[0].double()
    want = ref.block_encoder(x.double(), *as_weights([t.double() for t in flat], table.double()))[0]
    ops.set_cpu_level(before)
    assert (ours - want).square().mean() <= 1.2 * (plain - want).square().mean()


def test_encoding_in_pieces_gives_the_same_rows(monkeypatch):
    module = importlib.import_module("megacontext_ext.ops.block_encoder")
    flat, table = make_encoder(64, torch.float32)
    x = torch.randn(7, 32, 64)
    whole = run_ours(x, flat, table)
    calls = []
    encode = module._encode
    monkeypatch.setattr(module, "PIECE_BYTES", 2 * 32 * flat[4].shape[0] * 4)
    monkeypatch.setattr(module, "PIECE_WINDOWS", 1)
    monkeypatch.setattr(module, "_encode", lambda *args: calls.append(args) or encode(*args))
    in_pieces = run_ours(x, flat, table)
    assert len(calls) == -(-7 // (2 * torch.get_num_threads()))
    for got, want in zip(in_pieces, whole, strict=True):
        torch.testing.assert_close(got, want)
    calls.clear()
    monkeypatch.setattr(module, "PIECE_WINDOWS", 3)
    run_ours(x, flat, table)
    assert len(calls) == -(-7 // (3 * torch.get_num_threads()))
    leaf = x.clone().requires_grad_()
    assert run_ours(leaf, flat, table)[0].requires_grad


BAD_CALLS = {
    "[add_norm] x.shape[1] must be a positive multiple of 64, got 65": lambda: ops.add_norm(
        torch.zeros(2, 65), None, torch.zeros(65)
    ),
    "[add_norm] gain must have shape [64], got [128]": lambda: ops.add_norm(
        torch.zeros(2, 64), None, torch.zeros(128)
    ),
    "[add_norm] delta must be float32, got bfloat16": lambda: ops.add_norm(
        torch.zeros(2, 64), torch.zeros(2, 64).bfloat16(), torch.zeros(64)
    ),
    "[add_norm] x must be float32, bfloat16 or float16, got float64": lambda: ops.add_norm(
        torch.zeros(2, 64).double(), None, torch.zeros(64)
    ),
    "[window_attention] qkv.shape[0] must be a multiple of 32, got 31": (
        lambda: ops.window_attention(torch.zeros(31, 192), torch.zeros(32, 64))
    ),
    "[window_attention] table must have shape [32, any], got [16, 64]": (
        lambda: ops.window_attention(torch.zeros(32, 192), torch.zeros(16, 64))
    ),
    "[window_attention] table.shape[1] must be 32, 64 or 128 and divide 64, got 48": (
        lambda: ops.window_attention(torch.zeros(32, 192), torch.zeros(32, 48))
    ),
    "[gated_act] gate_up.shape[1] must be a positive multiple of 128, got 64": (
        lambda: ops.gated_act(torch.zeros(2, 64))
    ),
    "[block_encoder] x must be [N, 32, D], got [2, 31, 64]": lambda: ops.block_encoder(
        torch.zeros(2, 31, 64), ops.init_block_encoder(64)
    ),
    "[block_encoder] width must be a multiple of 64 and of head_width=64, got 96": (
        lambda: ops.init_block_encoder(96)
    ),
}


@pytest.mark.parametrize("message", BAD_CALLS, ids=str)
def test_bad_calls_say_what_is_wrong(message):
    with pytest.raises(errors.InvalidArgument) as caught:
        BAD_CALLS[message]()
    assert message in str(caught.value)


def test_two_runs_and_any_number_of_threads_give_the_same_bits(device):
    x, gain = device.put(torch.randn(1001, 128)), device.put(torch.randn(128))
    qkv = device.put(torch.randn(320, 192).bfloat16())
    table = device.put(ref.rope_table(64))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        total, y, inverse = device.ops.add_norm(x, x, gain, 1e-6)
        grads = device.ops.add_norm_backward(y, None, total, gain, inverse)
        attended = device.ops.window_attention(qkv, table)
        turned = device.ops.window_attention_backward(attended, qkv, table)
        results.append((total, y, inverse, *grads, attended, turned))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck(wrapper_device):
    torch.use_deterministic_algorithms(False)
    put, check = wrapper_device.put, torch.library.opcheck
    named = torch.ops.megacontext
    x, delta = (put(torch.randn(5, 64)).requires_grad_() for _ in range(2))
    gain = put(torch.randn(64)).requires_grad_()
    check(named.add_norm.default, (x, delta, gain, 1e-6))
    check(named.add_norm.default, (x, None, gain, 1e-6))
    qkv = put(torch.randn(32, 192)).requires_grad_()
    check(named.window_attention.default, (qkv, put(ref.rope_table(64))))
    check(named.gated_act.default, (put(torch.randn(5, 128)).requires_grad_(),))


def test_compiles_without_a_graph_break(wrapper_device):
    flat, table = make_encoder(64, torch.float32)
    mine = [wrapper_device.put(t).requires_grad_() for t in (torch.randn(2, 32, 64), *flat)]
    table = wrapper_device.put(table)

    def encoded(x, flat):
        rows, pooled = run_ours(x * 2, flat, table)
        return rows.square().mean() + pooled.sum()

    compiled = torch.compile(encoded, fullgraph=True, backend="aot_eager")
    got, want = compiled(mine[0], mine[1:]), encoded(mine[0], mine[1:])
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got, mine), torch.autograd.grad(want, mine), strict=True):
        torch.testing.assert_close(a, b)
