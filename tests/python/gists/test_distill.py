"""The hand-written gradient is autograd's, the value is torch's KL."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from megacontext.gists.distill import distill


def plain(hidden, head, teacher, targets, weight):
    student = (hidden @ head.T).log_softmax(-1)
    wanted = (teacher @ head.T).log_softmax(-1)
    kl = F.kl_div(student, wanted, reduction="batchmean", log_target=True)
    nll = F.nll_loss(student, targets)
    return (1 - weight) * kl + weight * nll, kl, nll


def test_value_and_gradient_equal_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(50, 12, generator=generator, dtype=torch.float64)
    teacher = torch.randn(23, 12, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 50, (23,), generator=generator)
    ours = distill(hidden, head, teacher, targets, 0.3, positions_a_slice=7)
    (ours.loss * 2).backward()
    mine, hidden.grad = hidden.grad, None
    loss, kl, nll = plain(hidden, head, teacher, targets, 0.3)
    (loss * 2).backward()
    torch.testing.assert_close(mine, hidden.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.divergence.double(), kl, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.surprise.double(), nll, rtol=1e-4, atol=1e-6)


def test_a_student_equal_to_the_teacher_has_no_divergence() -> None:
    hidden, head = torch.randn(5, 8), torch.randn(30, 8)
    same = distill(hidden, head, hidden, torch.zeros(5, dtype=torch.long), 0.0)
    assert abs(float(same.divergence)) < 1e-5
