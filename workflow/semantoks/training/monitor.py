"""Metrics of every step, the progress bar, and the stop when training has gone wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from semantoks.errors import UserError
from semantoks.objectives.self_distillation import Losses, Projections


def measure(losses: Losses, student: Projections, teacher: Projections) -> dict[str, Tensor]:
    """What is logged of a step besides its schedules; scalars on the device, nothing waits for it.

    ``feature_sd``: sd over the batch of view 1's CLS projection, averaged; ``effective_rank``: exponential of the
    entropy of its covariance's eigenvalues (Roy & Vetterli 2007); ``token_cosine``: mean cosine between two
    different tokens of one crop, 1 when tokens have collapsed (NaN in steps that compute no tokens).
    """
    features = student.cls[0].detach().float()
    return {
        "loss": losses.total.detach(),
        "cls_loss": losses.cls,
        "ttr_loss": losses.ttr,
        "token_loss": losses.token,
        "similarity": losses.similarity,
        "coding_rate": losses.coding_rate,
        "feature_sd": features.std(dim=0).mean(),
        "teacher_feature_sd": teacher.cls[0].float().std(dim=0).mean(),
        "effective_rank": effective_rank(features),
        "token_cosine": token_cosine(teacher.outputs),
    }


def effective_rank(features: Tensor) -> Tensor:
    """exp(entropy) of the normalised eigenvalues of the covariance of ``features`` [m, p]."""
    centred = features - features.mean(dim=0)
    gram = centred @ centred.T if len(features) < features.shape[1] else centred.T @ centred
    eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0)
    share = eigenvalues / eigenvalues.sum().clamp(min=1e-12)
    return torch.exp(-(share * share.clamp(min=1e-12).log()).sum())


def token_cosine(tokens: Tensor) -> Tensor:
    """Mean cosine of two different tokens of a crop, of ``tokens`` [B, 1 + n, D] with CLS first."""
    units = F.normalize(tokens[:, 1:].float(), dim=-1)
    n_tokens = units.shape[1]
    if n_tokens < 2:
        return tokens.new_tensor(torch.nan, dtype=torch.float32)
    total = units.sum(dim=1).square().sum(dim=-1)
    return ((total - n_tokens) / (n_tokens * (n_tokens - 1))).mean()


class MetricsLog:
    """One JSON object per logged step in ``path``; lines after ``first_step`` of an earlier run are dropped."""

    def __init__(self, path: Path, first_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines(keepends=True) if first_step and path.is_file() else []
        complete = [line for line in lines if line.endswith("\n")]
        path.write_text("".join(line for line in complete if json.loads(line)["step"] < first_step))
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, metrics: dict[str, Any]) -> None:
        """Append a line; NaN becomes null."""
        clean = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in metrics.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Watchdog:
    """Stops a training that cannot recover.

    Parameters
    ----------
    min_coding_rate, patience : collapse is γR below this for so many logged steps in a row; 0 never stops.
    """

    def __init__(self, min_coding_rate: float, patience: int) -> None:
        self._min_coding_rate, self._patience, self._low = min_coding_rate, patience, 0

    def check(self, metrics: dict[str, Any]) -> None:
        """Look at a step's metrics.

        Raises
        ------
        UserError
            When the loss is not finite, or γR stayed at collapse.
        """
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["gradient_norm"])):
            raise UserError(
                f"pretraining: step {metrics['step']}: expected a finite loss and gradient, found loss "
                f"{metrics['loss']}, gradient norm {metrics['gradient_norm']}; check the shards for NaN, then try a "
                "lower optimiser.learning_rate, more optimiser.warmup_epochs, or run.precision: float32"
            )
        self._low = self._low + 1 if metrics["coding_rate"] < self._min_coding_rate else 0
        if self._low >= self._patience:
            raise UserError(
                f"pretraining: step {metrics['step']}: expected a coding rate of at least {self._min_coding_rate}, "
                f"found {metrics['coding_rate']:.4f}, for {self._low} logged steps: all scans have the same features "
                "(collapse); try a larger optimiser.batch, a lower optimiser.learning_rate, a higher "
                "optimiser.momentum or objective.ttr_weight; run.min_coding_rate: 0 lets it go on"
            )


def progress_bar(n_steps: int, first_step: int) -> tqdm:
    """A bar over optimiser steps with rate and ETA; silent where stderr is no terminal."""
    return tqdm(total=n_steps, initial=first_step, unit="step", desc="pretrain", disable=None, dynamic_ncols=True)
