"""Metrics of predictions, for many weightings of the same rows at once, as a bootstrap needs them.

Every metric takes ``y_true`` [n] (class ids, or numbers), ``scores`` [n, classes] (larger is more likely; the
prediction is the largest) or [n, 1] (the predicted number) and ``weights`` [draws, n], and gives [draws] float64.
Where a draw leaves a metric undefined it is NaN: one without a class that ``y_true`` has is no smaller version of the
same task (whoever calls everybody the other class would be right every time).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def balanced_accuracy(y_true: Floats, scores: Floats, weights: Floats) -> Floats:
    """Mean of the recalls of the classes of ``y_true``; NaN where a draw lacks one of them."""
    right = (scores.argmax(axis=1) == y_true).astype(np.float64)
    recalls = [_ratio(weights @ (right * (y_true == k)), weights @ (y_true == k)) for k in np.unique(y_true)]
    mean: Floats = np.mean(recalls, axis=0)
    return mean


def macro_f1(y_true: Floats, scores: Floats, weights: Floats) -> Floats:
    """Mean of the classes' F1 = 2·tp / (2·tp + fp + fn), over those of ``y_true`` and those predicted in a draw.

    NaN where a draw lacks a class of ``y_true``.
    """
    predicted = scores.argmax(axis=1)
    values = []
    for k in np.union1d(np.unique(y_true), np.unique(predicted)):
        hit = weights @ ((predicted == k) & (y_true == k)).astype(np.float64)
        values.append(_ratio(2 * hit, weights @ (predicted == k) + weights @ (y_true == k)))
    return np.where(_has_every_class(y_true, weights), _mean_of_defined(np.stack(values)), np.nan)


def auroc(y_true: Floats, scores: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve; with more than two classes the mean of each class against the rest.

    NaN where a draw lacks a class of ``y_true``.
    """
    if scores.shape[1] == 2:
        return auroc_and_pairs(y_true == 1, scores[:, 1] - scores[:, 0], weights)[0]
    areas = [auroc_and_pairs(y_true == k, scores[:, k], weights)[0] for k in range(scores.shape[1])]
    return np.where(_has_every_class(y_true, weights), _mean_of_defined(np.stack(areas)), np.nan)


def auroc_and_pairs(positive: npt.NDArray[np.bool_], score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Share of (positive, negative) pairs in the right order, ties counting half, and the weight of all pairs [draws].

    This is the Mann–Whitney form of the area under the ROC curve.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(score[order]) > 0]))
    ordered = weights[:, order]
    above = np.add.reduceat(ordered * positive[order], starts, axis=1)
    below = np.add.reduceat(ordered * ~positive[order], starts, axis=1)
    right = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
    pairs = above.sum(axis=1) * below.sum(axis=1)
    return _ratio(right, pairs), pairs


