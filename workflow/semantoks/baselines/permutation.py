"""Permutation of the labels through the whole chain of a solved head: tuning, refit and test (EVALUATION §2).

A t-test over repetitions has to suppose how much their differences correlate, and takes differences between sites for
success. Under permuted labels both happen in the same way, so nothing has to be supposed.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import linalg, stats

from semantoks.baselines.features import Index
from semantoks.baselines.permuted_heads import ManyHeads
from semantoks.baselines.tasks import Permuted, Task
from semantoks.metrics import FEWEST_FOR_R, SITE_METRIC, varies
from semantoks.protocols import LEAVE_SITE_OUT, SEPARATE_FOLDS, TRANSFER

Floats = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]


def permuted_orders(members: Index, people: pd.DataFrame, count: int, name: str) -> npt.NDArray[np.intp]:
    """Whose label each unit gets in each permutation.

    Labels move within a site, and families move as a whole to families of the same make-up: what sites and relatives
    have in common stays as it is. Sessions of a participant at one site change places among themselves as well: the
    multi-level exchangeability blocks of Winkler et al. (NeuroImage 123, 2015). A label that no session changes moves
    between participants alone, one that every participant has before and after within them alone.

    Parameters
    ----------
    members : row numbers of the units (participants or sessions) whose labels move.
    people : columns ``cohort``, ``participant_id``, ``site`` and ``family`` of all units, in the order of the rows.
    count : number of permutations.
    name : what the generator is seeded with; the same for all rows of a table.

    Returns
    -------
    [count, units] row numbers; who is not among the members keeps the own.
    """
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    orders = np.tile(np.arange(len(people)), (count, 1))
    blocks = _blocks(members, people)
    for shape in sorted(blocks):
        block = np.array(blocks[shape])
        drawn = block[generator.permuted(np.tile(np.arange(len(block)), (count, 1)), axis=1)]
        for sessions in _sessions(shape):
            drawn[:, :, sessions] = generator.permuted(drawn[:, :, sessions], axis=2)
        orders[:, block] = drawn
    return orders


Shape = tuple[tuple[str, ...], ...]
"""Make-up of a family: for each participant the sites of the sessions."""


def _blocks(members: Index, people: pd.DataFrame) -> dict[Shape, list[list[int]]]:
    """Row numbers of each family, participant by participant, by the family's make-up."""
    site, family, person = (
        (people["cohort"] + "/" + people[column].fillna("")).to_numpy(dtype=str)
        for column in ("site", "family", "participant_id")
    )
    families: dict[str, dict[str, list[int]]] = {}
    for row in sorted(members.tolist(), key=lambda row: (site[row], row)):
        families.setdefault(family[row], {}).setdefault(person[row], []).append(row)
    blocks: dict[Shape, list[list[int]]] = {}
    for name in sorted(families):
        persons = sorted((tuple(map(str, site[rows])), rows) for rows in families[name].values())
        blocks.setdefault(tuple(sites for sites, _ in persons), []).append([row for _, rows in persons for row in rows])
    return blocks


def _sessions(shape: Shape) -> Iterator[slice]:
    """Where in a block stand several sessions of one participant at one site."""
    start = 0
    for sites in shape:
        for _, same in itertools.groupby(sites):
            end = start + len(list(same))
            if end - start > 1:
                yield slice(start, end)
            start = end


def permute(
    head: str, task: Task, scores: tuple[Floats, Floats], orders: npt.NDArray[np.intp], settings: Mapping[str, Any]
) -> Permuted:
    """Tune, refit and test a solved head on permuted labels, exactly as on the true ones.

    Parameters
    ----------
    scores : principal scores of all participants, of the training part and of the part fitted on in the end.
    orders : of :func:`permuted_orders`.
    settings : the section ``probe``.
    """
    both = np.sort(np.concatenate([task.training, task.validation])) if settings["refit"] else task.training
    labels, penalties = task.target[orders], settings["penalties"]
    if task.n_classes:
        found = _permute_classes(head, task, scores, both, labels, penalties)
    else:
        found = _permute_numbers(task, scores, both, labels.T, penalties)
    return Permuted(labels[:, task.test], found, (labels == task.target).all(axis=1))


