"""Intervals and paired tests of a probe table (EVALUATION §2).

Repeated random splits overlap, so their differences are not independent: the corrected t of Nadeau & Bengio (2003).
Held-out sites are few and unequal: sites are resampled, then participants within them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from semantoks.errors import UserError

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]


MOST_UNDEFINED = 0.1
"""Share of bootstrap draws that may be undefined: with more there is no interval and no p."""

MOST_DRAWS = 50_000
"""No more bootstrap draws than these, however many tests there are."""


@dataclass(frozen=True)
class PairedTest:
    """A corrected t-test: mean difference, its standard error, t, degrees of freedom.

    ``p`` is two-sided, ``p_greater`` that of a difference above 0; NaN where the test is undefined.
    """

    difference: float
    standard_error: float
    t: float
    degrees_of_freedom: int
    p: float
    p_greater: float


def corrected_t(
    differences: Sequence[float] | Floats, n_train: float, n_test: float, pairs: bool = False
) -> PairedTest:
    """Corrected resampled t-test of paired differences over repeated random splits.

    t = d̄ / √((1/k + n_test/n_train)·s²), k − 1 degrees of freedom (Nadeau & Bengio, Machine Learning 52, 2003, eq. 9).
    n_test/n_train is ρ/(1 − ρ) with ρ = n_test/(n_train + n_test), the share of tested participants that two
    repetitions have in common: so much, it is supposed, their differences correlate.

    Metrics that are a sum over pairs of a participant fitted on and one tested (``pairs``) correlate more: a pair
    counts in both repetitions whichever of the two is tested, so that ρ = 2·n_train·n_test/(n_train + n_test)² (.32
    instead of .2 with a fifth tested). With Nadeau and Bengio's ρ a tenth of true nulls is rejected there at .05.

    Parameters
    ----------
    differences : [k] difference of the metric in each repetition.
    n_train, n_test : participants fitted on and tested on.
    pairs : whether the metric is of that kind.

    Returns
    -------
    The test. Its p is NaN when all differences are the same and not 0: their variance, and so t, is not known then.

    Raises
    ------
    UserError
        With fewer than two repetitions, or differences that are not finite.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        raise UserError(
            f"the corrected t-test needs finite differences of at least two repetitions, found {values.tolist()}; "
            "raise probe.repetitions"
        )
    mean, freedom = float(values.mean()), len(values) - 1
    share = n_test / (n_train + n_test)
    correlation = 2 * share * (1 - share) if pairs else share
    error = float(np.sqrt((1 / len(values) + correlation / (1 - correlation)) * values.var(ddof=1)))
    if error <= 1e-15:
        none = abs(mean) <= 1e-15
        t, p = (0.0, 1.0) if none else (float("nan"), float("nan"))
        return PairedTest(mean, 0.0, t, freedom, p, p)
    t = mean / error
    return PairedTest(mean, error, t, freedom, float(2 * stats.t.sf(abs(t), freedom)), float(stats.t.sf(t, freedom)))


