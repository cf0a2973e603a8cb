"""From predictions to the numbers of a table: metrics, intervals and paired tests of every row, task and protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from semantoks.errors import UserError
from semantoks.metrics import SITE_METRIC, SMALLER_IS_BETTER
from semantoks.protocols import LEARNING_CURVE
from semantoks.statistics import MOST_UNDEFINED, draws_for, holm, interval, permutation_p, undefined_share
from semantoks.summaries import HeldOutSites, RandomSplits, Summary, summarise
from semantoks.task_scores import Row, TaskScores, collect

Floats = npt.NDArray[np.float64]

SITE_COLUMNS = ["cohort", "protocol", "phenotype", "metric", "row", "site_group", "value", "n", "difference"]
"""Columns of the sites' own values; ``difference`` is that to the reference row at the same site."""

PERMUTATION = "permutation"


@dataclass(frozen=True)
class Null:
    """A metric under permuted labels: ``values``, and whether no label changed (``unchanged``), both [permutations]."""

    values: Floats
    unchanged: npt.NDArray[np.bool_]

    @property
    def smallest_p(self) -> float:
        """The smallest p that a row can have: where nothing moves, the metric is as good as itself, however good."""
        return float((1 + self.unchanged.sum()) / (1 + len(self.unchanged)))

    def untested(self, alpha: float) -> str | None:
        """Why these permutations are no test at a level; None when they are one."""
        if np.isnan(self.values).mean() > MOST_UNDEFINED:
            return f"undefined in more than {MOST_UNDEFINED:.0%} of the permutations (a part without a class)"
        if 1 / (1 + len(self.values)) < alpha <= self.smallest_p:
            return (
                f"too few different permutations for {alpha}: labels move within sites, between families of one "
                "make-up, and between sessions of a participant"
            )
        return None


def null_draws(permuted: pd.DataFrame | None) -> dict[tuple[str, ...], Null]:
    """Metrics under permuted labels by (cohort, phenotype, protocol, row, metric).

    Pretraining seeds are averaged: permutation b has the same labels in all of them.
    """
    if permuted is None or permuted.empty:
        return {}
    keys = ["cohort", "phenotype", "protocol", "row", "metric"]
    every = permuted.groupby([*keys, "permutation"], sort=True)
    mean = every.agg({"value": "mean", "unchanged": "all"}).reset_index()
    return {
        tuple(map(str, key)): Null(part["value"].to_numpy(), part["unchanged"].to_numpy(dtype=bool))
        for key, part in mean.groupby(keys, sort=False)
    }


