"""Codes that stand for "not known" in a table that was read as text."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd


def as_code(text: str) -> str:
    """One spelling for codes that are the same number: ``-9999``, ``-9999.0`` and ``" -9999"`` agree."""
    text = str(text).strip()
    try:
        number = float(text)
    except ValueError:
        return text
    return repr(number)


def without_codes(table: pd.DataFrame, codes: Iterable[str | float]) -> pd.DataFrame:
    """The table with null wherever one of the codes stands, in any column."""
    missing = {as_code(str(code)) for code in codes}
    return table.mask(table.apply(lambda column: column.map(as_code, na_action="ignore").isin(missing)))
