"""One split of one phenotype, resolved to row numbers: what every head of a table is fitted, chosen and tested on."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from semantoks.baselines.features import Index, participant_keys
from semantoks.baselines.study import Study
from semantoks.errors import UserError
from semantoks.files import read_metadata, read_table
from semantoks.phenotypes import Phenotype, class_names, examples, targets
from semantoks.protocols import RANDOM, TRANSFER


@dataclass(frozen=True)
class Task:
    """A split of a phenotype.

    ``training``, ``validation`` and ``test`` are row numbers of the participants; ``target`` [participants] holds
    class ids (int64), or numbers (float64) when ``n_classes`` is 0, and is meaningful in these rows only.
    """

    phenotype: Phenotype
    protocol: str
    repetition: int
    fold: str
    checksum: str
    training: Index
    validation: Index
    test: Index
    target: npt.NDArray
    n_classes: int
    bin_edges: list[float] | None

    @property
    def seed(self) -> int:
        """Seed of what is random in a head, from the split's name alone.

        A cohort for testing only meets the models of the other cohort's random splits: their seed is the same.
        """
        protocol = RANDOM if self.protocol == TRANSFER else self.protocol
        name = f"{self.phenotype.name}|{protocol}|{self.repetition}|{self.fold}"
        return zlib.crc32(name.encode())

    @property
    def scale(self) -> tuple[float, float]:
        """Mean and sd (1 where there is none) of a number in the training part; 0 and 1 for classes."""
        if self.n_classes:
            return 0.0, 1.0
        values = self.target[self.training]
        return float(values.mean()), float(values.std()) or 1.0

    @property
    def where(self) -> str:
        """The split's name, for messages."""
        return f"phenotypes.{self.phenotype.name}: {self.protocol}, repetition {self.repetition}, fold {self.fold}"


@dataclass(frozen=True)
class Permuted:
    """Permuted ``targets`` [permutations, test] of a task's test participants and the ``scores`` that a head found.

    ``scores`` is [permutations, test, classes or 1]; ``unchanged`` [permutations] whether everybody's label, those
    fitted on included, stayed what it is.
    """

    targets: npt.NDArray
    scores: npt.NDArray[np.floating]
    unchanged: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Prediction:
    """Scores of the test participants [test, classes] (larger is more likely) or [test, 1] (the number).

    ``permuted`` holds the same under permuted labels, where they were permuted.
    """

    scores: npt.NDArray[np.float64]
    setting: str
    n_train: int
    permuted: Permuted | None = None


def tested_cohort(splits: Path | str) -> str:
    """Name of the cohort whose participants are tested."""
    rows = read_table(splits, ["cohort", "part"])
    return str(rows.loc[rows["part"] == "test", "cohort"].iloc[0])


def split_participants(splits: Path | str) -> list[str]:
    """All participants of the splits, sorted, called as in the features of a row."""
    rows = read_table(splits, ["cohort", "participant_id", "session_id"])
    return sorted(set(participant_keys(rows["cohort"], rows["participant_id"], rows["session_id"])))


def read_tasks(splits: Path | str, study: Study, participants: Sequence[str]) -> list[Task]:
    """Read the splits of a cohort for features of the given participants (the order of their rows).

    Raises
    ------
    UserError
        When the file's phenotypes are not configured or a participant of a split has no features.
    """
    columns = ["cohort", "participant_id", "session_id", "phenotype", "protocol", "repetition", "fold", "part"]
    rows = read_table(splits, columns)
    rows["participant_id"] = participant_keys(rows["cohort"], rows["participant_id"], rows["session_id"])
    checksums: dict[str, Any] = read_metadata(splits)["checksums"]
    without = sorted(set(rows["participant_id"]) - set(participants))
    if without:
        raise UserError(
            f"{splits}: {len(without)} participants of the splits have no features in this row ({examples(without)}); "
            "every row must use the same participants: make splits and features from the same shards"
        )
    unknown = sorted(set(rows["phenotype"]) - set(study.phenotypes))
    if unknown:
        raise UserError(
            f"{splits}: has the phenotypes {examples(unknown)}, which the cohort does not describe; make it again"
        )
    tasks = []
    for name, part in rows.groupby("phenotype", sort=True):
        values = study.values(str(name))
        tasks += list(_tasks_of(study.phenotypes[str(name)], part, values, participants, checksums[str(name)]))
    return tasks


def _tasks_of(
    phenotype: Phenotype,
    rows: pd.DataFrame,
    values: pd.Series,
    participants: Sequence[str],
    checksums: dict[str, str],
) -> Iterator[Task]:
    number = pd.Series(np.arange(len(participants)), index=list(participants))
    n_classes = len(class_names(phenotype, values)) if phenotype.type == "classification" else 0
    for key, split in rows.groupby(["protocol", "repetition", "fold"], sort=True):
        protocol, repetition, fold = map(str, key)
        names = {part: sorted(group) for part, group in split.groupby("part")["participant_id"]}
        target, edges = targets(phenotype, values, names["train"])
        aligned = target.reindex(list(participants)).fillna(0).to_numpy(dtype=np.int64 if n_classes else np.float64)
        index = {part: number[members].to_numpy(dtype=np.intp) for part, members in names.items()}
        yield Task(
            phenotype,
            protocol,
            int(repetition),
            fold,
            checksums[protocol],
            index["train"],
            index["validation"],
            index["test"],
            aligned,
            n_classes,
            edges,
        )


def trained_by_steps(tasks: Sequence[Task], settings: Mapping[str, Any]) -> list[Task]:
    """The tasks of heads that are trained by steps: of random splits only the first ``repetitions``.

    Parameters
    ----------
    settings : the section ``probe``.
    """
    random = (RANDOM, TRANSFER)
    return [task for task in tasks if task.protocol not in random or task.repetition < settings["repetitions"]]
