"""Learning curves: the primary metric of every row by the number of participants that it was fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from semantoks.protocols import LEARNING_CURVE, RANDOM
from semantoks.statistics import interval
from semantoks.summaries import RandomSplits
from semantoks.task_scores import collect

CURVE_COLUMNS = [
    *("cohort", "phenotype", "metric", "row", "size", "n_train", "n_test", "draws", "mean", "sd", "ci_low", "ci_high"),
    "transductive",
]


def learning_curves(predictions: pd.DataFrame, kinds: Mapping[str, str], settings: Mapping[str, Any]) -> pd.DataFrame:
    """The primary metric of random splits for every row and size of the learning curves.

    ``mean`` and ``sd`` are over draws of the participants fitted on; the interval is over the tested participants,
    given the models. There are no p values: all points share their test part.
    """
    records = []
    own = predictions[predictions["protocol"] == LEARNING_CURVE]
    for key, group in own.groupby(["cohort", "phenotype", "fold"], sort=True):
        cohort, phenotype, size = map(str, key)
        (task,) = collect(group, kinds)
        summarised = RandomSplits(task, settings["draws"])
        metric = settings["primary"][RANDOM][task.kind]
        for row in task.rows:
            made = summarised.summary(metric, row)
            low, high = interval(made.own_draws, settings["confidence"])
            point = {"cohort": cohort, "phenotype": phenotype, "metric": metric, "row": row.name, "size": int(size)}
            tested = [repetition.n_test for repetition in task.repetitions[: len(made.values)]]
            point |= {"n_train": row.n_train.mean(), "n_test": np.mean(tested)}
            point |= {"draws": len(made.values), "mean": made.values.mean(), "ci_low": low, "ci_high": high}
            sd = made.values.std(ddof=1) if len(made.values) > 1 else np.nan
            records.append(point | {"sd": sd, "transductive": row.transductive})
    table = pd.DataFrame(records, columns=CURVE_COLUMNS)
    return table.sort_values(["phenotype", "row", "size"], ignore_index=True)
