"""From predictions to the numbers of a table: metrics, intervals and paired tests of every row, task and protocol."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from semantoks.errors import UserError
from semantoks.metrics import METRICS, SITE_METRIC, SMALLER_IS_BETTER, site_mean, within_site
from semantoks.protocols import GIVEN, LEARNING_CURVE, LEAVE_SITE_OUT, RANDOM, TRANSFER
from semantoks.statistics import (
    SiteResamples,
    bootstrap_p,
    holm,
    interval,
    nadeau_bengio,
    permutation_p,
    resample_sites,
    resample_units,
)

Floats = npt.NDArray[np.float64]

SITE_COLUMNS = ["cohort", "protocol", "phenotype", "metric", "row", "site_group", "value", "n", "difference"]
"""Columns of the sites' own values; ``difference`` is that to the reference row at the same site."""


@dataclass(frozen=True)
class Repetition:
    """Who was tested in one repetition (row numbers of the task's participants) and their targets."""

    tested: npt.NDArray[np.intp]
    y_true: Floats
    n_train: float
    n_test: float


@dataclass(frozen=True)
class Row:
    """The predictions of one row of the table.

    ``scores[seed][repetition]`` [tested, classes or 1]; ``transductive`` is the share of predictions on participants
    that pretraining saw, NaN where that is not known of all.
    """

    name: str
    head: str
    scores: list[list[Floats]]
    transductive: float


@dataclass(frozen=True)
class TaskScores:
    """All rows of one phenotype under one protocol, on the same participants."""

    cohort: str
    phenotype: str
    protocol: str
    kind: str
    people: pd.DataFrame
    repetitions: list[Repetition]
    rows: list[Row]

    @property
    def seed(self) -> int:
        """Seed of the bootstrap, from the task's name alone."""
        return zlib.crc32(f"{self.cohort}|{self.phenotype}|{self.protocol}".encode())


@dataclass(frozen=True)
class Summary:
    """A metric of a row: value in each repetition, bootstrap draws of their mean, value of each pretraining seed."""

    values: Floats
    draws: Floats
    seeds: Floats


def collect(predictions: pd.DataFrame, kinds: Mapping[str, str]) -> list[TaskScores]:
    """Group predictions (columns of the probe files) by cohort, phenotype and protocol.

    Parameters
    ----------
    predictions : rows of all probe files of a cohort.
    kinds : type of each phenotype.

    Raises
    ------
    UserError
        When rows were not tested on the same participants with the same splits.
    """
    tasks = []
    for key, group in predictions.groupby(["cohort", "phenotype", "protocol"], sort=True):
        cohort, phenotype, protocol = map(str, key)
        checksums = group.groupby("split_checksum")["row"].unique().map(list).to_dict()
        if len(checksums) > 1:
            raise UserError(
                f"{cohort}, {phenotype}, {protocol}: rows were made with different splits "
                f"({'; '.join(', '.join(rows) for rows in checksums.values())}); run their probes again"
            )
        tasks.append(_task(cohort, phenotype, protocol, kinds[phenotype], group))
    return tasks


def _task(cohort: str, phenotype: str, protocol: str, kind: str, group: pd.DataFrame) -> TaskScores:
    people = group.drop_duplicates("participant_id").set_index("participant_id").sort_index()
    people = people[["family", "site_group"]]
    number = pd.Series(np.arange(len(people)), index=people.index)
    repetitions: list[Repetition] = []
    rows: list[Row] = []
    for key, part in group.groupby(["row", "head"], sort=True):
        name, head = map(str, key)
        scores = []
        for _, seed in part.groupby("pretrain_seed", dropna=False, sort=True):
            tested = [each.sort_values("participant_id") for _, each in seed.groupby("repetition", sort=True)]
            found = [_repetition(each, number) for each in tested]
            if len(found) > len(repetitions):
                repetitions, found = found, repetitions
            if not _same(repetitions, found):
                raise UserError(
                    f"{cohort}, {phenotype}, {protocol}: the row {name} was tested on other participants or targets "
                    f"than {rows[0].name if rows else name}; run the probes of all rows again"
                )
            scores.append([np.stack(each["y_score"].to_list()).astype(np.float64) for each in tested])
        seen = part["transductive"].astype("boolean").to_numpy(np.float64, na_value=np.nan)
        rows.append(Row(name, head, scores, float(seen.mean())))
    return TaskScores(
        cohort, phenotype, protocol, kind, people, repetitions, sorted(rows, key=lambda row: row_place(row.name))
    )


