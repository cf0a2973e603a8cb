"""Coding-rate and token losses (METHOD §5); products and Cholesky always in at least float32."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from semantoks.objectives.parallel import sum_over_processes, world_size

CODING_RATE_EPSILON = 0.05


class CodingRateLoss(NamedTuple):
    """Loss −similarity − γR and its two parts, scalars."""

    loss: Tensor
    similarity: Tensor
    coding_rate: Tensor


def coding_rate_loss(
    student: Tensor, teacher: Tensor, weights: Tensor | None = None, epsilon: float = CODING_RATE_EPSILON
) -> CodingRateLoss:
    """SimDINO loss: agreement across views and spread of the features (METHOD §5).

    With Z_v = (s_v + t_v) / 2 over m rows of size p,
    R = mean over v of ½ logdet(I + p/(m ε) Z_vᵀ Z_v), γ = (p + m)/(p m), loss = −similarity − γR.
    With several processes m counts the rows of all, and covariances are summed over them.

    Parameters
    ----------
    student, teacher : unit-norm projections [2 views, m, p]; no gradient flows into the teacher.
    weights : [m], 0 for rows to leave out, else 1.
    epsilon : ε, the allowed distortion.

    Returns
    -------
    The loss as *this* process's share of it: summed over processes it is the loss of the global batch.
    A covariance that cannot be factorised gives NaN instead of an exception, so that no step waits for the device.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = _at_least_float32(student), _at_least_float32(teacher.detach())
        n_local, size = student.shape[1:]
        if weights is None:
            weights = torch.ones(n_local, device=student.device, dtype=student.dtype)
        weights = weights.to(student.dtype)
        rows = sum_over_processes(weights.sum())
        similarity = ((teacher[0] * student[1] + teacher[1] * student[0]).sum(-1) / 2 * weights).sum() / rows
        mixed = (student + teacher) / 2 * weights[:, None]
        covariance = sum_over_processes(mixed.transpose(1, 2) @ mixed)
        identity = torch.eye(size, device=student.device, dtype=student.dtype)
        factor, info = torch.linalg.cholesky_ex(identity + size / (rows * epsilon) * covariance)
        log_determinant = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(-1)
        log_determinant = torch.where(info == 0, log_determinant, torch.nan)
        coding_rate = (size + rows) / (size * rows) * 0.5 * log_determinant.mean()
        return CodingRateLoss(
            loss=-similarity - coding_rate / world_size(),
            similarity=sum_over_processes(similarity.detach()),
            coding_rate=coding_rate.detach(),
        )


def collapsed_coding_rate(n_rows: int, size: int, epsilon: float = CODING_RATE_EPSILON) -> float:
    """γR when all ``n_rows`` projections of ``size`` values are the same vector: 0.038 for 512 of 128."""
    return (size + n_rows) / (size * n_rows) * 0.5 * math.log(1 + size / epsilon)


def token_loss(student: Tensor, teacher: Tensor, masked: Tensor, n_scans: int | None = None) -> Tensor:
    """Negative cosine at masked positions, averaged per sample-view, summed, divided by 2m (METHOD §5).

    Parameters
    ----------
    student, teacher : unit-norm token projections of the same view [2 views, m, tokens, p].
    masked : [2, m, tokens] bool; a sample-view without masked tokens adds nothing.
    n_scans : m of the global batch; the local m by default.

    Returns
    -------
    This process's share of the loss, scalar.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = _at_least_float32(student), _at_least_float32(teacher.detach())
        weight = masked.to(student.dtype)
        weight = weight / weight.sum(dim=-1, keepdim=True).clamp(min=1)
        cosine = (student * teacher).sum(dim=-1)
        return -(cosine * weight).sum() / (2 * (n_scans or student.shape[1]))


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
