"""A user's own features: one row of numbers per participant, from Parquet, TSV or CSV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from semantoks.baselines.features import Index, Matrix, standardise
from semantoks.errors import UserError
from semantoks.files import read_text_table
from semantoks.phenotypes import Phenotype, examples


@dataclass(frozen=True)
class FeatureTable:
    """Features of a model that this workflow does not run.

    ``values`` is [participants, features] float32, NaN where missing; ``seen`` says whether that model's pretraining
    saw the cohort, None where nobody knows.
    """

    name: str
    participants: list[str]
    values: Matrix
    seen: bool | None

    def design(self, phenotype: Phenotype, training: Index) -> Matrix:
        """Standardised columns; a missing value is the training mean."""
        return standardise(self.values, training)


def read_feature_table(name: str, settings: Mapping[str, Any]) -> FeatureTable:
    """Read a table of features.

    Parameters
    ----------
    name : the row's name.
    settings : ``path``, ``id_column``, ``columns`` (a list, or null for all others) and ``transductive``.

    Raises
    ------
    UserError
        When a column is absent or holds something else than numbers, a participant has two rows, or a column of lists
        has several lengths.
    """
    path, key = Path(settings["path"]), f"features.{name}"
    table = _read(path)
    ids = settings["id_column"]
    columns = settings["columns"] or [column for column in table.columns if column != ids]
    missing = [column for column in [ids, *columns] if column not in table.columns]
    if missing:
        raise UserError(
            f"{path}: {key} names the columns {missing}, found {examples(table.columns, 10)}; correct {key}"
        )
    participants = [str(value).strip().removeprefix("sub-") for value in table[ids]]
    repeated = sorted(who for who, count in Counter(participants).items() if count > 1)
    if repeated:
        raise UserError(
            f"{path}: expected one row per participant, found several for {len(repeated)} of them "
            f"({examples(repeated)}); average them or keep one"
        )
    values = np.concatenate([_numbers(table[column], path) for column in columns], axis=1)
    if not np.isfinite(values).any():
        raise UserError(
            f"{path}: expected numbers in the columns {examples(columns)}, found none; correct {key}.columns"
        )
    order = np.argsort(participants)
    return FeatureTable(name, [participants[row] for row in order], values[order], settings["transductive"])


def _read(path: Path) -> pd.DataFrame:
    if path.suffix != ".parquet":
        return read_text_table(path)
    if not path.is_file():
        raise UserError(f"{path}: expected a table of features, found no file")
    try:
        table: pd.DataFrame = pq.read_table(path).to_pandas()
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: expected a Parquet file, found something else ({error})") from None
    return table


def _numbers(column: pd.Series, path: Path) -> Matrix:
    """A column as [participants, 1], or as [participants, k] when its cells are lists of k numbers."""
    if column.map(lambda cell: isinstance(cell, list | np.ndarray)).all():
        lengths = sorted(set(column.map(len)))
        if len(lengths) != 1:
            raise UserError(f"{path}: column {column.name!r}: expected lists of one length, found {lengths}")
        return np.stack(column.to_list()).astype(np.float32)
    numbers = pd.to_numeric(column, errors="coerce")
    bad = column[numbers.isna() & column.notna()]
    if len(bad) or np.isinf(numbers.to_numpy(dtype=np.float64, na_value=np.nan)).any():
        found = examples(sorted(set(map(str, bad)))) or "inf"
        raise UserError(f"{path}: column {column.name!r}: expected finite numbers, found {found}; correct the table")
    return numbers.to_numpy(dtype=np.float32, na_value=np.nan)[:, None]
