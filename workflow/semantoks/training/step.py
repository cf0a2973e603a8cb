"""Losses and gradients of one optimiser step, whole or in micro-batches (METHOD §5)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from semantoks.objectives.parallel import world_size
from semantoks.objectives.self_distillation import Losses, Projections, SelfDistillation
from semantoks.objectives.views import Views
from semantoks.training.settings import OptimiserSettings


class StepResult(NamedTuple):
    """Losses and projections of a step, for monitoring; the gradients lie in the student's parameters."""

    losses: Losses
    student: Projections
    teacher: Projections


def forward_backward(
    objective: SelfDistillation,
    views: Views,
    ttr_weight: float,
    settings: OptimiserSettings,
    precision: torch.dtype = torch.float32,
) -> StepResult:
    """Add the gradients of a step to the student's parameters.

    Parameters
    ----------
    views : of this process's scans.
    settings : ``micro_batches`` parts in which the scans are encoded. With ``accumulation`` ``exact``, all parts are
        first projected without gradients, the losses are those of the whole batch, then each part is encoded again
        and gets the gradients of its projections: the same gradients as in one part. With ``separate`` each part has
        its own covariance, m being its size, and the result is that of the last part.
    precision : of the encoders; bfloat16 is autocast.
    """
    n_scans = len(views.bold) // 2
    step = _Step(objective, ttr_weight, precision)
    if settings.micro_batches == 1:
        return step.whole(views, share=1.0)
    size = -(-n_scans // settings.micro_batches)
    parts = [views.part(start, min(start + size, n_scans)) for start in range(0, n_scans, size)]
    if settings.accumulation == "separate":
        results = [step.whole(part, share=len(part.bold) / len(views.bold)) for part in parts]
        return results[-1]
    return step.coupled(views, parts)


class _Step:
    def __init__(self, objective: SelfDistillation, ttr_weight: float, precision: torch.dtype) -> None:
        self.objective, self.ttr_weight, self.precision = objective, ttr_weight, precision

    def student(self, views: Views) -> Projections:
        with torch.autocast(views.bold.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            return self.objective.project_student(views, self.ttr_weight > 0)

    def teacher(self, views: Views) -> Projections:
        with torch.autocast(views.bold.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            return self.objective.project_teacher(views, self.ttr_weight > 0)

    def losses(self, student: Projections, teacher: Projections, views: Views) -> Losses:
        n_scans = len(views.bold) // 2 * world_size()
        return self.objective.losses(student, teacher, views, self.ttr_weight, n_scans)

    def whole(self, views: Views, share: float) -> StepResult:
        """Encode, take losses, go back; ``share`` weighs the gradients."""
        student, teacher = self.student(views), self.teacher(views)
        losses = self.losses(student, teacher, views)
        (share * losses.total).backward()
        return StepResult(losses, student, teacher)

    def coupled(self, views: Views, parts: list[Views]) -> StepResult:
        """The gradients of the whole batch, with the activations of one part at a time."""
        with torch.no_grad():
            student = _joined([self.student(part) for part in parts])
        teacher = _joined([self.teacher(part) for part in parts])
        leaves = _detached(student)
        losses = self.losses(leaves, teacher, views)
        losses.total.backward()
        start = 0
        for part in parts:
            stop = start + len(part.bold) // 2
            pairs = [
                (projection, leaf.grad[:, start:stop])
                for projection, leaf in zip(self.student(part)[:3], leaves[:3], strict=True)
                if projection is not None and leaf is not None and leaf.grad is not None
            ]
            torch.autograd.backward([projection for projection, _ in pairs], [gradient for _, gradient in pairs])
            start = stop
        return StepResult(losses, leaves, teacher)


def _detached(projections: Projections) -> Projections:
    """The same projections as leaves that collect their gradients."""
    cls, networks, tokens = (None if values is None else values.detach().requires_grad_() for values in projections[:3])
    assert cls is not None
    return Projections(cls, networks, tokens, projections.outputs)


def _joined(parts: list[Projections]) -> Projections:
    """Projections of all parts of a batch as one."""

    def join(values: list[Tensor | None], dimension: int) -> Tensor | None:
        return None if values[0] is None else torch.cat([value for value in values if value is not None], dimension)

    cls, networks, tokens = (join([part[index] for part in parts], 1) for index in range(3))
    outputs = torch.cat([part.outputs for part in parts])
    assert cls is not None
    return Projections(cls, networks, tokens, outputs)
