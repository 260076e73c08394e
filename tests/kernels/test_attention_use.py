"""attention_use against its reference, on every device."""

from __future__ import annotations

import math

import pytest
import torch

from megacontext_ext import errors
from megacontext_ext.ops import attention_use
from megacontext_ext.reference import attention_use as ref
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# batch, query heads, KV heads, queries, keys, width, count: empty, one, primes, panels and tiles
# +-1, groups of 1 to 9, one realistic.
SHAPES = [
    (0, 2, 1, 3, 5, 16, 2),
    (1, 2, 1, 0, 4, 64, 4),
    (1, 1, 1, 1, 1, 64, 0),
    (1, 1, 1, 1, 2, 64, 1),
    (2, 6, 2, 7, 50, 64, 33),
    (1, 9, 1, 33, 133, 16, 100),
    (2, 8, 2, 31, 97, 128, 66),
    (1, 3, 3, 5, 40, 256, 3),
    (1, 5, 1, 1, 33, 48, 32),
    (1, 4, 1, 65, 129, 512, 64),
    (1, 9, 3, 200, 520, 64, 300),
]


def make_inputs(shape, dtype):
    batch, query_heads, kv_heads, asks, places, width, _ = shape
    queries = 2 * torch.randn(batch, query_heads, asks, width, dtype=torch.float64)
    keys = torch.randn(batch, kv_heads, places, width, dtype=torch.float64)
    return queries.to(dtype), keys.to(dtype)


def run(device, queries, keys, count, scale=0.125):
    return device.ops.attention_use(device.put(queries), device.put(keys), count, scale)


