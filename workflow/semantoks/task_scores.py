"""Predictions by task: all rows of one phenotype under one protocol, on the same participants."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from semantoks.errors import UserError
from semantoks.protocols import SEPARATE_FOLDS
from semantoks.row_kinds import row_place
from semantoks.units import unit_names

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Repetition:
    """Who was tested in one repetition (row numbers of the task's participants) and their targets.

    Leave-site-out has one, all sites together; of a user's own splits each fold is one.
    """

    tested: npt.NDArray[np.intp]
    y_true: Floats
    n_test: float


@dataclass(frozen=True)
class Row:
    """The predictions of one row of the table.

    ``scores[seed][repetition]`` [tested, classes or 1]; ``n_train`` [repetitions] participants fitted on;
    ``transductive`` is the share of predictions on participants that pretraining saw, NaN where that is not known of
    all.
    """

    name: str
    head: str
    scores: list[list[Floats]]
    n_train: Floats
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
    if "session_id" in predictions:
        units = unit_names(predictions["participant_id"], predictions["session_id"])
        predictions = predictions.assign(participant_id=units)
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
    split = ["repetition", "fold"] if protocol in SEPARATE_FOLDS else ["repetition"]
    number = pd.Series(np.arange(len(people)), index=people.index)
    repetitions: list[Repetition] = []
    rows: list[Row] = []
    for key, part in group.groupby(["row", "head"], sort=True):
        name, head = map(str, key)
        scores = []
        for _, seed in part.groupby("pretrain_seed", dropna=False, sort=True):
            tested = [each.sort_values("participant_id") for _, each in seed.groupby(split, sort=True)]
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
        rows.append(Row(name, head, scores, _fitted_on(part, split), float(seen.mean())))
    return TaskScores(
        cohort, phenotype, protocol, kind, people, repetitions, sorted(rows, key=lambda row: row_place(row.name))
    )


def _repetition(tested: pd.DataFrame, number: pd.Series) -> Repetition:
    folds = tested["fold"].nunique()
    return Repetition(
        number[tested["participant_id"]].to_numpy(),
        tested["y_true"].to_numpy(dtype=np.float64),
        len(tested) / folds,
    )


def _fitted_on(row: pd.DataFrame, split: list[str]) -> Floats:
    """Participants that a row was fitted on in each repetition, mean over its folds and pretraining seeds."""
    by_fold = row.groupby(["repetition", "fold"], sort=True)["n_train"].mean()
    return by_fold.groupby(split, sort=True).mean().to_numpy(dtype=np.float64)


def _same(one: Sequence[Repetition], other: Sequence[Repetition]) -> bool:
    """Whether the shorter list is the beginning of the longer one: heads trained by steps have fewer repetitions."""
    return all(
        np.array_equal(a.tested, b.tested) and np.array_equal(a.y_true, b.y_true)
        for a, b in zip(one, other, strict=False)
    )
