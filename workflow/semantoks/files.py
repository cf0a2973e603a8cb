"""Reading and writing the files in which stages meet.

Every file is written to a temporary name and renamed, and carries what made it
(stage, versions, settings, checksums of inputs) as JSON in its metadata.
"""

from __future__ import annotations

import errno
import functools
import glob
import hashlib
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata as package_metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from semantoks import __version__
from semantoks.errors import UserError

KEY = ["cohort", "participant_id", "session_id", "recording_id"]
"""Key columns of every table, text; ``session_id`` is null without sessions."""

METADATA_KEY = b"semantoks"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_VERSIONED = ("numpy", "pandas", "pyarrow", "nibabel", "nilearn", "scipy", "scikit-learn", "torch")


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` when the block succeeds.

    What processes of this machine that were killed meanwhile had left beside ``path`` is deleted.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.{platform.node()}-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        writer = left.name.removeprefix(prefix).split("-")[0]
        if writer.isdecimal() and not _alive(int(writer)):
            left.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{prefix}{os.getpid()}-", suffix="".join(path.suffixes))
    os.close(handle)
    temporary = Path(name)
    try:
        try:
            yield temporary
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise UserError(
                    f"{path}: expected to write it, found {os.strerror(error.errno)}; free some space, then run again"
                ) from None
            raise
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        # a machine that fails right after the renaming must not leave an empty file under the final name
        with temporary.open("rb") as file:
            os.fsync(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sha256(path: Path | str) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(
    stage: str, settings: Mapping[str, Any], inputs: Iterable[Path | str] = (), **further: Any
) -> dict[str, Any]:
    """What made a file: stage, versions, settings and the checksum of every input file.

    Parameters
    ----------
    stage : name of the stage, as in the rule.
    settings : the settings really used; must be JSON-able.
    inputs : paths of input files, stored with their SHA-256.
    further : more metadata of the file, e.g. ``roi_names``.
    """
    checksums = {str(path): sha256(path) for path in sorted(map(str, inputs))}
    return {
        "stage": stage,
        "versions": dict(_versions()),
        "settings": dict(settings),
        "inputs": checksums,
        **further,
    }


@functools.cache
def _versions() -> Mapping[str, str]:
    versions = {"semantoks": __version__, "python": platform.python_version()}
    for name in _VERSIONED:
        try:
            versions[name] = package_metadata.version(name)
        except package_metadata.PackageNotFoundError:
            continue
    return versions


def write_table(path: Path | str, table: pd.DataFrame | pa.Table, metadata: Mapping[str, Any]) -> None:
    """Write a Parquet file with ``metadata`` (see :func:`provenance`) as JSON beside its schema."""
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False)
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, **parquet_options(table.schema))


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """How our Parquet files are written: zstd, but time series in binary columns as they are.

    These are half noise: zstd takes 8 % off them, and reading takes five times longer.
    """
    raw = {field.name for field in schema if pa.types.is_binary(field.type)}
    return {
        "compression": {name: "none" if name in raw else "zstd" for name in schema.names},
        "use_dictionary": [name for name in schema.names if name not in raw],
    }


def read_metadata(path: Path | str) -> dict[str, Any]:
    """The metadata that :func:`write_table` stored.

    Raises
    ------
    UserError
        When the file is missing, is no Parquet file or was not written by this workflow.
    """
    stored = _parquet(path).schema_arrow.metadata or {}
    if METADATA_KEY not in stored:
        raise UserError(
            f"{path}: expected a Parquet file written by this workflow, found one without its "
            "metadata; make it with the stage that owns it"
        )
    metadata: dict[str, Any] = json.loads(stored[METADATA_KEY])
    return metadata


def read_table(path: Path | str, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a Parquet file; missing columns are a :class:`UserError` that names them.

    Text columns hold ``str`` or None, never NaN.
    """
    return read_tables([path], columns)


def read_tables(paths: Iterable[Path | str], columns: list[str] | None = None) -> pd.DataFrame:
    """Read several Parquet files of one kind and stack their rows in the order of the paths."""
    parts = [_read(path, columns) for path in paths]
    parts = [part for part in parts if part.num_rows] or parts[:1]
    # a column of which one file knows no value has no type there
    table = parts[0] if len(parts) == 1 else pa.concat_tables(parts, promote_options="permissive")
    result: pd.DataFrame = table.to_pandas()
    for field in table.schema:
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type) or pa.types.is_null(field.type):
            result[field.name] = pd.Series(table[field.name].to_pylist(), dtype=object)
    return result


def _read(path: Path | str, columns: list[str] | None) -> pa.Table:
    file = _parquet(path)
    missing = set(columns or ()) - set(file.schema_arrow.names)
    if missing:
        raise UserError(
            f"{path}: expected the columns {sorted(missing)}, found {file.schema_arrow.names}; "
            "was it written by another stage or version?"
        )
    return file.read(columns=columns)


def _parquet(path: Path | str) -> pq.ParquetFile:
    if not Path(path).is_file():
        raise UserError(f"{path}: expected a Parquet file, found none; run the stage that writes it")
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: expected a Parquet file, found something else ({error})") from None


def read_json(path: Path | str) -> Any:
    """Read a JSON file; broken syntax is a :class:`UserError` that names the file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: expected a JSON file, found none") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected JSON, found {error}") from None


def write_text(path: Path | str, text: str) -> None:
    """Write a text file (UTF-8) by renaming."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_text_if_changed(path: Path | str, text: str) -> None:
    """Write a text file unless it says so already: its time stays, and a read-only folder is no error."""
    if not Path(path).is_file() or Path(path).read_text(encoding="utf-8") != text:
        write_text(path, text)


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON with sorted keys, so that the same value gives the same bytes."""
    write_text(path, _json_text(value))


def write_json_if_changed(path: Path | str, value: Any) -> None:
    """As :func:`write_json`, unless the file says so already."""
    write_text_if_changed(path, _json_text(value))


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def read_text_table(path: Path | str) -> pd.DataFrame:
    """Read a TSV or CSV table with every value as text; ``n/a`` and empty cells become null.

    Ids keep their leading zeros because nothing is converted here.
    """
    return _read_delimited(Path(path), dtype=str)


def read_number_table(path: Path | str) -> pd.DataFrame:
    """Read the columns of numbers of a TSV or CSV table, as float64; ``n/a`` and empty is NaN, columns of text are not.

    Raises
    ------
    UserError
        When the file is missing or no table, or a column that holds numbers elsewhere has text in some row.
    """
    table = _read_delimited(Path(path), dtype=None)
    for name, column in table.select_dtypes(exclude="number").items():
        as_number = pd.to_numeric(column, errors="coerce")
        text = np.flatnonzero(column.notna() & as_number.isna())
        if len(text) < as_number.notna().sum():
            raise UserError(
                f"{path}: column {name!r}: expected numbers, found {column.iloc[text[0]]!r} in row {text[0] + 1} "
                f"({len(text)} such rows); correct the table"
            )
    return table.select_dtypes("number").astype(np.float64)


def _read_delimited(path: Path, dtype: type | None) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"{path}: expected a table (TSV or CSV), found no file")
    separator = "," if ".csv" in path.suffixes else "\t"
    options: Any = {"keep_default_na": False, "na_values": ["n/a", ""], "encoding": "utf-8-sig"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # else fields beyond the header's get lost
            table = pd.read_csv(path, sep=separator, dtype=dtype, index_col=False, **options)
    except pd.errors.ParserWarning:
        raise UserError(
            f"{path}: expected as many fields in a row as the header has, found more; does the header lack the name "
            "of the first column?"
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a {'CSV' if separator == ',' else 'TSV'} table, found {error}") from None
    stripped: pd.DataFrame = table.rename(columns=str.strip)
    return stripped