def holm(p_values: Sequence[float] | Floats) -> Floats:
    """Holm's step-down adjustment; NaN (not tested) stays NaN and does not count."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full_like(p, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return adjusted


def undefined_share(draws: Floats) -> float:
    """Share of bootstrap draws that are NaN."""
    return float(np.isnan(draws).mean())


def interval(draws: Floats, confidence: float) -> tuple[float, float]:
    """Percentile interval of the bootstrap draws that are defined; NaN when too few are (``MOST_UNDEFINED``)."""
    if undefined_share(draws) > MOST_UNDEFINED:
        return float("nan"), float("nan")
    low, high = np.nanquantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_p(differences: Floats, greater: bool = False) -> float:
    """P of a paired difference from its bootstrap draws that are defined; NaN when too few are (``MOST_UNDEFINED``).

    Two-sided: 2·(1 + min(#≤0, #≥0)) / (1 + draws), at most 1. With ``greater``: (1 + #≤0) / (1 + draws).
    """
    if undefined_share(differences) > MOST_UNDEFINED:
        return float("nan")
    known = differences[~np.isnan(differences)]
    if greater:
        return float((1 + (known <= 0).sum()) / (1 + len(known)))
    beyond = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(2 * (1 + beyond) / (1 + len(known)), 1))


def draws_for(tests: int, alpha: float, fewest: int) -> int:
    """Bootstrap draws with which Holm's adjustment over that many tests can reach ``alpha``.

    The smallest two-sided p, 2 / (1 + draws), times the tests is at most half of ``alpha``. They are ``fewest``,
    doubled as often as needed (one row more seldom changes the draws of the others), and at most ``MOST_DRAWS``.
    """
    draws = fewest
    while draws < min(4 * tests / alpha, MOST_DRAWS):
        draws *= 2
    return max(fewest, min(draws, MOST_DRAWS))


def permutation_p(observed: float, permuted: Floats) -> float:
    """P of a value against what permuted labels gave, larger is better: (1 + #≥) / (1 + permutations)."""
    known = permuted[~np.isnan(permuted)]
    if not len(known) or np.isnan(observed):
        return float("nan")
    # Equal up to rounding counts as reached: permutations that change nothing give the observed value.
    return float((1 + (known >= observed - 1e-7 * max(1.0, abs(observed))).sum()) / (1 + len(known)))


def resample_units(unit: npt.NDArray, stratum: npt.NDArray, draws: int, generator: np.random.Generator) -> Floats:
    """How often each row occurs when units are drawn with replacement inside their stratum.

    Parameters
    ----------
    unit : [rows] participant or family of each row; a unit is drawn with all its rows.
    stratum : [rows] stratum of each row; a unit's is that of its first row.
    draws : number of draws.

    Returns
    -------
    [draws, rows] counts as float64.
    """
    names, first, number = np.unique(unit, return_index=True, return_inverse=True)
    counts = np.empty((draws, len(names)))
    strata = stratum[first]
    for value in np.unique(strata):
        members = np.flatnonzero(strata == value)
        counts[:, members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
    return counts[:, number]


@dataclass(frozen=True)
class SiteResamples:
    """Draws of sites and of participants within them.

    ``pool[s]`` [pool, rows of site s] are resamples of site s; in draw b the sites ``site[b]`` are taken, each with
    the resample ``pick[b]`` of its pool (both [draws, sites]). Every row's model gets the same draws, so differences
    between rows are paired.
    """

    rows: list[Index]
    pool: list[Floats]
    site: Index
    pick: Index

    def mean(self, values: Sequence[Floats], weights: Sequence[Floats]) -> Floats:
        """Weighted mean over the drawn sites [draws], from each site's values and weights over its pool."""
        total = np.zeros(len(self.site))
        weight = np.zeros(len(self.site))
        value_of, weight_of = np.stack(list(values)), np.stack(list(weights))
        for site, pick in zip(self.site.T, self.pick.T, strict=True):
            chosen = weight_of[site, pick]
            total += np.where(chosen > 0, value_of[site, pick], 0) * chosen
            weight += chosen
        return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)

    def weights(self, draws: int | None = None) -> Floats:
        """How often each row occurs in each of the first draws (None: all) [draws, rows]."""
        weights = np.zeros((len(self.site[:draws]), sum(len(rows) for rows in self.rows)))
        for site, pick in zip(self.site[:draws].T, self.pick[:draws].T, strict=True):
            for number, rows in enumerate(self.rows):
                drawn = np.flatnonzero(site == number)
                weights[np.ix_(drawn, rows)] += self.pool[number][pick[drawn]]
        return weights


def resample_sites(
    site: npt.NDArray, unit: npt.NDArray, draws: int, generator: np.random.Generator, pool: int | None = None
) -> SiteResamples:
    """Draw sites with replacement, then participants (or families) with replacement within each drawn site.

    Parameters
    ----------
    site, unit : [rows] site, and participant or family, of each row.
    draws : number of draws.
    pool : number of resamples of each site, from which draws pick (None: as many as draws).

    Raises
    ------
    UserError
        With fewer than two sites.
    """
    names = np.unique(site)
    if len(names) < 2:
        raise UserError(f"leave-site-out needs at least two sites to compare rows, found {names.tolist()}")
    rows = [np.flatnonzero(site == name) for name in names]
    pool = pool or draws
    pools = [resample_units(unit[members], np.zeros(len(members)), pool, generator) for members in rows]
    shape = (draws, len(names))
    return SiteResamples(rows, pools, generator.integers(len(names), size=shape), generator.integers(pool, size=shape))
