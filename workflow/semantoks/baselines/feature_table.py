"""A user's own features: one row of numbers per participant, from Parquet, TSV or CSV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from semantoks.baselines.features import Index, Matrix, standardise
from semantoks.errors import UserError
from semantoks.files import read_text_table
from semantoks.phenotypes import Phenotype, examples
from semantoks.units import session_of, unit_names

KEYS = {
    *("cohort", "session_id", "session", "ses", "recording_id", "recording", "run", "task", "acq", "dir", "echo"),
    *("acquisition", "direction", "crop", "participant_id"),
}
"""Columns that tell rows apart, as BIDS and this workflow name them: never features unless they are asked for."""


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


def read_feature_table(name: str, settings: Mapping[str, Any], by_session: bool = False) -> FeatureTable:
    """Read a table of features.

    Parameters
    ----------
    name : the row's name.
    settings : ``path``, ``id_column``, ``session_column``, ``columns`` (a list, or null for all others) and
        ``transductive``.
    by_session : whether the unit is the session; then ``session_column`` is needed, else it must be null.

    Raises
    ------
    UserError
        When a column is absent or holds something else than finite numbers, an id is empty, a participant has two
        rows, there is a column that tells sessions or runs apart, or a column of lists has several lengths.
    """
    path, key = Path(settings["path"]), f"features.{name}"
    table = _read(path)
    ids = settings["id_column"]
    session = settings.get("session_column")
    if bool(session) != by_session:
        raise UserError(
            f"{key}.session_column: expected {'the column that names the session' if by_session else 'null'}, because "
            f"participants.session_column of the cohort is {'set' if by_session else 'null'}; found {session or 'null'}"
        )
    named = [ids, session] if session else [ids]
    columns = settings["columns"] or [column for column in table.columns if column not in named]
    missing = [column for column in [*named, *columns] if column not in table.columns]
    if missing:
        raise UserError(
            f"{path}: {key} names the columns {missing}, found {examples(table.columns, 10)}; correct {key}"
        )
    if not columns:
        raise UserError(f"{path}: expected columns with numbers beside {ids}, found none; correct {key}")
    keys = [] if settings["columns"] else [column for column in columns if str(column).lower() in KEYS]
    if keys:
        raise UserError(
            f"{path}: expected one row per participant and columns with features, found {', '.join(keys)}, which tells "
            f"rows apart; average over it and drop the column, or name the features under {key}.columns"
        )
    empty = table[ids].isna() | (table[ids].astype(str).str.strip() == "")
    if empty.any():
        raise UserError(f"{path}: {int(empty.sum())} rows have no {ids}; fill them in or delete the rows")
    participants = [str(value).strip().removeprefix("sub-") for value in _without_decimals(table[ids])]
    if session:
        cells = _without_decimals(table[session]).map(str, na_action="ignore")
        participants = unit_names(participants, [session_of(cell) for cell in cells])
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


def _without_decimals(cells: pd.Series) -> pd.Series:
    """Whole numbers that a Parquet file holds as floats, as many programs write them, as whole numbers."""
    whole = pd.api.types.is_float_dtype(cells) and (cells.dropna() % 1 == 0).all()
    return cells.astype("Int64") if whole else cells


def _read(path: Path) -> pd.DataFrame:
    if path.suffix != ".parquet":
        return read_text_table(path)
    if not path.is_file():
        raise UserError(f"{path}: expected a table of features, found no file")
    try:
        table: pd.DataFrame = pq.read_table(path).to_pandas()
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: expected a Parquet file, found something else ({error})") from None
    # pandas writes a named index as a column and reads it back as an index.
    return table.reset_index() if table.index.name is not None else table


def _numbers(column: pd.Series, path: Path) -> Matrix:
    """A column as [participants, 1], or as [participants, k] when its cells are lists of k numbers."""
    where = f"{path}: column {column.name!r}"
    if column.map(lambda cell: isinstance(cell, list | np.ndarray)).any():
        values = _lists(column, where)
    elif pd.api.types.is_datetime64_any_dtype(column) or pd.api.types.is_timedelta64_dtype(column):
        raise UserError(f"{where}: expected numbers, found dates or times; drop the column or name others")
    else:
        numbers = pd.to_numeric(column, errors="coerce")
        bad = column[numbers.isna() & column.notna()]
        if len(bad):
            found = examples(sorted(set(map(str, bad))))
            raise UserError(f"{where}: expected finite numbers, found {found}; correct the table")
        values = numbers.to_numpy(dtype=np.float64, na_value=np.nan)[:, None]
    infinite = values[np.abs(values) > np.finfo(np.float32).max]
    if len(infinite):
        of = np.flatnonzero((np.abs(values) > np.finfo(np.float32).max).any(axis=1))
        lists = f" in the lists of {len(of)} participants" if values.shape[1] > 1 else ""
        raise UserError(
            f"{where}: expected finite numbers, found {examples(sorted({f'{one:g}' for one in infinite}))}{lists}; "
            "correct the table"
        )
    return values.astype(np.float32)


def _lists(column: pd.Series, where: str) -> npt.NDArray[np.float64]:
    """A column of lists of k numbers as [participants, k]."""
    empty = int(column.map(lambda cell: not isinstance(cell, list | np.ndarray)).sum())
    if empty:
        raise UserError(f"{where}: expected a list in every row, found {empty} empty cells; drop these participants")
    lengths = sorted(set(column.map(len)))
    if len(lengths) != 1:
        raise UserError(f"{where}: expected lists of one length, found {lengths}")
    for cell in column.iloc[0]:
        if isinstance(cell, list | np.ndarray):
            raise UserError(f"{where}: expected lists of numbers, found lists of lists; flatten them")
    try:
        return np.stack([np.asarray(cell, dtype=np.float64) for cell in column])
    except (TypeError, ValueError):
        raise UserError(f"{where}: expected lists of numbers, found {column.iloc[0][0]!r}; correct the table") from None
