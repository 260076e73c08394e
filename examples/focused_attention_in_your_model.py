"""Focused attention in a model of your own: nothing else of MegaContext is used.

A layer reads a long history through a small working context: the most recent blocks, the first
block (an attention sink), and the blocks that look most like the question. Run it:

    python examples/focused_attention_in_your_model.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megacontext_ext import ops
from megacontext_ext.entry_table import AttentionRules, EntryTable, Rope

HEADS, KV_HEADS, WIDTH, PLACES = 4, 2, 128, 32
ROTARY = 32  # columns of a head that turn with position; the others match at any distance


class PagedAttention(nn.Module):
    """Attention whose keys and values live in pages of 32 tokens, before rotation."""

    def __init__(self, model_width: int, pages: int) -> None:
        super().__init__()
        self.q = nn.Linear(model_width, HEADS * WIDTH, bias=False)
        self.kv = nn.Linear(model_width, 2 * KV_HEADS * WIDTH, bias=False)
        self.out = nn.Linear(HEADS * WIDTH, model_width, bias=False)
        self.register_buffer("keys", torch.zeros(pages, KV_HEADS, PLACES, WIDTH))
        self.register_buffer("values", torch.zeros(pages, KV_HEADS, PLACES, WIDTH))
        self.register_buffer("frequencies", 10000.0 ** -torch.linspace(0, 1, ROTARY // 2))

    def write(self, history: Tensor) -> None:
        """Stores the keys and values of history [n * 32, D], un-rotated, one page a block."""
        rows = self.kv(history).view(-1, PLACES, 2, KV_HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        self.keys[: rows.shape[1]], self.values[: rows.shape[1]] = rows[0], rows[1]

    def read(self, question: Tensor, start: int, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of question [T, D] over pages [n], and its log-sum-exp [T, HEADS].

        The first token of the question is at position `start`.
        """
        tokens = question.shape[0]
        table = EntryTable.from_pages(pages, starts=pages * PLACES)
        positions = torch.arange(start, start + tokens, dtype=torch.int32)
        plan = ops.make_read_plan(table, ops.dense_query_starts([tokens], 64), positions)
        rope = Rope.gaussian(self.frequencies, table.positions, positions)
        q = self.q(question).view(tokens, HEADS, WIDTH)
        rules = AttentionRules(rope=rope)
        out, lse = ops.focused_attention(q, self.keys, self.values, table, plan, rules)
        return self.out(out.flatten(1)), lse


def choose_pages(layer: PagedAttention, question: Tensor, pages: int, budget: int) -> Tensor:
    """The first page, the last two, and the best matches of the question's mean query."""
    query = layer.q(question).view(-1, KV_HEADS, HEADS // KV_HEADS, WIDTH).mean((0, 2))
    scores = torch.einsum("he,phe->p", query, layer.keys[:pages].mean(2))
    scores[[0, pages - 2, pages - 1]] = float("inf")
    return scores.topk(budget).indices.sort().values.to(torch.int32)


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    model_width, pages, budget = 256, 512, 64
    layer = PagedAttention(model_width, pages)
    # Keys look like queries, as in a trained layer, so that a question finds what it repeats.
    by_group = layer.q.weight.view(KV_HEADS, HEADS // KV_HEADS, WIDTH, model_width)
    layer.kv.weight[: KV_HEADS * WIDTH] = by_group.sum(1).flatten(0, 1)
    history = torch.randn(pages * PLACES, model_width)
    layer.write(history)
    question = 10.0 * history[5000:5016]
    chosen = choose_pages(layer, question, pages, budget)
    everything = torch.arange(pages, dtype=torch.int32)
    _, focused_lse = layer.read(question, pages * PLACES, chosen)
    _, full_lse = layer.read(question, pages * PLACES, everything)
    # exp(lse) is the sum of the unnormalised weights: their ratio is the attention that was kept.
    kept = torch.exp(focused_lse - full_lse).mean().item()
    print(
        f"{pages * PLACES} tokens of history, {budget * PLACES} read: "
        f"{budget / pages:.1%} of the places, {kept:.1%} of the attention"
    )


if __name__ == "__main__":
    main()
