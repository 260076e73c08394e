"""gaussian_rope and its tables against their reference, on every device."""

from __future__ import annotations

import math

import pytest
import torch

from megacontext_ext import errors
from megacontext_ext.ops import gaussian_rope, gaussian_rope_, gaussian_rope_tables
from megacontext_ext.reference import gaussian_rope as ref
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# batch, heads, tokens, width, pairs, copies: empty, one, primes, vector widths +-1, partial rotary.
SHAPES = [
    (0, 2, 3, 8, 4, 1),
    (1, 1, 0, 8, 4, 1),
    (1, 1, 1, 2, 1, 1),
    (2, 3, 5, 14, 7, 2),
    (2, 2, 7, 30, 15, 1),
    (1, 5, 3, 34, 17, 1),
    (3, 2, 4, 96, 16, 3),
    (2, 3, 33, 128, 64, 2),
]


def inverse_frequencies(pairs: int) -> torch.Tensor:
    return 10_000.0 ** (-torch.arange(pairs, dtype=torch.float32) / max(pairs, 1))


def make_inputs(shape, dtype):
    batch, heads, tokens, width, pairs, copies = shape
    x = torch.randn(batch, heads, tokens, width, dtype=torch.float64).to(dtype)
    positions = (torch.rand(copies * tokens) * 8192).round() / 2
    sigmas = torch.rand(copies * tokens) * 20
    sigmas[::3] = 0
    cos, sin = ref.gaussian_rope_tables(positions, sigmas, inverse_frequencies(pairs))
    table = (copies, tokens, pairs)
    return x, cos.view(table).contiguous(), sin.view(table).contiguous()


def test_reference_is_what_the_formula_says():
    positions, sigmas = torch.tensor([3.0, 2.5]).double(), torch.tensor([0.0, 4.0]).double()
    omega = torch.tensor([1.0, 0.25]).double()
    cos, sin = ref.gaussian_rope_tables(positions, sigmas, omega, 1.5)
    x = torch.arange(1.0, 11.0).double().view(1, 1, 2, 5)
    out = ref.gaussian_rope(x, cos[None], sin[None])
    for token in range(2):
        for j in range(2):
            angle = float(positions[token] * omega[j])
            factor = 1.5 * math.exp(-((float(sigmas[token] * omega[j])) ** 2) / 2)
            first, second = float(x[0, 0, token, j]), float(x[0, 0, token, j + 2])
            turned = complex(first, second) * factor * complex(math.cos(angle), math.sin(angle))
            assert math.isclose(float(out[0, 0, token, j]), turned.real, abs_tol=1e-12)
            assert math.isclose(float(out[0, 0, token, j + 2]), turned.imag, abs_tol=1e-12)
    assert torch.equal(out[..., 4], x[..., 4])


def test_damping_is_the_mean_over_a_gaussian():
    omega, sigma, middle = torch.tensor([0.3, 0.02]).double(), 3.0, 100.0
    place, width = torch.tensor([[middle], [sigma]], dtype=torch.float64)
    cos, sin = ref.gaussian_rope_tables(place, width, omega)
    places = torch.linspace(-8, 8, 4001).double()
    density = torch.exp(-(places**2) / 2)
    angles = (middle + sigma * places)[:, None] * omega
    expected_cos = (density[:, None] * angles.cos()).sum(0) / density.sum()
    expected_sin = (density[:, None] * angles.sin()).sum(0) / density.sum()
    # The grid ends at 8 sigma; float32's table entry covers that.
    assert_close(cos[0], expected_cos, dtype=torch.float32)
    assert_close(sin[0], expected_sin, dtype=torch.float32)


