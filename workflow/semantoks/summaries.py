"""A task's rows as values, bootstrap draws and comparisons, each protocol in its way (EVALUATION §2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from semantoks.errors import UserError
from semantoks.metrics import METRICS, PAIR_METRICS, SITE_METRIC, site_mean, within_site
from semantoks.protocols import GIVEN, LEAVE_SITE_OUT, RANDOM, TRANSFER
from semantoks.statistics import (
    MOST_UNDEFINED,
    SiteResamples,
    bootstrap_p,
    corrected_t,
    resample_sites,
    resample_units,
    undefined_share,
)
from semantoks.task_scores import Repetition, Row, TaskScores

Floats = npt.NDArray[np.float64]

T_TEST, BOOTSTRAP = "corrected t-test", "bootstrap"

MORE_IN_COMMON = 0.1
"""How much more than random splits a user's own may have in common: this share of what is left to all."""

SAME_EVERYWHERE = "the same difference in every repetition, so its variance is unknown"
UNDEFINED = (
    f"undefined in more than {MOST_UNDEFINED:.0%} of the bootstrap draws (no class to compare, or all numbers the same)"
)


@dataclass(frozen=True)
class Summary:
    """A metric of a row.

    ``values`` [repetitions]; ``draws[k]`` bootstrap draws of the mean over the first k repetitions, for every k that a
    row of the task has (rows are compared over the repetitions that both have); ``seeds`` value of each pretraining
    seed; ``n_train`` [repetitions] participants fitted on.
    """

    metric: str
    values: Floats
    draws: Mapping[int, Floats]
    seeds: Floats
    n_train: Floats

    @property
    def own_draws(self) -> Floats:
        """Bootstrap draws of the mean over all its repetitions."""
        return self.draws[len(self.values)]


@dataclass(frozen=True)
class Comparison:
    """How much one row is above another, p of it, and where there is none, why."""

    difference: float
    p: float
    untested: str | None


def _shared(one: Summary, other: Summary) -> int:
    return min(len(one.values), len(other.values))


def _difference(one: Summary, other: Summary) -> Floats:
    """Difference in each repetition that both have."""
    both = _shared(one, other)
    return one.values[:both] - other.values[:both]


def by_t_test(one: Summary, other: Summary, better: int, n_test: float) -> Comparison:
    """Corrected t-test: two-sided, or with ``better`` ±1 of a difference of that sign.

    Two rows that were fitted on different numbers of participants are compared as if both had the smaller one: the
    fewer they are, the larger the correction.
    """
    differences = _difference(one, other)
    fitted_on = min(float(each.n_train[: len(differences)].mean()) for each in (one, other))
    made = corrected_t(differences * (better or 1), fitted_on, n_test, one.metric in PAIR_METRICS)
    p = made.p_greater if better else made.p
    return Comparison(float(differences.mean()), p, SAME_EVERYWHERE if np.isnan(p) else None)


def by_bootstrap(one: Summary, other: Summary, better: int) -> Comparison:
    """Bootstrap of the paired difference, given the trained models; sided as :func:`by_t_test`."""
    both = _shared(one, other)
    draws = one.draws[both] - other.draws[both]
    p = bootstrap_p(draws * (better or 1), greater=bool(better))
    difference = float(_difference(one, other).mean())
    return Comparison(difference, p, UNDEFINED if undefined_share(draws) > MOST_UNDEFINED else None)


def mean_where_defined(values: Floats) -> Floats:
    """Mean over the first axis without NaN; NaN where nothing else is (a draw that left one class everywhere)."""
    known = ~np.isnan(values)
    mean: Floats = np.full(values.shape[1:], np.nan)
    np.divide(np.where(known, values, 0).sum(axis=0), known.sum(axis=0), out=mean, where=known.any(axis=0))
    return mean