def varies(values: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Whether numbers differ by more than rounding, along the last axis."""
    largest = np.abs(values).max(axis=-1, initial=1e-300)
    found: npt.NDArray[np.bool_] = np.ptp(values, axis=-1) > 1e-12 * largest
    return found


def pearson_r(y_true: Floats, scores: Floats, weights: Floats) -> Floats:
    """Pearson correlation of true and predicted numbers; 0 when all predictions are the same.

    NaN where all true numbers are.
    """
    if not varies(y_true):
        return np.full(len(weights), np.nan)
    predicted = scores[:, 0]
    total = weights.sum(axis=1)
    true = y_true - y_true.mean()
    guess = predicted - predicted.mean()
    mean_true, mean_guess = _ratio(weights @ true, total), _ratio(weights @ guess, total)
    covariance = _ratio(weights @ (true * guess), total) - mean_true * mean_guess
    variance_true = _ratio(weights @ true**2, total) - mean_true**2
    variance_guess = _ratio(weights @ guess**2, total) - mean_guess**2
    if not varies(predicted):
        return np.where(variance_true > 0, 0.0, np.nan)
    return _ratio(covariance, np.sqrt(np.maximum(variance_true * variance_guess, 0)))


def r_squared(y_true: Floats, scores: Floats, weights: Floats) -> Floats:
    """Coefficient of determination, 1 − residual / total sum of squares around the tested participants' mean.

    NaN where all true numbers are the same.
    """
    if not varies(y_true):
        return np.full(len(weights), np.nan)
    total = weights.sum(axis=1)
    true = y_true - y_true.mean()
    spread = weights @ true**2 - _ratio((weights @ true) ** 2, total)
    residual: Floats = weights @ (y_true - scores[:, 0]) ** 2
    return 1 - _ratio(residual, spread)


def mean_absolute_error(y_true: Floats, scores: Floats, weights: Floats) -> Floats:
    """Mean absolute error, in the phenotype's unit."""
    return _ratio(weights @ np.abs(y_true - scores[:, 0]), weights.sum(axis=1))


def _has_every_class(y_true: Floats, weights: Floats) -> npt.NDArray[np.bool_]:
    """Whether each draw has all classes of ``y_true`` [draws]."""
    every: npt.NDArray[np.bool_] = np.all([weights @ (y_true == k) > 0 for k in np.unique(y_true)], axis=0)
    return every


def _mean_of_defined(values: Floats) -> Floats:
    """Mean over the first axis of what is not NaN."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(axis=0), known.sum(axis=0).astype(np.float64))


Metric = Callable[[Floats, Floats, Floats], Floats]
METRICS: dict[str, dict[str, Metric]] = {
    "classification": {"balanced_accuracy": balanced_accuracy, "auroc": auroc, "macro_f1": macro_f1},
    "regression": {"r": pearson_r, "r2": r_squared, "mae": mean_absolute_error},
}
"""Metrics of each type of phenotype."""

PAIR_METRICS = frozenset({"auroc", "r", "r2", "mae"})
"""Metrics that are, but for a scale, a sum over pairs of a participant fitted on and one tested; what counts whether a
class was right is not. See :func:`semantoks.statistics.corrected_t`."""

SMALLER_IS_BETTER = frozenset({"mae"})
SITE_METRIC = {"classification": "site_auroc", "regression": "site_r"}
"""Under leave-site-out the weighted mean of what each site gets by itself."""


FEWEST_FOR_R = 3
"""With fewer participants a site has no correlation of its own."""


def within_site(kind: str, y_true: Floats, scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """A site's own value and its weight in the mean over sites [draws].

    Classification: AUROC, weighted by the number of pairs that it compares (with several classes: each class against
    the rest). Regression: Pearson r, weighted by the number of participants less one. NaN with weight 0 where a site
    has one class, or fewer than three participants for r.
    """
    if kind == "regression":
        # Effective participants of a resampled site: those that differ.
        distinct = (weights > 0).sum(axis=1)
        value = np.where(distinct >= FEWEST_FOR_R, pearson_r(y_true, scores, weights), np.nan)
        return value, np.where(np.isnan(value), 0.0, weights.sum(axis=1) - 1)
    if scores.shape[1] == 2:
        return auroc_and_pairs(y_true == 1, scores[:, 1] - scores[:, 0], weights)
    parts = [auroc_and_pairs(y_true == k, scores[:, k], weights) for k in range(scores.shape[1])]
    pairs = np.stack([weight for _, weight in parts])
    right = np.stack([np.where(weight > 0, value, 0) * weight for value, weight in parts]).sum(axis=0)
    return _ratio(right, pairs.sum(axis=0)), pairs.sum(axis=0)


def site_mean(kind: str, y_true: Floats, scores: Floats, site: npt.NDArray) -> float:
    """Mean of the sites' own values (:func:`within_site`), weighted; NaN where no site has one."""
    found = [
        within_site(kind, y_true[site == name], scores[site == name], np.ones((1, int((site == name).sum()))))
        for name in np.unique(site)
    ]
    value, weight = (np.array([pair[number][0] for pair in found]) for number in (0, 1))
    known = weight > 0
    return float(np.average(value[known], weights=weight[known])) if known.any() else float("nan")
