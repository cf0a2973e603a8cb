"""Brain-Semantoks: a student agrees with its moving average on CLS, networks and masked tokens (METHOD §5)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from semantoks.model.encoder import Encoder, ProjectionHead
from semantoks.objectives.losses import CODING_RATE_EPSILON, coding_rate_loss, token_loss
from semantoks.objectives.objective import Objective
from semantoks.objectives.parallel import sum_over_processes
from semantoks.objectives.spread import effective_rank, token_cosine
from semantoks.objectives.views import Views


@dataclass(frozen=True)
class ObjectiveSettings:
    """Weights of the losses.

    Attributes
    ----------
    token_weight : of the token loss.
    ttr_weight : of the Teacher-guided Temporal Regularizer at step 0; its schedule is in ``Schedules``.
    ttr_share : share of all steps after which it is off.
    epsilon : distortion of the coding rate.
    shared_head : one projection head for CLS, networks and tokens; false gives each its own.
    """

    token_weight: float = 0.5
    ttr_weight: float = 0.5
    ttr_share: float = 0.05
    epsilon: float = CODING_RATE_EPSILON
    shared_head: bool = True


class Branch(nn.Module):
    """Encoder and projection heads; student and teacher are one each."""

    def __init__(self, encoder: Encoder, shared_head: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = ProjectionHead(encoder.settings)
        self.network_head = None if shared_head else ProjectionHead(encoder.settings)
        self.token_head = None if shared_head else ProjectionHead(encoder.settings)


class Projections(NamedTuple):
    """Unit-norm projections of both views by one branch; parts that no loss reads are None.

    ``cls`` [2, m, p], ``networks`` [2, m, N, p], ``tokens`` [2, m, N·P, p]; ``outputs`` are the encoder's
    tokens [2, m, n, D], without gradient, for monitoring.
    """

    cls: Tensor
    networks: Tensor | None
    tokens: Tensor | None
    outputs: Tensor


class Losses(NamedTuple):
    """Scalars of a step; ``total`` is this process's share and carries the gradient, the others do not."""

    total: Tensor
    cls: Tensor
    ttr: Tensor
    token: Tensor
    similarity: Tensor
    coding_rate: Tensor


class SelfDistillation(Objective):
    """Student, teacher and their losses; the covariance of the coding rate couples all scans of a batch.

    Its only scheduled weight is ``ttr``.
    """

    features = "teacher.encoder"

    def __init__(self, encoder: Encoder, settings: ObjectiveSettings) -> None:
        super().__init__()
        self.settings = settings
        self.student = Branch(encoder, settings.shared_head)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def trained(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Parameters of the student."""
        return self.student.named_parameters()

    def encoders(self) -> list[Encoder]:
        """Those of student and teacher."""
        return [self.student.encoder, self.teacher.encoder]

    def predictions(self, views: Views, weights: Mapping[str, float]) -> Projections:
        """Student projections of the masked views."""
        hidden = _absent(views)
        if views.mask is None:
            mask = hidden
        else:
            mask = views.mask if hidden is None else views.mask | hidden
        return self._project(self.student, views, mask, weights["ttr"] > 0)

    @torch.no_grad()
    def targets(self, views: Views, weights: Mapping[str, float]) -> Projections:
        """Teacher projections of the unmasked views."""
        return self._project(self.teacher, views, _absent(views), weights["ttr"] > 0)

    def _project(self, branch: Branch, views: Views, mask: Tensor | None, ttr: bool) -> Projections:
        only_cls = views.mask is None and not ttr
        outputs = branch.encoder(views.bold, mask, only_cls)
        cls = branch.head(outputs[:, 0]).unflatten(0, (2, -1))
        networks = tokens = None
        if ttr:
            grid = outputs[:, 1:].unflatten(1, (branch.encoder.n_networks, -1))
            head = branch.network_head or branch.head
            networks = head(_mean_over_patches(grid, views.present)).unflatten(0, (2, -1))
        if views.mask is not None:
            head = branch.token_head or branch.head
            tokens = head(outputs[:, 1:]).unflatten(0, (2, -1))
        return Projections(cls, networks, tokens, outputs.detach().unflatten(0, (2, -1)))

    def losses(
        self,
        predictions: Projections,
        targets: Projections,
        views: Views,
        weights: Mapping[str, float],
        n_scans: int | None = None,
    ) -> Losses:
        """Losses of a batch, from the projections of student and teacher.

        Parameters
        ----------
        views : their masks say which tokens count.
        weights : ``ttr``, the weight of the TTR in this step.
        n_scans : m of the global batch, when there are several processes.
        """
        student, teacher = predictions, targets
        epsilon = self.settings.epsilon
        cls = coding_rate_loss(student.cls, teacher.cls, epsilon=epsilon)
        zero = cls.loss.new_zeros(())
        ttr = token = zero
        if student.networks is not None and teacher.networks is not None:
            present = None if views.present is None else views.present.any(dim=2).flatten()
            ttr = coding_rate_loss(
                student.networks.flatten(1, 2), teacher.networks.flatten(1, 2), present, epsilon
            ).loss
        if student.tokens is not None and teacher.tokens is not None and views.mask is not None:
            masked = views.mask.flatten(1).unflatten(0, (2, -1))
            token = token_loss(student.tokens, teacher.tokens, masked, n_scans)
        total = cls.loss + weights["ttr"] * ttr + self.settings.token_weight * token
        return Losses(total, cls.loss.detach(), ttr.detach(), token.detach(), cls.similarity, cls.coding_rate)

    def metrics(self, losses: Losses, predictions: Projections, targets: Projections) -> dict[str, Tensor]:
        """Losses of the batch of all processes; spread of the features of this process's scans.

        ``feature_sd``: sd over the batch of view 1's CLS projection, averaged; ``effective_rank``: of the same;
        ``token_cosine``: of the teacher's tokens, NaN in steps that compute none.
        """
        student, teacher = predictions.cls[0].detach().float(), targets.cls[0].float()
        summed = sum_over_processes(torch.stack([losses.total.detach(), losses.cls, losses.ttr, losses.token]))
        return {
            **dict(zip(("loss", "cls_loss", "ttr_loss", "token_loss"), summed, strict=True)),
            "similarity": losses.similarity,
            "coding_rate": losses.coding_rate,
            "feature_sd": student.std(dim=0).mean(),
            "teacher_feature_sd": teacher.std(dim=0).mean(),
            "effective_rank": effective_rank(student),
            "token_cosine": token_cosine(targets.outputs.flatten(0, 1)),
        }

    @torch.no_grad()
    def after_step(self, momentum: float) -> None:
        """Move the teacher's parameters, not its buffers, towards the student's: t ← momentum·t + (1−momentum)·s."""
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)


def _absent(views: Views) -> Tensor | None:
    """Tokens without data, [2·m, N, P], hidden from student and teacher alike."""
    return None if views.present is None else ~views.present.repeat(2, 1, 1)


def _mean_over_patches(grid: Tensor, present: Tensor | None) -> Tensor:
    """Mean of a network's tokens over its present patches: [2·m, N, P, D] → [2·m, N, D]."""
    if present is None:
        return grid.mean(dim=2)
    weight = present.repeat(2, 1, 1).to(grid.dtype)
    weight = weight / weight.sum(dim=2, keepdim=True).clamp(min=1)
    return torch.einsum("bnp,bnpd->bnd", weight, grid)
