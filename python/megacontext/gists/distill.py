"""The loss: full-context distribution to the distribution seen through gists, exact gradient.

Logits are 49,152 wide, so they are made in slices of positions and never kept: the forward
pass computes the gradient with respect to the hidden states at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Distilled(NamedTuple):
    """loss (differentiable) and its detached parts, nats a position."""

    loss: Tensor
    divergence: Tensor
    surprise: Tensor


def slice_terms(
    student: Tensor, teacher: Tensor, targets: Tensor, hard_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(sum KL(teacher || student), sum NLL, d(loss sum)/d(student logits)) of [n, V] logits."""
    student, teacher = student.float(), teacher.float()
    student_log = student - student.logsumexp(-1, keepdim=True)
    teacher_log = teacher - teacher.logsumexp(-1, keepdim=True)
    wanted = teacher_log.exp()
    divergence = (wanted * (teacher_log - student_log)).sum()
    surprise = -student_log.gather(1, targets[:, None]).sum()
    slope = student_log.exp() - (1.0 - hard_weight) * wanted
    slope = slope.scatter_add(1, targets[:, None], torch.full_like(slope[:, :1], -hard_weight))
    return divergence, surprise, slope


class _Distill(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, teacher_hidden, targets, hard_weight, terms, step):
        total = hidden.shape[0]
        gradient = torch.empty_like(hidden)
        divergence = torch.zeros((), device=hidden.device)
        surprise = torch.zeros((), device=hidden.device)
        for start in range(0, total, step):
            part = slice(start, start + step)
            kl, nll, slope = terms(
                hidden[part] @ head.T, teacher_hidden[part] @ head.T, targets[part], hard_weight
            )
            divergence += kl
            surprise += nll
            gradient[part] = slope.to(hidden.dtype) @ head
        ctx.save_for_backward(gradient)
        ctx.total = total
        divergence, surprise = divergence / total, surprise / total
        loss = (1.0 - hard_weight) * divergence + hard_weight * surprise
        ctx.mark_non_differentiable(divergence, surprise)
        return loss, divergence, surprise

    @staticmethod
    def backward(ctx, slope, *_):
        (gradient,) = ctx.saved_tensors
        return (gradient * (slope / ctx.total).to(gradient.dtype), *[None] * 6)


def distill(
    hidden: Tensor,
    head: Tensor,
    teacher_hidden: Tensor,
    targets: Tensor,
    hard_weight: float = 0.1,
    terms: Callable[..., tuple[Tensor, Tensor, Tensor]] = slice_terms,
    positions_a_slice: int = 4096,
) -> Distilled:
    """(1 - w) KL(teacher || student) + w NLL, means over positions.

    Args:
        hidden: [N, width] normed student states; head: [V, width]; teacher_hidden: [N, width];
        targets: [N] the true next tokens.
        hard_weight: w.
        terms: `slice_terms` or its compiled form.
        positions_a_slice: logits rows made at once.
    """
    return Distilled(
        *_Distill.apply(
            hidden, head, teacher_hidden, targets, hard_weight, terms, positions_a_slice
        )
    )