FROM_NOTHING = ("bnt", "windows")
"""Rows of networks that were trained on the labels alone."""


def row_place(name: str) -> tuple[int, str]:
    """Where a row stands in a table: references first, then networks trained on labels alone, what was pretrained last.

    0 majority, 1 confounds, 2 connectivity, 3 networks from nothing, 4 encoders as initialised, 5 everything else.
    """
    kinds = ("majority", "confounds-", "fc-")
    place = next((number for number, kind in enumerate(kinds) if name.startswith(kind)), len(kinds))
    if place == len(kinds) and name not in FROM_NOTHING:
        place += 1 if "-random-" in name else 2
    return place, name


def _repetition(tested: pd.DataFrame, number: pd.Series) -> Repetition:
    folds = tested["fold"].nunique()
    return Repetition(
        number[tested["participant_id"]].to_numpy(),
        tested["y_true"].to_numpy(dtype=np.float64),
        float(tested.groupby("fold")["n_train"].first().mean()),
        len(tested) / folds,
    )


def _same(one: Sequence[Repetition], other: Sequence[Repetition]) -> bool:
    """Whether the shorter list is the beginning of the longer one: heads trained by steps have fewer repetitions."""
    return all(
        np.array_equal(a.tested, b.tested) and np.array_equal(a.y_true, b.y_true)
        for a, b in zip(one, other, strict=False)
    )


