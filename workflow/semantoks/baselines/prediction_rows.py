"""Predictions as rows of the probe table (docs/data-contracts.md), the same for every kind of model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from semantoks.baselines.tasks import Prediction, Task
from semantoks.phenotypes import Cohort, class_names, families, phenotype_values, site_groups, sites


@dataclass(frozen=True)
class Origin:
    """Where a row's features come from; ``seen`` names the participants of its pretraining, or says all or none."""

    features: str
    encoder: str | None = None
    seed: int | None = None
    seen: frozenset[str] | bool = False


def people_of(cohort: Cohort, table: pd.DataFrame, participants: Sequence[str]) -> pd.DataFrame:
    """Columns ``site``, ``site_group``, ``family`` of the participants, in their order."""
    columns = {"site": sites(cohort, table), "site_group": site_groups(cohort, table)}
    return pd.DataFrame({**columns, "family": families(cohort, table)}).reindex(list(participants))


def rows_of(
    row: str, head: str, origin: Origin, task: Task, prediction: Prediction, people: pd.DataFrame
) -> pd.DataFrame:
    """The rows of the probe table for one task: one per test participant.

    Parameters
    ----------
    row, head : name of the table's row, and of the head that predicts.
    people : of :func:`people_of`, in the order of the task's row numbers.
    """
    tested = people.iloc[task.test]
    table = pd.DataFrame({"participant_id": tested.index.to_numpy(dtype=str)})
    table["row"] = row
    table["head"] = head
    table["encoder"] = origin.encoder
    table["pretrain_seed"] = pd.Series(origin.seed, index=table.index, dtype="Int64")
    table["features"] = origin.features
    table["phenotype"] = task.phenotype.name
    table["protocol"] = task.protocol
    table["repetition"] = task.repetition
    table["fold"] = task.fold
    table["split_checksum"] = task.checksum
    table["n_train"] = prediction.n_train
    for name in ("site", "site_group", "family"):
        table[name] = tested[name].to_numpy()
    table["setting"] = prediction.setting
    table["bin_edges"] = pd.Series([task.bin_edges] * len(table), index=table.index)
    table["y_true"] = task.target[task.test].astype(np.float64)
    table["y_score"] = list(prediction.scores)
    seen = origin.seen
    table["transductive"] = seen if isinstance(seen, bool) else table["participant_id"].isin(seen)
    return table


def with_key(rows: pd.DataFrame, cohort: str) -> pd.DataFrame:
    """The rows with the key columns of every table, in a fixed order."""
    rows.insert(0, "cohort", cohort)
    rows.insert(2, "session_id", pd.Series(None, index=rows.index, dtype="string"))
    rows.insert(3, "recording_id", pd.Series(None, index=rows.index, dtype="string"))
    order = ["phenotype", "protocol", "repetition", "fold", "row", "participant_id"]
    return rows.sort_values(order, ignore_index=True)


def describe(cohort: Cohort, table: pd.DataFrame) -> dict[str, Any]:
    """What tables say about each phenotype: its type, classes, bins and published task."""
    described = {}
    for name, phenotype in cohort.phenotypes.items():
        values = phenotype_values(phenotype, table)
        described[name] = {
            "type": phenotype.type,
            "classes": class_names(phenotype, values) if phenotype.type == "classification" else None,
            "bins": phenotype.bins,
            "published": phenotype.published,
            "negative_control": phenotype.negative_control,
        }
    return {"phenotypes": described}
