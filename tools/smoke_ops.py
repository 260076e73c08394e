"""Every operator once, against plain torch, on this torch: prints its version, or fails."""

from __future__ import annotations

import torch

from megacontext_ext import ops
from megacontext_ext.entry_table import EntryTable


def check_pooling_and_encoding() -> None:
    rows = torch.randn(64, 128, requires_grad=True)
    pooled = ops.gist_pool(rows, 32)
    torch.testing.assert_close(pooled, rows.view(2, 32, 128).mean(1))
    (grad,) = torch.autograd.grad(pooled.sum(), rows)
    torch.testing.assert_close(grad, torch.full_like(rows, 1 / 32))
    assert ops.gist_pool_tree(rows.detach())[0].shape == (2, 128)
    weights = ops.init_block_encoder(128, 1)
    encoded, gists = ops.block_encoder(rows.view(2, 32, 128), weights)
    torch.testing.assert_close(gists, encoded.mean(1))


def check_attention() -> None:
    q = torch.randn(5, 4, 64, requires_grad=True)
    keys, values = torch.randn(2, 3, 2, 32, 64)
    table = EntryTable.from_pages(torch.tensor([2, 0], dtype=torch.int32))
    plan = ops.make_read_plan(table, ops.dense_query_starts([5], 128))
    out, lse = ops.focused_attention(q, keys, values, table, plan)
    seen_keys, seen_values = (t[[2, 0]].transpose(0, 1).flatten(1, 2) for t in (keys, values))
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1),
        seen_keys.repeat_interleave(2, 0),
        seen_values.repeat_interleave(2, 0),
    ).transpose(0, 1)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    got, want = (torch.autograd.grad(x.square().sum(), q)[0] for x in (out, expected))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    merged, _ = ops.merge_attention(out.detach()[None], lse.detach()[None])
    torch.testing.assert_close(merged, out.detach())
    asked = q.detach()[:1].transpose(0, 1)[None].contiguous()  # [1, 4, 1, 64], which sees all
    use = ops.attention_use(asked, seen_keys[None], 63)
    weights = (asked.view(2, 2, 64) @ seen_keys.mT / 8).softmax(-1)
    torch.testing.assert_close(use[0], (weights[..., :63] ** 1.5).sum(1))


def check_paging_selection_and_rotation() -> None:
    pool, index = torch.randn(8, 4, 16), torch.tensor([5, -1, 2])
    pages = ops.page_gather(pool, index)
    assert torch.equal(pages[[0, 2]], pool[[5, 2]])
    assert not pages[1].any()
    codes, scales = torch.zeros(8, 4, 16, dtype=torch.int8), torch.zeros(8, 4)
    ops.page_scatter(pool, torch.arange(8), codes, scales=scales)
    back = ops.page_gather(codes, torch.arange(8), scales=scales, dtype=torch.float32)
    torch.testing.assert_close(back, pool, rtol=0, atol=0.03)
    rows, query = torch.randn(500, 32), torch.randn(32)
    values, indices = ops.score_topk(query, rows, 7)
    best = torch.topk(rows @ query, 7)
    assert torch.equal(indices, best.indices)
    torch.testing.assert_close(values, best.values)
    assert torch.equal(ops.topk(rows[0], 3)[1], torch.topk(rows[0], 3).indices)
    frequencies = 10_000.0 ** (-torch.arange(0, 16, 2) / 16)
    cos, sin = ops.gaussian_rope_tables(torch.arange(3.0), torch.zeros(3), frequencies)
    x = torch.randn(1, 2, 3, 16)
    turned = ops.gaussian_rope(x, cos, sin)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def check_tracing() -> None:
    def step(rows: torch.Tensor) -> torch.Tensor:
        return ops.gist_pool(rows, 32) * 2

    rows = torch.randn(64, 24)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(rows), step(rows))


if __name__ == "__main__":
    torch.manual_seed(0)
    check_pooling_and_encoding()
    check_attention()
    check_paging_selection_and_rotation()
    check_tracing()
    print(f"torch {torch.__version__}: every operator loads and answers as plain torch does")
