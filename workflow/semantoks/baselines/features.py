"""What a head is fitted on: a matrix with one row per participant, made anew inside every fold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from semantoks.errors import UserError
from semantoks.files import read_metadata, read_table
from semantoks.phenotypes import Phenotype, examples
from semantoks.units import unit_names

Matrix = npt.NDArray[np.float32]
Index = npt.NDArray[np.intp]


COLUMNS_AT_ONCE = 2048
"""Columns that are standardised together: some hundred participants' fit into a processor's cache."""


class Features(Protocol):
    """One row's features. ``participants`` fixes the row order of what :meth:`design` returns."""

    @property
    def name(self) -> str:
        """Kind of features."""
        ...

    @property
    def participants(self) -> list[str]:
        """Participants in the order of the rows."""
        ...

    def design(self, phenotype: Phenotype, training: Index) -> Matrix:
        """Feature matrix [participants, features], float32; whatever is estimated is estimated on ``training``."""
        ...


def standardise(values: npt.NDArray[np.floating], training: Index) -> Matrix:
    """Standardise columns with mean and sd (ddof 0) of the training rows; missing values become the training mean, 0.

    Parameters
    ----------
    values : [n, features]; NaN is missing.
    training : row numbers.

    Returns
    -------
    [n, features] float32. A column that is constant or entirely missing in the training rows is 0 everywhere.
    """
    scaled = np.empty(values.shape, dtype=np.float32)
    member = np.zeros(len(values), dtype=np.float32)
    member[training] = 1
    for first in range(0, values.shape[1], COLUMNS_AT_ONCE):
        columns = slice(first, first + COLUMNS_AT_ONCE)
        _standardise(values[:, columns], scaled[:, columns], member)
    return scaled


def _standardise(values: npt.NDArray[np.floating], scaled: Matrix, member: Matrix) -> None:
    """Standardise a few columns into ``scaled``; ``member`` is 1 in training rows and 0 elsewhere."""
    scaled[...] = values
    missing = np.isnan(scaled)
    incomplete = np.flatnonzero(missing.any(axis=1))
    scaled[incomplete] = np.where(missing[incomplete], 0, scaled[incomplete])
    count = np.maximum(member.sum() - member[incomplete] @ missing[incomplete], 1).astype(np.float32)
    mean = (member @ scaled) / count
    scaled -= mean
    scaled[incomplete] = np.where(missing[incomplete], 0, scaled[incomplete])
    # A second pass around the mean: the difference of two large sums would lose a small variance.
    sd = np.sqrt((member @ np.square(scaled)) / count)
    varies = sd > 1e-6 * np.maximum(np.abs(mean), 1e-3)
    scaled *= np.divide(1, sd, out=np.zeros_like(sd), where=varies)


def participant_keys(
    cohorts: Iterable[str], participants: Iterable[str], sessions: Iterable[str | None] | None = None
) -> list[str]:
    """What units are called: by their name, or as ``<cohort>/<name>`` where several cohorts meet.

    Two cohorts may give one id to two people.

    Parameters
    ----------
    cohorts, participants : of each recording.
    sessions : of each recording, where the unit is the session (:func:`semantoks.units.unit_names`).
    """
    cohorts, names = list(cohorts), unit_names(participants, sessions)
    several = len(set(cohorts)) > 1
    return [f"{cohort}/{name}" if several else name for cohort, name in zip(cohorts, names, strict=True)]


def mean_over_recordings(values: npt.NDArray[np.float32], owner: Sequence[str]) -> tuple[list[str], Matrix]:
    """Average the rows of each participant, ignoring missing values.

    Parameters
    ----------
    values : [recordings, features] float32; NaN is missing.
    owner : participant of each row.

    Returns
    -------
    Sorted participants and [participants, features] float32; NaN where no recording has a value.
    """
    participants, number = np.unique(np.asarray(owner, dtype=str), return_inverse=True)
    if len(participants) == len(values):
        return participants.tolist(), values[np.argsort(number)]
    total = np.zeros((len(participants), values.shape[1]), dtype=np.float32)
    count = np.zeros_like(total)
    for row, to in zip(values, number, strict=True):
        present = ~np.isnan(row)
        total[to, present] += row[present]
        count[to] += present
    return participants.tolist(), np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


