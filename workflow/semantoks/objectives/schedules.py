"""Learning rate, weight decay, teacher momentum and TTR weight per optimiser step (METHOD §7)."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedules:
    """Curves over ``n_steps`` optimiser steps, as functions of the step (from 0).

    Attributes
    ----------
    n_steps : optimiser steps of the whole training.
    peak_learning_rate : reached after ``warmup_steps``, from 0, linearly; then a cosine to 0.
    weight_decay, final_weight_decay : ends of a cosine.
    momentum, final_momentum : ends of a cosine, for the teacher.
    ttr_weight : at step 0; a cosine to 0 over the first ``ttr_share`` of all steps, then off.
    """

    n_steps: int
    warmup_steps: int
    peak_learning_rate: float
    weight_decay: float = 0.05
    final_weight_decay: float = 0.3
    momentum: float = 0.99
    final_momentum: float = 1.0
    ttr_weight: float = 0.5
    ttr_share: float = 0.05

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup_steps:
            return self.peak_learning_rate * step / self.warmup_steps
        after = max(1, self.n_steps - self.warmup_steps)
        return cosine(self.peak_learning_rate, 0.0, (step - self.warmup_steps) / after)

    def weight_decay_at(self, step: int) -> float:
        """Weight decay of a step."""
        return cosine(self.weight_decay, self.final_weight_decay, step / self.n_steps)

    def momentum_at(self, step: int) -> float:
        """Teacher momentum applied after a step."""
        return cosine(self.momentum, self.final_momentum, step / self.n_steps)

    def ttr_weight_at(self, step: int) -> float:
        """Weight of the Teacher-guided Temporal Regularizer; exactly 0 when it is off."""
        duration = self.ttr_share * self.n_steps
        return cosine(self.ttr_weight, 0.0, step / duration) if step < duration else 0.0


def cosine(start: float, end: float, share: float) -> float:
    """Half a cosine from ``start`` (share 0) to ``end`` (share 1)."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * share))