def score_task(
    task: TaskScores, settings: Mapping[str, Any], nulls: Mapping[tuple[str, ...], Null], tested_draws: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records of one task: one per row and metric, and (leave-site-out) one per row and site.

    Parameters
    ----------
    task : predictions of all rows.
    settings : the section ``tables``.
    nulls : metrics under permuted labels, where labels were permuted (:func:`null_draws`).
    tested_draws : bootstrap draws of the primary metric where the bootstrap is the test.
    """
    protocol = summarise(task, settings, tested_draws)
    reference = settings["reference"][task.kind]
    names = [row.name for row in task.rows]
    if reference not in names:
        raise UserError(
            f"tables.reference.{task.kind}: expected one of the rows {', '.join(names)}, found {reference!r}; "
            "name one that is probed"
        )
    named = {"cohort": task.cohort, "protocol": task.protocol, "phenotype": task.phenotype}
    records = []
    for metric in protocol.metrics:
        summaries = {row.name: protocol.summary(metric, row) for row in task.rows}
        for row in task.rows:
            null = nulls.get((task.cohort, task.phenotype, task.protocol, row.name, metric))
            record = {**named, "metric": metric, "primary": metric == protocol.primary, "row": row.name}
            record |= _described(task, row, summaries[row.name], settings["confidence"])
            record |= _compared(protocol, summaries, row.name, reference)
            record |= _compared(protocol, summaries, row.name, "majority") | {"smallest_p_majority": np.nan}
            records.append(record | ({} if null is None else _permuted(summaries[row.name], null, settings["alpha"])))
    sites = []
    if isinstance(protocol, HeldOutSites):
        sites = list(_site_records(protocol, named | {"metric": SITE_METRIC[task.kind]}, reference))
    return records, sites


def _described(task: TaskScores, row: Row, made: Summary, confidence: float) -> dict[str, Any]:
    """A row's metric, its interval, and on how many participants and seeds it rests."""
    low, high = interval(made.own_draws, confidence)
    tested = task.repetitions[: len(made.values)]
    return {
        "head": row.head,
        "mean": made.values.mean(),
        "sd": made.values.std(ddof=1) if len(made.values) > 1 else np.nan,
        "ci_low": low,
        "ci_high": high,
        "draws": len(made.own_draws),
        "undefined_draws": undefined_share(made.own_draws),
        "seeds": len(made.seeds),
        "sd_seeds": made.seeds.std(ddof=1) if len(made.seeds) > 1 else np.nan,
        "repetitions": len(made.values),
        "n": len(np.unique(np.concatenate([r.tested for r in tested]))),
        "n_train": made.n_train.mean(),
        "n_test": np.mean([r.n_test for r in tested]),
        "transductive": row.transductive,
    }


def _compared(
    protocol: RandomSplits | HeldOutSites,
    summaries: Mapping[str, Summary],
    row: str,
    against: str,
) -> dict[str, Any]:
    """A row compared with the reference (two-sided) or the majority row (better)."""
    made, end = summaries[row], "_majority" if against == "majority" else ""
    columns = [f"{name}{end}" for name in ("difference", "p", "test", "untested")]
    if row == against or against not in summaries:
        return dict(zip(columns, (np.nan, np.nan, None, None), strict=True))
    upwards = -1 if made.metric in SMALLER_IS_BETTER else 1
    found = protocol.compare(made, summaries[against], upwards if end else 0)
    return dict(zip(columns, (found.difference, found.p, protocol.test, found.untested), strict=True))


def _permuted(made: Summary, null: Null, alpha: float) -> dict[str, Any]:
    """What permuted labels say instead of a comparison with the majority row."""
    upwards = -1 if made.metric in SMALLER_IS_BETTER else 1
    untested = null.untested(alpha)
    p = np.nan if untested else permutation_p(made.values.mean() * upwards, null.values * upwards)
    return {
        "p_majority": p,
        "test_majority": PERMUTATION,
        "untested_majority": untested,
        "smallest_p_majority": null.smallest_p,
    }


def _site_records(protocol: HeldOutSites, named: Mapping[str, str], reference: str) -> Iterator[dict[str, Any]]:
    """Every row's value at every site, and how much it is above the reference row's there."""
    values = {row.name: list(protocol.by_site(row)) for row in protocol.task.rows}
    for row, sites in values.items():
        for site, other in zip(sites, values[reference], strict=True):
            yield {**named, "row": row, **site, "difference": site["value"] - other["value"]}


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
    tasks = collect(predictions[predictions["protocol"] != LEARNING_CURVE], kinds)
    tests: Counter[tuple[str, str]] = Counter()
    for task in tasks:
        tests[task.cohort, task.protocol] += len(task.rows) - 1
    for task in tasks:
        needed = draws_for(tests[task.cohort, task.protocol], settings["alpha"], settings["draws"])
        scored, by_site = score_task(task, settings, nulls, needed)
        records += scored
        sites += by_site
    table = pd.DataFrame(records)
    for column in ("p", "p_majority"):
        table[f"{column}_adjusted"] = np.nan
        for _, family in table[table["primary"]].groupby(["cohort", "protocol"]):
            table.loc[family.index, f"{column}_adjusted"] = holm(family[column].to_numpy(dtype=np.float64))
    return table, pd.DataFrame(sites, columns=SITE_COLUMNS)
