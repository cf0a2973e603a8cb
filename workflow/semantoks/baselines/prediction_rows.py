"""Predictions as rows of the probe table (docs/data-contracts.md), the same for every kind of model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from semantoks.baselines.tasks import Prediction, Task


@dataclass(frozen=True)
class Origin:
    """Where a row's features come from.

    ``seen`` names the tested participants that its pretraining saw, or says all or none; None where nobody knows.
    """

    features: str
    encoder: str | None = None
    seed: int | None = None
    seen: frozenset[str] | bool | None = False


def rows_of(
    row: str, head: str, origin: Origin, task: Task, prediction: Prediction, people: pd.DataFrame
) -> pd.DataFrame:
    """The rows of the probe table for one task: one per test participant.

    Parameters
    ----------
    row, head : name of the table's row, and of the head that predicts.
    people : of :meth:`Study.people`, in the order of the task's row numbers.
    """
    tested = people.iloc[task.test]
    table = pd.DataFrame({"participant_id": tested["participant_id"].to_numpy(dtype=str)})
    table["session_id"] = tested["session_id"].astype("string").to_numpy()
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
    seen = tested.index.isin(origin.seen) if isinstance(origin.seen, frozenset) else origin.seen
    table["transductive"] = pd.Series(seen, index=table.index, dtype="boolean")
    return table


def with_key(rows: pd.DataFrame, cohort: str) -> pd.DataFrame:
    """The rows with the key columns of every table, in a fixed order."""
    rows.insert(0, "cohort", cohort)
    rows.insert(2, "session_id", rows.pop("session_id").astype("string"))
    rows.insert(3, "recording_id", pd.Series(None, index=rows.index, dtype="string"))
    order = ["phenotype", "protocol", "repetition", "fold", "row", "participant_id", "session_id"]
    return rows.sort_values(order, ignore_index=True)
