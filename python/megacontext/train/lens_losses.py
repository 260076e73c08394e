"""Losses of a lens. Scores are signed: above zero an entry wants to be raw.

Every loss is a mean, 0 where nothing is to be compared.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, logsigmoid, softplus


def listwise(logit: Tensor, wanted: Tensor) -> Tensor:
    """Cross entropy of softmax(logit) [N] with weights `wanted` [N] >= 0, normalised to sum 1."""
    total = wanted.sum()
    if total <= 0:
        return logit.sum() * 0.0
    return -(wanted / total * torch.log_softmax(logit, dim=0)).sum()


def pairwise(score: Tensor, gain: Tensor, margin: float = 0.1) -> Tensor:
    """Softplus of every pair in the wrong order: i should be above j where gain_i > gain_j +
    margin."""
    ahead = gain[:, None] > gain[None] + margin
    if not ahead.any():
        return score.sum() * 0.0
    return softplus(-(score[:, None] - score[None]))[ahead].mean()


def regression(predicted: Tensor, gain: Tensor) -> Tensor:
    """Huber loss in nats: a few questions gain tens of nats."""
    if gain.numel() == 0:
        return predicted.sum() * 0.0
    return huber_loss(predicted, gain, delta=1.0)


def calibrated(logit: Tensor, needed: Tensor) -> Tensor:
    """Binary cross entropy of each entry; the few needed ones weigh as much as all others."""
    positive, negative = needed > 0, needed <= 0
    loss = logit.sum() * 0.0
    if positive.any():
        loss = loss - logsigmoid(logit[positive]).mean() / 2
    if negative.any():
        loss = loss - logsigmoid(-logit[negative]).mean() / 2
    return loss


def budget(score: Tensor, expand_places: Tensor, collapse_places: Tensor) -> Tensor:
    """((P - N) / (P + N))^2: what wants in, P places, against what may go, N places."""
    wants = (torch.relu(torch.tanh(score)) * expand_places).sum()
    goes = (torch.relu(-torch.tanh(score)) * collapse_places).sum()
    return ((wants - goes) / (wants + goes + 1e-6)).square()


def legality(score: Tensor, may_expand: Tensor, may_collapse: Tensor) -> Tensor:
    """Mean score in a direction that an entry cannot go: tokens cannot be expanded, a protected
    tail cannot be collapsed."""
    up = torch.relu(torch.tanh(score)) * ~may_expand
    down = torch.relu(-torch.tanh(score)) * ~may_collapse
    return (up + down).mean()