def _permute_classes(
    head: str,
    task: Task,
    scores: tuple[Floats, Floats],
    both: Index,
    labels: npt.NDArray[np.int64],
    penalties: Sequence[float],
) -> Single:
    """Scores [permutations, test, classes] of all permutations at once, for logistic and ridge."""
    first, second = scores
    strongest_first = sorted(penalties, reverse=True)
    heads = ManyHeads(head, first[task.training], labels[:, task.training], task.n_classes)
    errors = []
    for weight in heads.path(strongest_first):
        errors.append(_losses(head, heads.scores(first[task.validation], weight), labels[:, task.validation].T))
    best = np.argmin(errors, axis=0)
    found = np.empty((len(labels), len(task.test), task.n_classes), dtype=np.float32)
    for number, penalty in enumerate(strongest_first):
        chosen = np.flatnonzero(best == number)
        if len(chosen):
            heads = ManyHeads(head, second[both], labels[chosen][:, both], task.n_classes)
            (weight,) = heads.path([penalty])
            found[chosen] = np.moveaxis(heads.scores(second[task.test], weight), 1, 0)
    return found


def _losses(head: str, scores: Floats, labels: npt.NDArray) -> Floats:
    """``linear.loss`` of each permutation [permutations], of scores [rows, permutations, classes]."""
    true = labels[:, :, None] == np.arange(scores.shape[2])
    if head == "logistic":
        each = -np.log(np.maximum((scores * true).sum(axis=2), np.finfo(np.float64).tiny))
    else:
        each = np.square(scores - np.where(true, 1.0, -1.0)).mean(axis=2)
    sums, counts = (each[:, :, None] * true).sum(axis=0), true.sum(axis=0)
    return _mean_of_defined(np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0).T)


def _permute_numbers(
    task: Task, scores: tuple[Floats, Floats], both: Index, targets: Floats, penalties: Sequence[float]
) -> Single:
    """Numbers [permutations, test, 1] of all permutations at once: a ridge regression is linear in its targets."""
    first, second = scores
    strongest_first = sorted(penalties, reverse=True)
    tuned = _ridge_path(first, task.training, task.validation, targets, strongest_first)
    errors = np.stack([((made - targets[task.validation]) ** 2).mean(axis=0) for made in tuned])
    best = errors.argmin(axis=0)
    found = np.empty((len(task.test), targets.shape[1]), dtype=np.float32)
    for number, penalty in enumerate(strongest_first):
        chosen = np.flatnonzero(best == number)
        if len(chosen):
            found[:, chosen] = next(_ridge_path(second, both, task.test, targets[:, chosen], [penalty]))
    return found.T[:, :, None]


def _ridge_path(
    features: Floats, fitted: Index, tested: Index, targets: Floats, penalties: Sequence[float]
) -> Iterator[Single]:
    """Predictions [tested, targets] of ``linear.ridge`` for each penalty; large products in float32."""
    mean = features[fitted].mean(axis=0)
    level = targets[fitted].mean(axis=0)
    centred = features[fitted] - mean
    variance, axes = linalg.eigh(centred.T @ centred, driver="evd", overwrite_a=True, check_finite=False)
    projected = (centred @ axes).T.astype(np.float32) @ (targets[fitted] - level).astype(np.float32)
    rotated = (features[tested] - mean) @ axes
    for penalty in penalties:
        shrunk = rotated / (np.maximum(variance, 0) + penalty * len(fitted))
        yield shrunk.astype(np.float32) @ projected + level.astype(np.float32)


def null_values(made: Sequence[tuple[Task, Permuted]], site: npt.NDArray) -> dict[str, Floats]:
    """Each metric [permutations] of a row under permuted labels, as the tables compute it from true ones.

    Folds of a repetition are pooled (but for ``SEPARATE_FOLDS``), metrics are averaged over repetitions.

    Parameters
    ----------
    made : every task of one phenotype and protocol.
    site : institution of each participant; the mean of the sites' own values is a further metric where several are
        tested one by one.
    """
    by_site = made[0][0].protocol in (LEAVE_SITE_OUT, TRANSFER)
    splits: dict[tuple[int, str], list[tuple[Task, Permuted]]] = {}
    for task, permuted in made:
        fold = task.fold if task.protocol in SEPARATE_FOLDS else ""
        splits.setdefault((task.repetition, fold), []).append((task, permuted))
    every = []
    for pairs in splits.values():
        targets = np.concatenate([permuted.targets for _, permuted in pairs], axis=1)
        scores = np.concatenate([permuted.scores for _, permuted in pairs], axis=1)
        kind = "classification" if pairs[0][0].n_classes else "regression"
        found = _metrics(kind, targets, scores)
        if by_site:
            own = site[np.concatenate([task.test for task, _ in pairs])].astype(str)
            found[SITE_METRIC[kind]] = _site_values(kind, targets, scores, own)
        every.append(found)
    return {name: _mean_of_defined(np.stack([values[name] for values in every])) for name in every[0]}


