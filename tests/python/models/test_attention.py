"""`attend` reads the cache in place, against torch's attention over the same masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    causal_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from megacontext.models.attention import attend, attend_cache
from megacontext.models.kv_cache import GrowingLayer
from megacontext.models.seen_places import cache_pool, seen_places


class Grouped(nn.Module):
    is_causal = True
    num_key_value_groups = 3


def cached(streams, places, dtype, width=64, groups=2):
    """Keys and values of `places` as the cache hands them out."""
    layer = GrowingLayer()
    rows = torch.randn(2, streams, groups, places, width).to(dtype)
    return layer.update(rows[0], rows[1])


def mask_of(streams, queries, places, window=0, padding=None):
    rule = sliding_window_causal_mask_function(window) if window else causal_mask_function
    real = None
    if padding is not None:
        real = torch.arange(places) >= torch.tensor(padding)[:, None]
    return sdpa_mask(
        streams, queries, places, q_offset=places - queries, mask_function=rule,
        attention_mask=real, allow_is_causal_skip=False,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("streams", "queries", "places", "window", "padding"),
    [
        (1, 1, 97, 0, None),
        (1, 97, 97, 0, None),
        (1, 40, 300, 0, None),
        (1, 300, 300, 31, None),
        (1, 1, 300, 64, None),
        (1, 50, 300, 64, None),
        (3, 70, 70, 0, (0, 13, 69)),
        (3, 1, 70, 0, (0, 13, 69)),
        (2, 20, 130, 33, (5, 100)),
    ],
)
def test_attend_is_torchs_attention(dtype, streams, queries, places, window, padding):
    torch.manual_seed(0)
    key, value = cached(streams, places, dtype)
    query = torch.randn(streams, 6, queries, 64).to(dtype)
    mask = None
    if window or padding or queries not in (1, places):
        mask = mask_of(streams, queries, places, window, padding)
    with torch.inference_mode():
        ours = attend_cache(query, key, value, mask, None, window)
        told, _ = attend(Grouped(), query, key, value, mask, sliding_window=window or None)
        theirs, _ = sdpa_attention_forward(Grouped(), query, key, value, mask)
    assert ours is not None, "the kernel did not take it"
    assert torch.equal(told, ours)
    # Queries at padding see nothing: zeros here, anything there.
    real = torch.ones(streams, queries, dtype=torch.bool)
    if padding is not None:
        real = torch.arange(places - queries, places) >= torch.tensor(padding)[:, None]
        assert not ours[~real].any()
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours[real], theirs[real], rtol=bound, atol=bound)


def test_the_scale_is_the_models():
    key, value = cached(1, 40, torch.float32)
    query = torch.randn(1, 6, 1, 64)
    with torch.inference_mode():
        ours = attend_cache(query, key, value, None, 0.25, 0)
        theirs, _ = sdpa_attention_forward(Grouped(), query, key, value, None, scaling=0.25)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_buffers_are_pools_of_one_page():
    key, _ = cached(2, 65, torch.bfloat16)
    pool = cache_pool(key)
    assert pool is not None
    assert pool.shape == (2, 2, 256, 64)
    assert pool.data_ptr() == key.data_ptr()
    assert torch.equal(pool[:, :, :65], key)


@pytest.mark.parametrize(
    "held",
    [
        torch.zeros(1, 2, 65, 64),  # 65 places and no more
        torch.zeros(2, 256, 2, 64).transpose(1, 2),  # heads inside places
        torch.zeros(1, 2, 256, 64)[:, :, 8:],  # the buffer ends before
        torch.zeros(1, 2, 256, 128)[..., :64],  # rows with gaps
    ],
)
def test_other_tensors_are_no_pools(held):
    assert cache_pool(held) is None


def test_other_masks_are_left_to_torch():
    shape = (1, 4, 8, 8)
    holes = mask_of(1, 4, 8).clone()
    holes[0, 0, 3, 2] = False
    assert seen_places(holes, shape, 0) is None
    assert seen_places(mask_of(1, 4, 8), shape, 2) is None  # the window is not in the mask
    assert seen_places(mask_of(1, 4, 8, window=2), shape, 0) is None
    assert seen_places(torch.zeros(1, 1, 4, 8), shape, 0) is None  # additive
    assert seen_places(None, shape, 0) is None
    assert seen_places(mask_of(1, 4, 8), shape, 0) is not None


def test_layers_of_a_step_share_its_table():
    mask, shape = mask_of(1, 4, 8), (1, 4, 8, 8)
    assert seen_places(mask, shape, 0) is seen_places(mask, shape, 0)
    assert seen_places(None, (1, 1, 8, 8), 0) is seen_places(None, (1, 1, 8, 8), 0)
    assert seen_places(mask.clone(), shape, 0) is not seen_places(mask, shape, 0)


def test_a_mask_that_was_written_to_is_looked_at_again():
    mask, shape = mask_of(1, 4, 8).clone(), (1, 4, 8, 8)
    assert seen_places(mask, shape, 0) is not None
    mask[0, 0, 3, 2] = False
    assert seen_places(mask, shape, 0) is None


@pytest.mark.parametrize("queries", [1, 40, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_spare_places_are_never_read(dtype, queries):
    """What lies behind the last place is whatever memory held: here not a number."""
    key, value = cached(1, 70, dtype)
    query = torch.randn(1, 6, queries, 64).to(dtype)
    mask = mask_of(1, queries, 70) if queries == 40 else None
    for held in (key, value):
        cache_pool(held)[:, :, 70:] = torch.nan
    with torch.inference_mode():
        ours = attend_cache(query, key, value, mask, None, 0)
        theirs, _ = sdpa_attention_forward(Grouped(), query, key, value, mask)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)


@pytest.mark.parametrize("queries", [1, 5])
def test_what_the_kernel_cannot_do_is_torchs(queries):
    """Narrow heads, and a cache that is not ours."""
    layer = DynamicLayer()
    for width, (key, value) in [
        (16, cached(1, 70, torch.float32, width=16)),
        (64, layer.update(*torch.randn(2, 1, 2, 70, 64))),
    ]:
        query = torch.randn(1, 6, queries, width)
        mask = None if queries == 1 else mask_of(1, queries, 70)
        with torch.inference_mode():
            assert attend_cache(query, key, value, mask, None, 0) is None
            ours, _ = attend(Grouped(), query, key, value, mask)
            theirs, _ = sdpa_attention_forward(Grouped(), query, key, value, mask)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_go_through_torch():
    key, value = cached(1, 64, torch.float32)
    query = torch.randn(1, 6, 64, 64, requires_grad=True)
    out, _ = attend(Grouped(), query, key, value, None)
    out.sum().backward()
    assert query.grad is not None
    assert query.grad.abs().sum() > 0