@dataclass(frozen=True)
class CropFeatures:
    """Features of an encoder, several crops per participant.

    ``crops`` is [participants, crops, features] float32, ``present`` [participants, crops] says which exist. ``seen``
    names the participants of the encoder's pretraining; None where nobody knows.
    """

    name: str
    participants: list[str]
    crops: Matrix
    present: npt.NDArray[np.bool_]
    encoder: str
    seen: frozenset[str] | None = None

    @property
    def seed(self) -> int | None:
        """Pretraining seed, from the encoder's name (``<name>_seed-<s>``)."""
        match = re.search(r"_seed-(\d+)$", self.encoder)
        return int(match.group(1)) if match else None

    @property
    def mean(self) -> Matrix:
        """Mean over the crops of each participant [participants, features]."""
        weight = self.present / self.present.sum(axis=1, keepdims=True)
        mean: Matrix = np.einsum("nkf,nk->nf", self.crops, weight.astype(np.float32))
        return mean

    def design(self, phenotype: Phenotype, training: Index) -> Matrix:
        """Standardised mean over the crops."""
        return standardise(self.mean, training)


def read_embeddings(paths: Sequence[Path | str], by_session: bool = False) -> CropFeatures:
    """Read embeddings of one encoder; crops with the same number are averaged over a unit's recordings.

    Whom pretraining saw is another question: :func:`semantoks.baselines.overlap.seen_in_pretraining`.

    Parameters
    ----------
    paths : one file per cohort; participants of several cohorts are called as :func:`participant_keys` says.
    by_session : whether the unit is the session.

    Raises
    ------
    UserError
        When features are not finite, differ in length, or were made by different weights.
    """
    tables = [_read_crops(path) for path in paths]
    about: list[dict[str, Any]] = [read_metadata(path) for path in paths]
    lengths = {table["features"].map(len).iloc[0] for table in tables}
    if len(lengths) > 1 or len({one.get("weights_sha256") for one in about}) > 1:
        raise UserError(
            f"{examples(map(str, paths))}: expected features of one encoder, found those of different weights; "
            "run embed again"
        )
    table = pd.concat(tables, ignore_index=True)
    sessions = table["session_id"] if by_session else None
    table["participant_id"] = participant_keys(table["cohort"], table["participant_id"], sessions)
    participants, crops, present = _by_crop(table, np.stack(table["features"].to_list()).astype(np.float32))
    encoder = about[0].get("encoder") or Path(paths[0]).stem
    name = about[0].get("settings", {}).get("features", "cls_avg")
    return CropFeatures(name, participants, crops, present, encoder)


def _read_crops(path: Path | str) -> pd.DataFrame:
    table = read_table(path, ["cohort", "participant_id", "session_id", "recording_id", "crop", "features"])
    if table.empty:
        raise UserError(f"{path}: expected features, found no row; see the qc report and the log of embed")
    lengths = table["features"].map(len)
    if lengths.nunique() != 1:
        raise UserError(f"{path}: expected features of one length, found {sorted(set(lengths))}; run embed again")
    broken = ~table["features"].map(lambda values: bool(np.isfinite(values).all()))
    if broken.any():
        names = sorted(set(table["recording_id"][broken]))
        raise UserError(
            f"{path}: features of {len(names)} recordings are not finite ({examples(names)}); did pretraining diverge?"
        )
    return table


def _by_crop(table: pd.DataFrame, values: Matrix) -> tuple[list[str], Matrix, npt.NDArray[np.bool_]]:
    participants, person = np.unique(table["participant_id"].to_numpy(dtype=str), return_inverse=True)
    numbers, crop = np.unique(table["crop"].to_numpy(), return_inverse=True)
    shape = (len(participants), len(numbers))
    total = np.zeros((*shape, values.shape[1]), dtype=np.float32)
    count = np.zeros(shape, dtype=np.int64)
    np.add.at(count, (person, crop), 1)
    # In a fixed order, so that the sums do not depend on the order of the rows.
    for row in np.lexsort((table["recording_id"].to_numpy(dtype=str), crop, person)):
        total[person[row], crop[row]] += values[row]
    total /= np.maximum(count, 1)[:, :, None].astype(np.float32)
    return participants.tolist(), total, count > 0
