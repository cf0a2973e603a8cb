"""Confusion matrices of every row of a probe table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

COLUMNS = ["cohort", "protocol", "phenotype", "row", "true", "predicted", "participants", "share"]


def confusion_matrices(predictions: pd.DataFrame, classes: Mapping[str, Sequence[str] | None]) -> pd.DataFrame:
    """How many participants of each class are predicted to be of which one.

    Parameters
    ----------
    predictions : rows of the probe files of a cohort.
    classes : names of each phenotype's classes in the order of their ids; None for numbers.

    Returns
    -------
    Columns as in ``COLUMNS``: ``participants`` is the mean over repetitions and pretraining seeds (folds are pooled),
    ``share`` that of the true class.
    """
    records: list[dict[str, object]] = []
    for key, part in predictions.groupby(["cohort", "protocol", "phenotype", "row"], sort=True):
        cohort, protocol, phenotype, row = map(str, key)
        names = classes[phenotype]
        if names is None:
            continue
        predicted = np.stack(part["y_score"].to_list()).argmax(axis=1)
        times = len(part[["repetition", "pretrain_seed"]].drop_duplicates())
        counts = np.zeros((len(names), len(names)))
        np.add.at(counts, (part["y_true"].to_numpy(dtype=int), predicted), 1 / times)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-12)
        named = {"cohort": cohort, "protocol": protocol, "phenotype": phenotype, "row": row}
        for true, guess in np.ndindex(counts.shape):
            entry = {"participants": counts[true, guess], "share": shares[true, guess]}
            records.append({**named, "true": names[true], "predicted": names[guess], **entry})
    return pd.DataFrame(records, columns=COLUMNS)
