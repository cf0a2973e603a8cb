"""Logistic and ridge heads of classes for many permutations of the labels at once.

Permuted labels share their features, so one product serves all of them: an accelerated gradient method (Nesterov, with
restarts) on columns that are orthogonal, whose curvature is bounded column by column (Böhning & Lindsay, Annals of the
Institute of Statistical Mathematics 40, 1988). It minimises what ``linear.fit`` minimises, permutation by permutation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
GRADIENT = 1e-5
"""Largest slope at which a solution counts as found; that of ``linear.logistic``."""
MOST_STEPS = 2000


class ManyHeads:
    """Heads on the same rows with permuted labels.

    Parameters
    ----------
    head : ``logistic`` or ``ridge``.
    features : [n, columns] orthogonal columns of mean 0 (principal scores of these rows).
    labels : [permutations, n] class ids.
    n_classes : at least 2.
    """

    def __init__(self, head: str, features: Floats, labels: npt.NDArray[np.int64], n_classes: int) -> None:
        self.head, self.n_classes = head, n_classes
        self.rows = np.concatenate([features, np.ones((len(features), 1))], axis=1).astype(np.float32)
        true = labels.T[:, :, None] == np.arange(n_classes)  # [n, permutations, classes]
        weights = 1 / (n_classes * np.maximum(true.sum(axis=0), 1))  # [permutations, classes]
        self.share = (true * weights).sum(axis=2)[:, :, None].astype(np.float32)
        self.single = head == "logistic" and n_classes == 2
        wanted = true[:, :, 1:] if self.single else true
        self.wanted = (np.where(true, 1.0, -1.0) if head == "ridge" else wanted).astype(np.float32)
        bound = 1.0 if head == "ridge" else 0.25 if self.single else 0.5
        size = np.square(self.rows).sum(axis=0)[:, None, None]
        self.curvature = bound * size * self.share.max(axis=0)[None]  # [columns, permutations, 1]

    def path(self, penalties: Sequence[float]) -> Iterator[Single]:
        """Weights [columns + 1 (intercept), permutations, outputs] for each penalty, each from the last."""
        weight = np.zeros((self.rows.shape[1], *self.wanted.shape[1:]), dtype=np.float32)
        for penalty in penalties:
            weight = self._solve(weight, penalty)
            yield weight

    def scores(self, features: Floats, weight: Single) -> Floats:
        """Scores [rows, permutations, classes] of other rows, as the heads of ``linear`` give them."""
        made = _product(np.concatenate([features, np.ones((len(features), 1))], axis=1).astype(np.float32), weight)
        return self._probabilities(made).astype(np.float64) if self.head == "logistic" else made.astype(np.float64)

    def _probabilities(self, logits: Single) -> Single:
        if self.single:
            one = special.expit(logits)
            return np.concatenate([1 - one, one], axis=2)
        probabilities: Single = special.softmax(logits, axis=2)
        return probabilities

    def _gradient(self, weight: Single, penalty: Single, chosen: npt.NDArray[np.intp]) -> Single:
        made = _product(self.rows, weight)
        if self.head == "logistic":
            made = self._probabilities(made)[:, :, 1:] if self.single else self._probabilities(made)
        slope = (made - self.wanted[:, chosen]) * self.share[:, chosen]
        return _product(self.rows.T, slope) + penalty * weight

    def _solve(self, start: Single, penalty: float) -> Single:
        solution = start.copy()
        # The intercept is not shrunk.
        shrink = np.full((len(start), 1, 1), penalty, dtype=np.float32)
        shrink[-1] = 0
        left = np.arange(start.shape[1])
        weight, point = start, start
        pace = np.ones((1, len(left), 1), dtype=np.float32)
        for _ in range(MOST_STEPS):
            gradient = self._gradient(point, shrink, left)
            step = point - gradient / (self.curvature[:, left] + shrink).astype(np.float32)
            solution[:, left] = step
            going = np.abs(gradient).max(axis=(0, 2)) > GRADIENT
            if not going.any():
                break
            uphill = (gradient * (step - weight)).sum(axis=(0, 2), keepdims=True) > 0
            faster = np.where(uphill, 1, (1 + np.sqrt(1 + 4 * np.square(pace))) / 2).astype(np.float32)
            point = step + np.where(uphill, 0, (pace - 1) / faster).astype(np.float32) * (step - weight)
            weight, pace = step, faster
            if going.mean() < 0.8:
                left, weight, point, pace = left[going], weight[:, going], point[:, going], pace[:, going]
        return solution


def _product(rows: Single, values: Single) -> Single:
    """[n, m] times [m, permutations, outputs]."""
    made: Single = (rows @ values.reshape(len(values), -1)).reshape(len(rows), *values.shape[1:])
    return made
