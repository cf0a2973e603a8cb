"""Losses and gradients of one optimiser step, whole or in micro-batches (METHOD §5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semantoks.objectives.objective import Objective
from semantoks.objectives.parallel import world_size
from semantoks.objectives.views import Views
from semantoks.training.settings import OptimiserSettings


class StepResult(NamedTuple):
    """What an objective gave in a step, for monitoring; the gradients lie in its parameters."""

    losses: Any
    predictions: Any
    targets: Any


def forward_backward(
    objective: Objective,
    views: Views,
    weights: Mapping[str, float],
    settings: OptimiserSettings,
    precision: torch.dtype = torch.float32,
) -> StepResult:
    """Add the gradients of a step to the trained parameters.

    Parameters
    ----------
    views : of this process's scans.
    weights : of the losses in this step, by name.
    settings : ``micro_batches`` parts in which the scans are encoded. With ``accumulation`` ``exact``, the predictions
        of all parts are first made without gradients, the losses are those of the whole batch, then each part is
        encoded again and gets the gradients of its predictions: the same gradients as in one part. With ``separate``
        each part has its own losses (and covariance, m being its size), and the result is that of the last part.
    precision : of the encoders; bfloat16 is autocast.
    """
    n_scans = len(views.bold) // 2
    step = _Step(objective, weights, precision)
    if settings.micro_batches == 1:
        return step.whole(views, share=1.0)
    size = -(-n_scans // settings.micro_batches)
    parts = [views.part(start, min(start + size, n_scans)) for start in range(0, n_scans, size)]
    if settings.accumulation == "separate":
        results = [step.whole(part, share=len(part.bold) / len(views.bold)) for part in parts]
        return results[-1]
    return step.coupled(views, parts)


class _Step:
    def __init__(self, objective: Objective, weights: Mapping[str, float], precision: torch.dtype) -> None:
        self.objective, self.weights, self.precision = objective, weights, precision

    def predictions(self, views: Views) -> Any:
        with torch.autocast(views.bold.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            return self.objective.predictions(views, self.weights)

    def targets(self, views: Views) -> Any:
        with torch.autocast(views.bold.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            return self.objective.targets(views, self.weights)

    def losses(self, predictions: Any, targets: Any, views: Views) -> Any:
        n_scans = len(views.bold) // 2 * world_size()
        return self.objective.losses(predictions, targets, views, self.weights, n_scans)

    def whole(self, views: Views, share: float) -> StepResult:
        """Encode, take losses, go back; ``share`` weighs the gradients."""
        predictions, targets = self.predictions(views), self.targets(views)
        losses = self.losses(predictions, targets, views)
        (share * losses.total).backward()
        return StepResult(losses, predictions, targets)

    def coupled(self, views: Views, parts: list[Views]) -> StepResult:
        """The gradients of the whole batch, with the activations of one part at a time."""
        with torch.no_grad():
            leaves = _joined([self.predictions(part) for part in parts])
        targets = _joined([self.targets(part) for part in parts])
        for leaf in leaves:
            if leaf is not None:
                leaf.requires_grad_()
        losses = self.losses(leaves, targets, views)
        losses.total.backward()
        start = 0
        for part in parts:
            stop = start + len(part.bold) // 2
            pairs = [
                (prediction, leaf.grad[:, start:stop])
                for prediction, leaf in zip(self.predictions(part), leaves, strict=True)
                if leaf is not None and leaf.grad is not None
            ]
            torch.autograd.backward([prediction for prediction, _ in pairs], [gradient for _, gradient in pairs])
            start = stop
        return StepResult(losses, leaves, targets)


def _joined(parts: Sequence[Any]) -> Any:
    """Named tuples of the parts of a batch as one of the whole batch."""

    def join(values: Sequence[Tensor | None]) -> Tensor | None:
        found = [value for value in values if value is not None]
        return torch.cat(found, dim=1) if found else None

    return type(parts[0])._make(map(join, zip(*parts, strict=True)))
