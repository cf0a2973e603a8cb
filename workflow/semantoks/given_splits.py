"""Splits of the user's own, from a table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from semantoks.errors import UserError
from semantoks.files import read_text_table
from semantoks.phenotypes import examples
from semantoks.split_units import Units
from semantoks.units import participant_and_session, session_of, unit_names


def read_given(path: str, table: pd.DataFrame, by_session: bool = False) -> pd.DataFrame:
    """A user's splits: columns participant_id and part, and where there are several phenotype, repetition, fold.

    Where the unit is the session, a participant has all sessions in one part (a column session_id is not needed).

    Raises
    ------
    UserError
        When columns, participants or parts are unknown, or a cell is empty.
    """
    given = read_text_table(path)
    missing = {"participant_id", "part"} - set(given.columns)
    if missing:
        raise UserError(f"{path}: expected the columns participant_id and part, found {list(given.columns)}")
    for name in ("participant_id", "part", "phenotype", "repetition", "fold"):
        empty = [str(row + 2) for row in np.flatnonzero(given[name].isna())] if name in given else []
        if empty:
            lines = f"line{'s' * (len(empty) > 1)} {examples(empty)}"
            raise UserError(f"{path}: {name} is empty in {lines}; fill the cells or drop the column or the rows")
    given["participant_id"] = given["participant_id"].str.strip().str.removeprefix("sub-")
    if by_session:
        given = _with_sessions(given, table)
    given = given.assign(**{name: "0" for name in ("repetition", "fold") if name not in given})
    unknown = sorted(set(given["part"]) - {"train", "validation", "test"})
    if unknown:
        raise UserError(f"{path}: expected train, validation or test as part, found {unknown}")
    strangers = sorted(set(given["participant_id"]) - set(table.index))
    if strangers:
        raise UserError(
            f"{path}: {len(strangers)} of its participants have no recording or no row in the participants table "
            f"({examples(strangers)}); take them out"
        )
    try:
        return given.assign(repetition=given["repetition"].astype(int))
    except ValueError as error:
        raise UserError(f"{path}: expected whole numbers as repetition, found {error}") from None


def _with_sessions(given: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Each row as the session that it names, or as all sessions of its participant; strangers stay as they are."""
    if "session_id" in given:
        sessions = [session_of(cell) for cell in given["session_id"]]
        return given.assign(participant_id=unit_names(given["participant_id"], sessions))
    units: dict[str, list[str]] = {}
    for name in table.index:
        units.setdefault(participant_and_session(name, True)[0], []).append(name)
    sessions_of = given["participant_id"].map(lambda name: units.get(name, [name]))
    return given.assign(participant_id=sessions_of).explode("participant_id", ignore_index=True)


def given_parts(
    given: pd.DataFrame, phenotype: str, units: Units, path: str
) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Repetition, fold and parts of a user's splits of one phenotype, among its participants.

    Raises
    ------
    UserError
        When a participant is in two parts, a family in several, or a part is empty.
    """
    rows = given[given["phenotype"] == phenotype] if "phenotype" in given else given
    family = {participant: name for name, members in units.members.items() for participant in members}
    rows = rows[rows["participant_id"].isin(family)]
    if rows.empty:
        raise UserError(f"{path}: phenotype {phenotype}: expected splits of its participants, found none; add them")
    for key, split in rows.groupby(["repetition", "fold"], sort=True):
        where = f"{path}: phenotype {phenotype}, repetition {key[0]}, fold {key[1]}"
        twice = sorted(split["participant_id"][split["participant_id"].duplicated()])
        if twice:
            raise UserError(f"{where}: {examples(twice)} more than once; a participant belongs to one part")
        divided = split.groupby(split["participant_id"].map(family))["part"].nunique()
        if (divided > 1).any():
            raise UserError(f"{where}: members of {examples(divided.index[divided > 1])} are in different parts")
        if set(split["part"]) != {"train", "validation", "test"}:
            raise UserError(f"{where}: expected train, validation and test, found {sorted(set(split['part']))}")
        repetition, fold = map(str, key)
        yield int(repetition), fold, dict(sorted(zip(split["participant_id"], split["part"], strict=True)))
