"""Linear heads that are solved, not trained by steps: logistic, ridge and majority, with one tuning budget.

Features enter as principal scores of the training part. A penalised linear head depends on the features only
through their inner products, so the fit on at most n scores equals the fit on all features, at a fraction of the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import linalg, optimize, special

from semantoks.baselines.features import Index, Matrix

Floats = npt.NDArray[np.float64]
SMALLEST_VARIANCE = 1e-6
"""Principal directions with less than this share of the largest one's variance are rounding errors in float32."""


class Head(Protocol):
    """A fitted head: :meth:`scores` is [n, classes] (larger is more likely) or [n, 1] (the predicted number)."""

    def scores(self, features: Floats) -> Floats:
        """Scores of the rows of ``features``."""
        ...


def principal_scores(design: Matrix, training: Index) -> Floats:
    """Coordinates of all rows in the space that the training rows span, scaled to mean squared norm 1 in training.

    Parameters
    ----------
    design : [n, features] float32. It is centred on the training rows, which leaves every head with an intercept as it
        is: indicators of sites come as 0 and 1.
    training : row numbers.

    Returns
    -------
    [n, rank] float64; the columns are orthogonal on the training rows. The scale makes one grid of penalties fit
    features of any number and size.
    """
    fitted = design[training]
    mean = fitted.mean(axis=0)
    fitted -= mean
    wide = design.shape[1] > len(training)
    inner = (design @ fitted.T - mean @ fitted.T).astype(np.float64) if wide else None
    gram = inner[training] if inner is not None else fitted.T.astype(np.float64) @ fitted
    variance, axes = linalg.eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
    kept = variance > SMALLEST_VARIANCE * max(variance[-1], np.finfo(np.float64).tiny)
    if not kept.any():
        return np.zeros((len(design), 1))
    variance, axes = variance[kept], axes[:, kept]
    scores: Floats = inner @ (axes / np.sqrt(variance)) if inner is not None else (design - mean) @ axes
    scores /= np.sqrt(variance.sum() / len(training))
    return scores


@dataclass(frozen=True)
class Linear:
    """Scores ``features @ weight + intercept``."""

    weight: Floats
    intercept: Floats

    def scores(self, features: Floats) -> Floats:
        """Scores of the rows of ``features``."""
        made: Floats = features @ self.weight + self.intercept
        return made


@dataclass(frozen=True)
class Logistic:
    """Class probabilities of a logistic (two classes, one output) or multinomial model."""

    linear: Linear

    def scores(self, features: Floats) -> Floats:
        """Probabilities of the rows of ``features``, [n, classes]."""
        logits = self.linear.scores(features)
        probabilities: Floats = special.softmax(_both(logits), axis=1)
        return probabilities


def _both(logits: Floats) -> Floats:
    """Logits of two classes from one; others as they are."""
    return np.concatenate([np.zeros_like(logits), logits], axis=1) if logits.shape[1] == 1 else logits


@dataclass(frozen=True)
class Constant:
    """The same scores for everybody: class shares, or the mean, of the training part."""

    values: Floats

    def scores(self, features: Floats) -> Floats:
        """``values`` once per row."""
        return np.tile(self.values, (len(features), 1))


def fit(head: str, features: Floats, target: npt.NDArray, n_classes: int, penalties: Sequence[float]) -> list[Head]:
    """Fit one head with each of several penalties.

    Parameters
    ----------
    head : ``logistic`` (classes only), ``ridge`` or ``majority``.
    features : [n, features].
    target : [n] class ids, or numbers when ``n_classes`` is 0.
    n_classes : number of classes; 0 for a regression.
    penalties : from strong to weak; weights of the squared norm of the coefficients, relative to the mean loss per
        participant. Classes weigh the same whatever their size.
    """
    if head == "majority":
        values = np.bincount(target, minlength=n_classes) / len(target) if n_classes else target.mean(keepdims=True)
        return [Constant(np.asarray(values, dtype=np.float64))] * len(penalties)
    if not n_classes:
        return ridge(features, target[:, None], np.ones(len(target)), penalties)
    true = target[:, None] == np.arange(n_classes)
    weights = (len(target) / (n_classes * np.maximum(true.sum(axis=0), 1)))[target]
    if head == "logistic":
        return logistic(features, target, n_classes, weights, penalties)
    assert head == "ridge", head
    return ridge(features, np.where(true, 1.0, -1.0), weights, penalties)