def _summary(
    task: TaskScores, metric: str, row: Row, values: Sequence[Sequence[float]], drawn: Sequence[Sequence[Floats]]
) -> Summary:
    """A metric of a row from its values and bootstrap draws by pretraining seed and repetition."""
    counts = {len(each.scores[0]) for each in task.rows if len(each.scores[0]) <= len(row.scores[0])}
    stacked = [np.array(seed) for seed in drawn]
    draws = {count: np.mean([mean_where_defined(seed[:count]) for seed in stacked], axis=0) for count in counts}
    table = np.array(values)
    return Summary(metric, table.mean(axis=0), draws, table.mean(axis=1), row.n_train)


class RandomSplits:
    """Summaries of a task under repeated random splits.

    The bootstrap draws participants (or families) with all their rows over the repetitions, stratified by class; it is
    conditional on the trained models.
    """

    def __init__(self, task: TaskScores, draws: int, primary: str = "", tested_draws: int = 0) -> None:
        self.task, self.draws, self.primary = task, draws, primary
        self.test = T_TEST if task.protocol == RANDOM or _divided_like_random(task) else BOOTSTRAP
        generator = np.random.default_rng(task.seed)
        stratum = np.zeros(len(task.people))
        if task.kind == "classification":
            for repetition in reversed(task.repetitions):
                stratum[repetition.tested] = repetition.y_true
        family = task.people["family"].to_numpy(dtype=str)
        count = max(draws, tested_draws) if self.test == BOOTSTRAP else draws
        self.weights = resample_units(family, stratum, count, generator)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics."""
        return list(METRICS[self.task.kind])

    def summary(self, metric: str, row: Row) -> Summary:
        """A metric of a row, averaged over pretraining seeds within each repetition."""
        compute = METRICS[self.task.kind][metric]
        weights = self.weights if metric == self.primary else self.weights[: self.draws]
        values, draws = [], []
        for scores in row.scores:
            pairs = list(zip(self.task.repetitions, scores, strict=False))
            values.append([compute(r.y_true, s, np.ones((1, len(s))))[0] for r, s in pairs])
            draws.append([compute(r.y_true, s, weights[:, r.tested]) for r, s in pairs])
        return _summary(self.task, metric, row, values, draws)

    def compare(self, row: Summary, other: Summary, better: int) -> Comparison:
        """A row with another one: two-sided, or with ``better`` ±1 of a difference of that sign."""
        if self.test == BOOTSTRAP:
            return by_bootstrap(row, other, better)
        shared = self.task.repetitions[: _shared(row, other)]
        return by_t_test(row, other, better, float(np.mean([r.n_test for r in shared])))


def _divided_like_random(task: TaskScores) -> bool:
    """Whether two of the user's own splits have no more tested participants in common than two random ones.

    The t-test reads from the spread between splits how much depends on who is tested, and supposes that two of them
    share n_test / (n_train + n_test) of the tested participants. So do random splits and, each fold by itself, repeated
    cross-validation. Where always the same participants are tested there is nothing to read it from.
    """
    splits = len(task.repetitions)
    if task.protocol != GIVEN or splits < 2:
        return False
    times = np.bincount(np.concatenate([r.tested for r in task.repetitions]))
    n_test = float(np.mean([r.n_test for r in task.repetitions]))
    supposed = n_test / (n_test + max(float(row.n_train.mean()) for row in task.rows))
    shared = (times * (times - 1)).sum() / (splits * (splits - 1)) / n_test
    return bool(shared <= supposed + MORE_IN_COMMON * (1 - supposed))


class HeldOutSites:
    """Summaries of a task at new sites: sites are resampled, then participants (or families) within them.

    Under leave-site-out there is one repetition; models of another cohort's random splits are as many, all tested on
    the same participants, whose bins are each training part's own.
    """

    test = BOOTSTRAP

    def __init__(self, task: TaskScores, draws: int, primary: str = "", tested_draws: int = 0) -> None:
        self.task, self.primary = task, primary
        generator = np.random.default_rng(task.seed)
        tested = task.repetitions[0].tested
        if not all(np.array_equal(tested, repetition.tested) for repetition in task.repetitions):
            raise UserError(
                f"{task.cohort}, {task.phenotype}, {task.protocol}: expected the same participants in every repetition;"
                " run the probes of all rows again"
            )
        people = task.people.iloc[tested]
        self.site = people["site_group"].to_numpy(dtype=str)
        family = people["family"].to_numpy(dtype=str)
        count = max(draws, tested_draws)
        self.resamples: SiteResamples = resample_sites(self.site, family, count, generator, pool=draws)
        self.weights = self.resamples.weights(None if primary in METRICS[task.kind] else draws)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics: within sites, then pooled over sites."""
        return [SITE_METRIC[self.task.kind], *METRICS[self.task.kind]]

    def summary(self, metric: str, row: Row) -> Summary:
        """A metric of a row, averaged over pretraining seeds within each repetition."""
        made = [
            [self._value(metric, r, scores) for r, scores in zip(self.task.repetitions, seed, strict=False)]
            for seed in row.scores
        ]
        values = [[value for value, _ in seed] for seed in made]
        draws = [[drawn for _, drawn in seed] for seed in made]
        return _summary(self.task, metric, row, values, draws)

    def _value(self, metric: str, repetition: Repetition, scores: Floats) -> tuple[float, Floats]:
        """A metric of one model's scores, and its bootstrap draws."""
        y_true = repetition.y_true
        if metric == SITE_METRIC[self.task.kind]:
            pools = zip(self.resamples.rows, self.resamples.pool, strict=True)
            drawn = [within_site(self.task.kind, y_true[rows], scores[rows], pool) for rows, pool in pools]
            value = site_mean(self.task.kind, y_true, scores, self.site)
            return value, self.resamples.mean([v for v, _ in drawn], [w for _, w in drawn])
        compute = METRICS[self.task.kind][metric]
        return compute(y_true, scores, np.ones((1, len(scores))))[0], compute(y_true, scores, self.weights)

    def compare(self, row: Summary, other: Summary, better: int) -> Comparison:
        """A row with another one (bootstrap over sites and participants), sided as in RandomSplits."""
        return by_bootstrap(row, other, better)

    def by_site(self, row: Row) -> Iterator[dict[str, Any]]:
        """Each site's own value, averaged over seeds and repetitions; NaN where it is not defined (one class)."""
        for rows in self.resamples.rows:
            one = np.ones((1, len(rows)))
            values = [
                within_site(self.task.kind, r.y_true[rows], scores[rows], one)[0]
                for seed in row.scores
                for r, scores in zip(self.task.repetitions, seed, strict=False)
            ]
            yield {
                "site_group": self.site[rows[0]],
                "value": float(mean_where_defined(np.array(values))[0]),
                "n": len(rows),
            }


def summarise(task: TaskScores, settings: Mapping[str, Any], tested_draws: int) -> RandomSplits | HeldOutSites:
    """The protocol's way of summarising a task: by sites where whole sites are new to the models.

    Parameters
    ----------
    task : predictions of all rows.
    settings : the section ``tables``.
    tested_draws : bootstrap draws of the primary metric where the bootstrap is the test, if more than otherwise.
    """
    sites = task.people["site_group"]
    several = task.protocol == TRANSFER and sites.nunique() > 1
    if several and sites.isna().any():
        raise UserError(
            f"{task.cohort}, {task.phenotype}: expected participants of known site only, as there are several, "
            f"found {int(sites.isna().sum())} without; make the splits and all rows again"
        )
    by_sites = task.protocol == LEAVE_SITE_OUT or several
    primary = settings["primary"][LEAVE_SITE_OUT if by_sites else RANDOM][task.kind]
    return (HeldOutSites if by_sites else RandomSplits)(task, settings["draws"], primary, tested_draws)