@pytest.mark.parametrize("pairs", [0, 1, 15, 17, 32])
@pytest.mark.parametrize("count", [0, 1, 7, 64])
def test_tables_match_the_reference(device, count, pairs):
    positions = (torch.rand(count) * 100_000).round() / 2
    sigmas = torch.rand(count) * 30
    inv_freq = inverse_frequencies(pairs)
    for widths in (None, sigmas):
        ours = device.ops.gaussian_rope_tables(
            device.put(positions), device.put(widths), device.put(inv_freq), 1.25
        )
        # The angle is a float32 by contract; from there on the reference is in float64.
        angles = (positions[:, None] * inv_freq).double()
        damping = torch.ones_like(angles)
        if widths is not None:
            damping = torch.exp(-0.5 * (widths[:, None].double() * inv_freq.double()) ** 2)
        assert_close(ours[0], 1.25 * damping * angles.cos(), what="cos")
        assert_close(ours[1], 1.25 * damping * angles.sin(), what="sin")


def test_sigma_zero_has_the_bits_of_plain_rope(device):
    positions = torch.arange(500, dtype=torch.float32)
    inv_freq = inverse_frequencies(32)
    put = device.put
    plain = device.ops.gaussian_rope_tables(put(positions), None, put(inv_freq), 1.0)
    zero = device.ops.gaussian_rope_tables(
        put(positions), put(torch.zeros(500)), put(inv_freq), 1.0
    )
    for a, b in zip(plain, zero, strict=True):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rotation_matches_the_reference(device, shape, dtype, inverse):
    x, cos, sin = make_inputs(shape, dtype)
    expected = ref.gaussian_rope(x.double(), cos.double(), sin.double(), inverse)
    put = device.put
    ours = device.ops.gaussian_rope(put(x), put(cos), put(sin), inverse)
    assert ours.dtype == dtype
    assert_close(ours, expected)
    in_place = put(x)
    device.ops.gaussian_rope_inplace(in_place, put(cos), put(sin), inverse)
    assert torch.equal(in_place.cpu().view(torch.uint8), ours.cpu().view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_match_the_reference(device, shape, dtype):
    x, cos, sin = make_inputs(shape, dtype)
    exact = [t.double().requires_grad_() for t in (x, cos, sin)]
    grad = torch.randn(x.shape, dtype=torch.float64).to(dtype)
    out = ref.gaussian_rope(*exact)
    want_x, want_cos, want_sin = torch.autograd.grad(out, exact, grad.double())
    put = device.put
    assert_close(device.ops.gaussian_rope(put(grad), put(cos), put(sin), True), want_x)
    grad_cos, grad_sin = device.ops.gaussian_rope_tables_backward(
        put(grad), put(x), cos.shape[0], cos.shape[2]
    )
    assert_close(grad_cos, want_cos, what="grad_cos")
    assert_close(grad_sin, want_sin, what="grad_sin")


@pytest.mark.parametrize("inverse", [False, True])
def test_autograd_from_positions_and_widths_to_the_loss(wrapper_device, inverse):
    x, positions = torch.randn(2, 3, 5, 16), torch.rand(2, 5) * 50
    sigmas, inv_freq = torch.rand(2, 5) * 3, inverse_frequencies(6)
    factor = torch.randn(2, 3, 5, 16)
    ours = [wrapper_device.put(t).clone().requires_grad_() for t in (x, positions, sigmas)]
    tables = gaussian_rope_tables(ours[1], ours[2], wrapper_device.put(inv_freq), scale=1.1)
    loss = gaussian_rope(ours[0], *tables, inverse=inverse) * wrapper_device.put(factor)
    loss.sum().backward()
    exact = [t.double().requires_grad_() for t in (x, positions, sigmas)]
    tables = ref.gaussian_rope_tables(exact[1], exact[2], inv_freq.double(), 1.1)
    (ref.gaussian_rope(exact[0], *tables, inverse) * factor.double()).sum().backward()
    for name, a, b in zip(("x", "positions", "sigmas"), ours, exact, strict=True):
        assert_close(a.grad, b.grad, kind="product", what=f"gradient of {name}")


def test_turning_back_is_the_inverse_where_sigma_is_zero(wrapper_device):
    x = wrapper_device.put(torch.randn(1, 2, 9, 32))
    inv_freq = wrapper_device.put(inverse_frequencies(16))
    positions = wrapper_device.put(torch.arange(9.0))
    cos, sin = gaussian_rope_tables(positions, None, inv_freq)
    turned = gaussian_rope(x, cos, sin)
    assert_close(gaussian_rope(turned, cos, sin, inverse=True), x.double())
    assert gaussian_rope_(turned, cos, sin, inverse=True) is turned
    assert_close(turned, x.double())


BAD_CALLS = {
    "x must be float32, bfloat16 or float16, got int64": {"x": torch.zeros(1, 2, 3, 8).long()},
    "x must have shape [any, any, any, any], got [3, 8]": {"x": torch.zeros(3, 8)},
    "x must be contiguous, got strides [48, 8, 16, 1] for [1, 2, 3, 8]": {
        "x": torch.zeros(1, 3, 2, 8).transpose(1, 2)
    },
    "cos must have shape [1 or 1, 3, at most 4], got [2, 3, 4]": {"cos": torch.zeros(2, 3, 4)},
    "cos must have shape [1 or 1, 3, at most 4], got [1, 3, 5]": {"cos": torch.zeros(1, 3, 5)},
    "cos must be float32, got float64": {"cos": torch.zeros(1, 3, 4).double()},
    "sin must have shape [1, 3, 4], got [1, 3, 3]": {"sin": torch.zeros(1, 3, 3)},
}


@pytest.mark.parametrize("message", BAD_CALLS, ids=str)
def test_bad_calls_say_what_is_wrong(message):
    call = {"x": torch.zeros(1, 2, 3, 8), "cos": torch.zeros(1, 3, 4), "sin": torch.zeros(1, 3, 4)}
    call |= BAD_CALLS[message]
    with pytest.raises(errors.InvalidArgument) as caught:
        gaussian_rope(call["x"], call["cos"], call["sin"])
    assert f"[gaussian_rope] {message}" in str(caught.value)


def test_bad_tables_say_what_is_wrong():
    with pytest.raises(errors.InvalidArgument, match="positions must be float32, got float64"):
        gaussian_rope_tables(torch.zeros(2).double(), None, torch.zeros(3))
    with pytest.raises(errors.InvalidArgument, match=r"sigmas must have shape \[2\], got \[3\]"):
        gaussian_rope_tables(torch.zeros(2), torch.zeros(3), torch.zeros(3))


def test_two_runs_give_the_same_bits(device):
    x, cos, sin = (device.put(t) for t in make_inputs((3, 4, 33, 64, 32, 1), torch.bfloat16))
    grad = device.put(torch.randn(3, 4, 33, 64).bfloat16())
    runs = [
        (
            device.ops.gaussian_rope(x, cos, sin, False).view(torch.int16),
            *device.ops.gaussian_rope_tables_backward(grad, x, 1, 32),
        )
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_opcheck(wrapper_device):
    torch.use_deterministic_algorithms(False)
    x, cos, sin = make_inputs((2, 3, 5, 16, 8, 2), torch.float32)
    inputs = [wrapper_device.put(t).clone().requires_grad_() for t in (x, cos, sin)]
    torch.library.opcheck(torch.ops.megacontext.gaussian_rope.default, (*inputs, False))
    positions = wrapper_device.put(torch.rand(6)).clone().requires_grad_()
    sigmas = wrapper_device.put(torch.rand(6)).clone().requires_grad_()
    inv_freq = wrapper_device.put(inverse_frequencies(4))
    args = (positions, sigmas, inv_freq, 1.0)
    torch.library.opcheck(torch.ops.megacontext.gaussian_rope_tables.default, args)


def test_compiles_without_a_graph_break(wrapper_device):
    x, positions = torch.randn(2, 3, 5, 16), torch.arange(5.0)
    inv_freq = wrapper_device.put(inverse_frequencies(8))
    x = wrapper_device.put(x).clone().requires_grad_()
    sigmas = wrapper_device.put(torch.rand(5)).clone().requires_grad_()
    positions = wrapper_device.put(positions)

    def turned(x, sigmas):
        cos, sin = gaussian_rope_tables(positions, sigmas, inv_freq)
        return gaussian_rope(x + 1, cos, sin).square()

    compiled = torch.compile(turned, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(x, sigmas).sum(), (x, sigmas))
    plain = torch.autograd.grad(turned(x, sigmas).sum(), (x, sigmas))
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