def logistic(
    features: Floats, target: npt.NDArray, n_classes: int, weights: Floats, penalties: Sequence[float]
) -> list[Head]:
    """Weighted logistic regression with intercept, from the strongest penalty to the weakest, each from the last.

    Minimises Σ wᵢ·(−log p(yᵢ)) / n + penalty/2·|b|², as ``sklearn.linear_model.LogisticRegression`` does with
    C = 1 / (n·penalty); starting from the neighbour's solution saves most of its time.

    Parameters
    ----------
    features : [n, features].
    target : [n] class ids.
    weights : [n] weight of each row.
    penalties : from strong to weak.
    """
    n, width = features.shape
    outputs = 1 if n_classes == 2 else n_classes
    true = (target[:, None] == np.arange(n_classes)).astype(np.float64)
    share = (weights / n)[:, None]

    def objective(flat: Floats, penalty: float) -> tuple[float, Floats]:
        weight, intercept = flat[:-outputs].reshape(width, outputs), flat[-outputs:]
        log_p = special.log_softmax(_both(features @ weight + intercept), axis=1)
        slope = ((np.exp(log_p) - true) * share)[:, -outputs:]
        value = -(share * true * log_p).sum() + penalty / 2 * (weight**2).sum()
        return value, np.concatenate([(features.T @ slope + penalty * weight).ravel(), slope.sum(axis=0)])

    flat = np.zeros((width + 1) * outputs)
    heads: list[Head] = []
    for penalty in penalties:
        options = {"maxiter": 2000, "gtol": 1e-5, "ftol": 64 * np.finfo(np.float64).eps}
        flat = optimize.minimize(objective, flat, (penalty,), "L-BFGS-B", jac=True, options=options).x
        heads.append(Logistic(Linear(flat[:-outputs].reshape(width, outputs), flat[-outputs:])))
    return heads


def ridge(features: Floats, targets: Floats, weights: Floats, penalties: Sequence[float]) -> list[Head]:
    """Weighted ridge regression with intercept, for all penalties from one eigendecomposition.

    Minimises Σ wᵢ·(yᵢ − xᵢ·b − a)² + n·penalty·|b|², as ``sklearn.linear_model.Ridge`` does for one penalty.

    Parameters
    ----------
    features : [n, features].
    targets : [n, outputs].
    weights : [n] weight of each row.
    penalties : relative to n.
    """
    mean = np.average(features, axis=0, weights=weights)
    level = np.average(targets, axis=0, weights=weights)
    root = np.sqrt(weights)[:, None]
    centred = (features - mean) * root
    variance, axes = linalg.eigh(centred.T @ centred, driver="evd", overwrite_a=True, check_finite=False)
    projected = axes.T @ (centred.T @ ((targets - level) * root))
    heads: list[Head] = []
    for penalty in penalties:
        weight = axes @ (projected / (np.maximum(variance, 0) + penalty * len(features))[:, None])
        heads.append(Linear(weight, level - mean @ weight))
    return heads


def loss(head: str, scores: Floats, target: npt.NDArray, n_classes: int) -> float:
    """The loss a head minimises, on other rows; classes weigh the same whatever their size.

    Logistic: −log of the true class's probability. Ridge: squared error from 1 (true class) and −1 (others), or from
    the number.
    """
    if not n_classes:
        return float(np.mean((scores[:, 0] - target) ** 2))
    true = target[:, None] == np.arange(n_classes)
    if head == "logistic":
        each = -np.log(np.maximum(scores[true], np.finfo(np.float64).tiny))
    else:
        each = np.mean((scores - np.where(true, 1.0, -1.0)) ** 2, axis=1)
    return float(np.mean([each[target == k].mean() for k in np.unique(target)]))


def tune(
    head: str,
    scores: Floats,
    target: npt.NDArray,
    n_classes: int,
    parts: tuple[Index, Index],
    penalties: Sequence[float],
) -> tuple[float, Head]:
    """Choose the penalty with the smallest loss on the validation part; ties keep the stronger penalty.

    Parameters
    ----------
    scores : [n, rank] principal scores of all participants.
    target : [n] class ids or numbers.
    parts : row numbers of the training and of the validation part.
    penalties : the tuning budget, the same for every row of a table.

    Returns
    -------
    The chosen penalty and the head fitted with it on the training part.
    """
    training, validation = parts
    best: tuple[float, float, Head] | None = None
    strongest_first = sorted(penalties, reverse=True)
    heads = fit(head, scores[training], target[training], n_classes, strongest_first)
    for penalty, fitted in zip(strongest_first, heads, strict=True):
        error = loss(head, fitted.scores(scores[validation]), target[validation], n_classes)
        if best is None or error < best[0]:
            best = (error, penalty, fitted)
    assert best is not None
    return best[1], best[2]
