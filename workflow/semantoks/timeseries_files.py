"""One file of a time series that was extracted elsewhere: text with or without header, or NPY."""

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def read_array(path: Path) -> NDArray[np.float32]:
    """Values of an NPY file as they lie there; nothing is unpickled.

    Raises
    ------
    ValueError
        When it is another kind of file (an NPZ archive, say) or holds no real numbers.
    """
    with path.open("rb") as file:
        values = np.load(file, allow_pickle=False)
    if not isinstance(values, np.ndarray):
        raise ValueError("expected one array, found an archive of several (NPZ); save it with numpy.save")
    if values.dtype.kind not in "iuf":
        raise ValueError(f"expected real numbers, found {values.dtype}")
    return values.astype(np.float32)


def read_text(path: Path, source: Mapping[str, Any]) -> tuple[NDArray[np.float32], list[str]]:
    """Values [row, column] of a delimited text file (also ``.gz``) and the names in its header.

    A column of row numbers is left out where the header has no name for it: it is missing there (R) or empty (pandas).

    Parameters
    ----------
    source : keys ``delimiter`` (null for any white space) and ``header`` (whether there is one).

    Raises
    ------
    ValueError
        When rows have other numbers of fields than the header, or a field is no number.
    """
    options: dict[str, Any] = {"sep": source["delimiter"] or r"\s+", "header": None, "index_col": False}
    with _opened(path) as file:
        names: list[str] = []
        if source["header"]:
            line = next((line for line in file if line.strip()), "")
            names = pd.read_csv(io.StringIO(line), dtype=str, keep_default_na=False, **options).iloc[0].tolist()
        values = pd.read_csv(file, na_values=["n/a"], **options).to_numpy()
    if names and len(names) == values.shape[1] and not names[0].strip():
        names = names[1:]
    if names and len(names) == values.shape[1] - 1 and _are_row_numbers(values[:, 0]):
        values = values[:, 1:]
    if names and len(names) != values.shape[1]:
        raise ValueError(
            f"expected {len(names)} fields in every row as in the header, found {values.shape[1]}; does every row end "
            "in a delimiter, or has a column no name?"
        )
    return values.astype(np.float32), names


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig"))
    return path.open(encoding="utf-8-sig")


def _are_row_numbers(column: NDArray[Any]) -> bool:
    """Whether a column counts the rows, from 0 or from 1."""
    return any(np.array_equal(column, np.arange(first, first + len(column))) for first in (0, 1))