class RandomSplits:
    """Summaries of a task under repeated random splits.

    The bootstrap draws participants (or families) with all their rows over the repetitions, stratified by class; it is
    conditional on the trained models.
    """

    def __init__(self, task: TaskScores, draws: int) -> None:
        self.task = task
        generator = np.random.default_rng(task.seed)
        stratum = np.zeros(len(task.people))
        if task.kind == "classification":
            for repetition in reversed(task.repetitions):
                stratum[repetition.tested] = repetition.y_true
        family = task.people["family"].to_numpy(dtype=str)
        self.weights = resample_units(family, stratum, draws, generator)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics."""
        return list(METRICS[self.task.kind])

    def summary(self, metric: str, row: Row) -> Summary:
        """A metric of a row, averaged over pretraining seeds within each repetition."""
        compute = METRICS[self.task.kind][metric]
        values, draws = [], []
        for scores in row.scores:
            pairs = list(zip(self.task.repetitions, scores, strict=False))
            values.append([compute(r.y_true, s, np.ones((1, len(s))))[0] for r, s in pairs])
            drawn = [compute(r.y_true, s, self.weights[:, r.tested]) for r, s in pairs]
            draws.append(_mean_where_defined(np.array(drawn)))
        table = np.array(values)
        return Summary(table.mean(axis=0), np.mean(draws, axis=0), table.mean(axis=1))

    def p(self, row: Summary, other: Summary, better: int) -> float:
        """P of the difference to another row (corrected t-test): two-sided, or, with ``better`` ±1, of that sign."""
        first = self.task.repetitions
        if self.task.protocol == TRANSFER or (self.task.protocol == GIVEN and len(first) == 1):
            # Always the same participants: they are resampled, given the trained models.
            return bootstrap_p((row.draws - other.draws) * (better or 1), greater=bool(better))
        train, test = (float(np.mean([getattr(r, name) for r in first])) for name in ("n_train", "n_test"))
        both = min(len(row.values), len(other.values))
        made = nadeau_bengio((row.values[:both] - other.values[:both]) * (better or 1), train, test)
        return made.p_greater if better else made.p


def _mean_where_defined(values: Floats) -> Floats:
    """Mean over the first axis without NaN; NaN where nothing else is (a draw that left one class everywhere)."""
    known = ~np.isnan(values)
    mean: Floats = np.full(values.shape[1:], np.nan)
    np.divide(np.where(known, values, 0).sum(axis=0), known.sum(axis=0), out=mean, where=known.any(axis=0))
    return mean


class HeldOutSites:
    """Summaries of a task at new sites: sites are resampled, then participants (or families) within them.

    Under leave-site-out there is one repetition; models of another cohort's random splits are as many, all tested on
    the same participants.
    """

    def __init__(self, task: TaskScores, draws: int) -> None:
        self.task = task
        generator = np.random.default_rng(task.seed)
        self.repetition = task.repetitions[0]
        people = task.people.iloc[self.repetition.tested]
        self.site = people["site_group"].to_numpy(dtype=str)
        family = people["family"].to_numpy(dtype=str)
        self.resamples: SiteResamples = resample_sites(self.site, family, draws, generator)
        self.weights = self.resamples.weights()

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics: within sites, then pooled over sites."""
        return [SITE_METRIC[self.task.kind], *METRICS[self.task.kind]]

    def summary(self, metric: str, row: Row) -> Summary:
        """A metric of a row, averaged over pretraining seeds within each repetition."""
        made = [[self._value(metric, scores) for scores in seed] for seed in row.scores]
        table = np.array([[value for value, _ in seed] for seed in made])
        draws = np.mean([draw for seed in made for _, draw in seed], axis=0)
        return Summary(table.mean(axis=0), draws, table.mean(axis=1))

    def _value(self, metric: str, scores: Floats) -> tuple[float, Floats]:
        """A metric of one model's scores, and its bootstrap draws."""
        y_true = self.repetition.y_true
        if metric == SITE_METRIC[self.task.kind]:
            pools = zip(self.resamples.rows, self.resamples.pool, strict=True)
            drawn = [self._site(rows, scores, pool) for rows, pool in pools]
            value = site_mean(self.task.kind, y_true, scores, self.site)
            return value, self.resamples.mean([v for v, _ in drawn], [w for _, w in drawn])
        compute = METRICS[self.task.kind][metric]
        return compute(y_true, scores, np.ones((1, len(scores))))[0], compute(y_true, scores, self.weights)

    def _site(self, rows: npt.NDArray[np.intp], scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
        return within_site(self.task.kind, self.repetition.y_true[rows], scores[rows], weights)

    def p(self, row: Summary, other: Summary, better: int) -> float:
        """P of the difference to another row (bootstrap over sites and participants), sided as in RandomSplits."""
        return bootstrap_p((row.draws - other.draws) * (better or 1), greater=bool(better))

    def by_site(self, row: Row) -> Iterator[dict[str, Any]]:
        """Each site's own value, averaged over seeds and repetitions; NaN where it is not defined (one class)."""
        for rows in self.resamples.rows:
            one = np.ones((1, len(rows)))
            values = [self._site(rows, scores, one)[0][0] for seed in row.scores for scores in seed]
            yield {"site_group": self.site[rows[0]], "value": float(np.mean(values)), "n": len(rows)}


def summarise(task: TaskScores, draws: int) -> RandomSplits | HeldOutSites:
    """The protocol's way of summarising a task: by sites where whole sites are new to the models."""
    several = (
        task.protocol == TRANSFER
        and task.people["site_group"].nunique() > 1
        and task.people["site_group"].notna().all()
    )
    return HeldOutSites(task, draws) if task.protocol == LEAVE_SITE_OUT or several else RandomSplits(task, draws)


def null_draws(permuted: pd.DataFrame | None) -> dict[tuple[str, ...], Floats]:
    """Metrics under permuted labels [permutations] by (cohort, phenotype, protocol, row, metric).

    Pretraining seeds are averaged: permutation b has the same labels in all of them.
    """
    if permuted is None or permuted.empty:
        return {}
    keys = ["cohort", "phenotype", "protocol", "row", "metric"]
    mean = permuted.groupby([*keys, "permutation"], sort=True)["value"].mean().reset_index()
    return {tuple(map(str, key)): part["value"].to_numpy() for key, part in mean.groupby(keys, sort=False)}


def score_task(
    task: TaskScores, settings: Mapping[str, Any], nulls: Mapping[tuple[str, ...], Floats]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records of one task: one per row and metric, and (leave-site-out) one per row and site.

    Parameters
    ----------
    task : predictions of all rows.
    settings : the section ``tables``.
    nulls : metrics under permuted labels, where labels were permuted (:func:`null_draws`).
    """
    protocol = summarise(task, settings["draws"])
    like = LEAVE_SITE_OUT if isinstance(protocol, HeldOutSites) else RANDOM
    primary = settings["primary"][like][task.kind]
    reference = settings["reference"][task.kind]
    names = [row.name for row in task.rows]
    if reference not in names:
        raise UserError(
            f"tables.reference.{task.kind}: expected one of the rows {', '.join(names)}, found {reference!r}; "
            "name one that is probed"
        )
    records = []
    for metric in protocol.metrics:
        summaries = {row.name: protocol.summary(metric, row) for row in task.rows}
        for row in task.rows:
            made = summaries[row.name]
            low, high = interval(made.draws, settings["confidence"])
            record = {
                "cohort": task.cohort,
                "protocol": task.protocol,
                "phenotype": task.phenotype,
                "metric": metric,
                "primary": metric == primary,
                "row": row.name,
                "head": row.head,
                "mean": made.values.mean(),
                "sd": made.values.std(ddof=1) if len(made.values) > 1 else np.nan,
                "ci_low": low,
                "ci_high": high,
                "seeds": len(made.seeds),
                "sd_seeds": made.seeds.std(ddof=1) if len(made.seeds) > 1 else np.nan,
                "repetitions": len(made.values),
                "n": len(np.unique(np.concatenate([r.tested for r in task.repetitions[: len(made.values)]]))),
                "n_train": np.mean([r.n_train for r in task.repetitions]),
                "n_test": np.mean([r.n_test for r in task.repetitions]),
                "transductive": row.transductive,
            }
            upwards = -1 if metric in SMALLER_IS_BETTER else 1
            for column, against, better in (("", reference, 0), ("_majority", "majority", upwards)):
                other = summaries.get(against) if against != row.name else None
                record[f"difference{column}"] = _difference(made, other) if other else np.nan
                record[f"p{column}"] = protocol.p(made, other, better) if other else np.nan
            null = nulls.get((task.cohort, task.phenotype, task.protocol, row.name, metric))
            if null is not None:
                record["p_majority"] = permutation_p(made.values.mean() * upwards, null * upwards)
            record["test_majority"] = _test_name(null is not None, task) if row.name != "majority" else None
            records.append(record)
    sites = []
    if isinstance(protocol, HeldOutSites):
        named = {"cohort": task.cohort, "protocol": task.protocol, "phenotype": task.phenotype}
        sites = list(_site_records(protocol, named | {"metric": SITE_METRIC[task.kind]}, reference))
    return records, sites


def _site_records(protocol: HeldOutSites, named: Mapping[str, str], reference: str) -> Iterator[dict[str, Any]]:
    """Every row's value at every site, and how much it is above the reference row's there."""
    values = {row.name: list(protocol.by_site(row)) for row in protocol.task.rows}
    for row, sites in values.items():
        for site, other in zip(sites, values[reference], strict=True):
            yield {**named, "row": row, **site, "difference": site["value"] - other["value"]}


def _difference(one: Summary, other: Summary) -> float:
    """Mean difference over the repetitions that both have."""
    both = min(len(one.values), len(other.values))
    return float((one.values[:both] - other.values[:both]).mean())


def _test_name(permuted: bool, task: TaskScores) -> str:
    if permuted:
        return "permutation"
    one_split = task.protocol == GIVEN and len(task.repetitions) == 1
    return "bootstrap" if one_split or task.protocol in (LEAVE_SITE_OUT, TRANSFER) else "corrected t-test"


def score_tables(
    predictions: pd.DataFrame,
    kinds: Mapping[str, str],
    settings: Mapping[str, Any],
    permuted: pd.DataFrame | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All numbers of a cohort's tables, and the held-out sites' own values.

    p values of the primary metric are adjusted by Holm over all rows × tasks of one protocol; other metrics have
    unadjusted p values only.
    """
    records, sites = [], []
    nulls = null_draws(permuted)
    for task in collect(predictions[predictions["protocol"] != LEARNING_CURVE], kinds):
        scored, by_site = score_task(task, settings, nulls)
        records += scored
        sites += by_site
    table = pd.DataFrame(records)
    for column in ("p", "p_majority"):
        table[f"{column}_adjusted"] = np.nan
        for _, family in table[table["primary"]].groupby(["cohort", "protocol"]):
            table.loc[family.index, f"{column}_adjusted"] = holm(family[column].to_numpy(dtype=np.float64))
    return table, pd.DataFrame(sites, columns=SITE_COLUMNS)