def test_reference_is_what_the_formula_says():
    queries, keys = make_inputs((1, 4, 2, 2, 5, 3, 3), torch.float64)
    use = ref.attention_use(queries, keys, 3, 0.7)
    for head in range(2):
        wanted = [0.0] * 3
        for query_head in (2 * head, 2 * head + 1):
            for ask in range(2):
                query = queries[0, query_head, ask]
                seen = [math.exp(0.7 * float(query @ key)) for key in keys[0, head, : 4 + ask]]
                wanted = [w + (e / sum(seen)) ** 1.5 for w, e in zip(wanted, seen, strict=False)]
        assert_close(use[0, head], torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_use_matches_the_reference(device, shape, dtype):
    queries, keys = make_inputs(shape, dtype)
    ours = run(device, queries, keys, shape[-1])
    assert ours.dtype == torch.float32
    wanted = ref.attention_use(queries.double(), keys.double(), shape[-1], 0.125)
    assert_close(ours, wanted, kind="product")


@pytest.mark.parametrize("scale", [-0.3, 0.0, 1e-30])
def test_any_finite_scale_is_followed(device, scale):
    queries, keys = make_inputs((1, 3, 1, 9, 60, 32, 45), torch.float32)
    wanted = ref.attention_use(queries.double(), keys.double(), 45, scale)
    assert_close(run(device, queries, keys, 45, scale), wanted, kind="product")


@pytest.mark.parametrize("offset", [-900.0, 900.0])
def test_large_scores_neither_overflow_nor_vanish(device, offset):
    queries, keys = make_inputs((1, 2, 1, 9, 60, 32, 45), torch.float32)
    queries[..., 0], keys[..., 0] = 1.0, offset
    wanted = ref.attention_use(queries.double(), keys.double(), 45, 1.0)
    assert_close(run(device, queries, keys, 45, 1.0), wanted, kind="deep")


def test_what_a_query_does_not_see_changes_nothing_of_it(device):
    queries, keys = make_inputs((1, 2, 1, 3, 40, 64, 37), torch.bfloat16)
    queries[:, :, 1:] = 0  # the later ones look at all alike, whatever it is
    loud = keys.clone()
    loud[:, :, 38:] = 1000 * queries[:, :1, :1]
    assert torch.equal(run(device, queries, keys, 37), run(device, queries, loud, 37))


def test_a_query_that_is_not_a_number_spoils_its_own_heads_only(device):
    queries, keys = make_inputs((1, 4, 2, 30, 90, 64, 60), torch.float32)
    queries[0, 1, 17, 3] = float("nan")
    use = run(device, queries, keys, 60)
    assert use[0, 0].isnan().all()
    wanted = ref.attention_use(queries.double(), keys.double(), 60, 0.125)
    assert_close(use[:, 1], wanted[:, 1], kind="product")


BAD_CALLS = {
    "queries must be float32, bfloat16 or float16, got int64": {
        "queries": torch.zeros(1, 4, 3, 16).long()
    },
    "queries must have shape [any, any, any, any], got [4, 3, 16]": {
        "queries": torch.zeros(4, 3, 16)
    },
    "queries must be contiguous, got strides [192, 16, 64, 1] for [1, 4, 3, 16]": {
        "queries": torch.zeros(1, 3, 4, 16).transpose(1, 2)
    },
    "queries must have a width that is a multiple of 16, at most 512, got 24": {
        "queries": torch.zeros(1, 4, 3, 24)
    },
    "queries must have a width that is a multiple of 16, at most 512, got 528": {
        "queries": torch.zeros(1, 4, 3, 528)
    },
    "keys must be float32, got bfloat16": {"keys": torch.zeros(1, 2, 8, 16).bfloat16()},
    "keys must have shape [1, any, any, 16], got [2, 2, 8, 16]": {"keys": torch.zeros(2, 2, 8, 16)},
    "keys must have shape [1, any, any, 16], got [1, 2, 8, 32]": {"keys": torch.zeros(1, 2, 8, 32)},
    "keys must have a number of heads that divides the 4 of queries, got 3": {
        "keys": torch.zeros(1, 3, 8, 16)
    },
    "keys must have a number of heads that divides the 4 of queries, got 0": {
        "keys": torch.zeros(1, 0, 8, 16)
    },
    "keys must end with one for each of the 3 queries, got 2": {"keys": torch.zeros(1, 2, 2, 16)},
    "count must be from 0 to 5, the 8 keys less the queries' own 3, got 6": {"count": 6},
    "count must be from 0 to 5, the 8 keys less the queries' own 3, got 9": {"count": 9},
    "count must be from 0 to 5, the 8 keys less the queries' own 3, got -1": {"count": -1},
    "scale must be finite, got inf": {"scale": math.inf},
    "queries and keys must not require a gradient": {
        "keys": torch.zeros(1, 2, 8, 16, requires_grad=True)
    },
}


@pytest.mark.parametrize("message", BAD_CALLS, ids=str)
def test_bad_calls_say_what_is_wrong(message):
    call = {"queries": torch.zeros(1, 4, 3, 16), "keys": torch.zeros(1, 2, 8, 16), "count": 5}
    with pytest.raises(errors.InvalidArgument) as caught:
        attention_use(**(call | BAD_CALLS[message]))
    assert f"[attention_use] {message}" in str(caught.value)


def test_tensors_that_require_a_gradient_are_read_where_none_is_wanted():
    queries, keys = make_inputs((1, 2, 1, 3, 9, 16, 6), torch.float32)
    with torch.no_grad():
        use = attention_use(queries.requires_grad_(), keys, 6)
    assert_close(
        use, ref.attention_use(queries.detach().double(), keys.double(), 6), kind="product"
    )


def test_two_runs_give_the_same_bits(device):
    queries, keys = make_inputs((2, 9, 3, 150, 400, 64, 250), torch.bfloat16)
    assert torch.equal(run(device, queries, keys, 250), run(device, queries, keys, 250))


def test_any_number_of_threads_gives_the_same_bits():
    queries, keys = make_inputs((1, 9, 3, 500, 900, 64, 400), torch.bfloat16)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(attention_use(queries, keys, 400))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_opcheck(wrapper_device):
    torch.use_deterministic_algorithms(False)
    queries, keys = (
        wrapper_device.put(t) for t in make_inputs((2, 6, 2, 7, 50, 64, 33), torch.float32)
    )
    torch.library.opcheck(
        torch.ops.megacontext.attention_use.default, (queries, keys, 33, 64**-0.5)
    )


def test_compiles_without_a_graph_break(wrapper_device):
    queries, keys = (
        wrapper_device.put(t) for t in make_inputs((2, 6, 2, 7, 50, 64, 33), torch.float32)
    )

    def use(queries, keys):
        return attention_use(queries + 1, keys, 33).sqrt()

    compiled = torch.compile(use, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(queries, keys), use(queries, keys))