def _site_values(kind: str, targets: npt.NDArray, scores: npt.NDArray, site: npt.NDArray) -> Floats:
    """``metrics.site_mean`` of each permutation; which sites have a value of their own is up to its labels."""
    total, weight = np.zeros(len(targets)), np.zeros(len(targets))
    for name in np.unique(site):
        rows = site == name
        for value, own in _site_parts(kind, targets[:, rows], scores[:, rows]):
            total += np.where(own > 0, value, 0) * own
            weight += own
    return _ratio(total, weight)


def _site_parts(kind: str, targets: npt.NDArray, scores: npt.NDArray) -> Iterator[tuple[Floats, Floats]]:
    """A site's value and its weight [permutations] as ``metrics.within_site``: of classes one for each comparison."""
    if kind == "classification":
        yield from _areas(targets, scores)
        return
    value = _correlations(targets, scores[:, :, 0])
    defined = ~np.isnan(value) & (targets.shape[1] >= FEWEST_FOR_R)
    yield value, np.where(defined, targets.shape[1] - 1.0, 0.0)


def _metrics(kind: str, targets: npt.NDArray, scores: npt.NDArray) -> dict[str, Floats]:
    """Metrics [permutations] of targets [permutations, n] and scores [permutations, n, classes or 1]."""
    if kind == "classification":
        return _class_metrics(targets, scores)
    missed = targets - scores[:, :, 0]
    spread = np.square(targets - targets.mean(axis=1, keepdims=True)).sum(axis=1)
    return {
        "r": _correlations(targets, scores[:, :, 0]),
        "r2": 1 - _ratio(np.square(missed).sum(axis=1), np.where(varies(targets), spread, 0)),
        "mae": np.abs(missed).mean(axis=1),
    }


def _class_metrics(targets: npt.NDArray, scores: npt.NDArray) -> dict[str, Floats]:
    """``metrics.METRICS`` of classes, of all permutations at once."""
    predicted = scores.argmax(axis=2)
    recalls, harmonic = [], []
    for k in range(scores.shape[2]):
        true, guess = targets == k, predicted == k
        hit, n_true = (true & guess).sum(axis=1), true.sum(axis=1)
        recalls.append(_ratio(hit, n_true))
        harmonic.append(_ratio(2 * hit, n_true + guess.sum(axis=1)))
    areas = [value for value, _ in _areas(targets, scores)]
    named = {"balanced_accuracy": recalls, "auroc": areas, "macro_f1": harmonic}
    return {name: _mean_of_defined(np.stack(values)) for name, values in named.items()}


def _areas(targets: npt.NDArray, scores: npt.NDArray) -> Iterator[tuple[Floats, Floats]]:
    """Area under the ROC curve and number of pairs [permutations]: of two classes once, of more for each class."""
    two = scores.shape[2] == 2
    for k in [1] if two else range(scores.shape[2]):
        positive = targets == k
        ranks = stats.rankdata(scores[:, :, 1] - scores[:, :, 0] if two else scores[:, :, k], axis=1)
        above = positive.sum(axis=1)
        pairs = (above * (positive.shape[1] - above)).astype(np.float64)
        yield _ratio((ranks * positive).sum(axis=1) - above * (above + 1) / 2, pairs), pairs


def _ratio(numerator: npt.NDArray, denominator: npt.NDArray) -> Floats:
    made: Floats = np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)
    return made


def _mean_of_defined(values: Floats) -> Floats:
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(axis=0), known.sum(axis=0))


def _correlations(targets: npt.NDArray, scores: npt.NDArray) -> Floats:
    """``metrics.pearson_r`` of each row of two matrices."""
    true = targets - targets.mean(axis=1, keepdims=True)
    guess = scores - scores.mean(axis=1, keepdims=True, dtype=np.float64)
    norm = np.sqrt(np.square(true).sum(axis=1) * np.square(guess).sum(axis=1))
    known, constant = varies(targets), ~varies(scores)
    return np.where(known & constant, 0.0, _ratio((true * guess).sum(axis=1), np.where(known, norm, 0)))
