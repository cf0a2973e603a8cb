"""Recordings whose time series were extracted elsewhere: the rows of an HDF5 file, or files that fit a pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semantoks.errors import UserError
from semantoks.hdf5_source import open_hdf5, texts

PREFIXES = {"participant_id": "sub-", "session_id": "ses-", "task": "task-", "run": "run-"}
"""What a pattern of imported time series may name, and the prefix that BIDS puts before it."""

LABEL = re.compile(r"[_.+-]*[A-Za-z0-9][A-Za-z0-9_.+-]*")
"""Labels of imported recordings: more than BIDS allows (``Caltech_0051456``), nothing that a shell would read."""


def hdf5_recordings(source: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Recordings of an HDF5 file, in the order of the rows of its datasets.

    Raises
    ------
    UserError
        When the file has another layout (see :func:`semantoks.hdf5_source.open_hdf5`), an id does not fit
        ``source.id_pattern``, or two rows are read as one recording.
    """
    with open_hdf5(source) as file:
        ids = texts(file[source["id"]])
    expression = _pattern_expression(source["id_pattern"])
    rows = []
    row_of: dict[str, int] = {}
    for position, label in enumerate(ids):
        match = expression.fullmatch(label)
        if not match:
            raise UserError(
                f"{source['path']}: key 'source.id_pattern': expected ids like {source['id_pattern']!r}, "
                f"found {label!r}; correct the pattern or the dataset {source['id']!r}"
            )
        row = _imported_row(_labels(match), (source["path"],))
        first = row_of.setdefault(row["recording_id"], position)
        if first != position:
            raise UserError(
                f"{source['path']}: key 'source.id': expected an id of its own for every recording, found "
                f"{ids[first]!r} and {label!r} (rows {first} and {position}), both read as {row['recording_id']}; "
                f"correct the dataset {source['id']!r}, or name what tells them apart in 'source.id_pattern'"
            )
        rows.append(row)
    return rows


def hdf5_positions(source: Mapping[str, Any]) -> dict[str, int]:
    """Row of each recording in the datasets of an HDF5 file, by ``recording_id``."""
    return {row["recording_id"]: position for position, row in enumerate(hdf5_recordings(source))}


def file_recordings(source: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Time-series files by pattern; a recording with only some of its parts is excluded with the reason.

    Raises
    ------
    UserError
        When two files are the same part of one recording.
    """
    root = Path(source["path"])
    found: dict[tuple[str, ...], list[str]] = {}
    for number, pattern in enumerate(source["patterns"]):
        expression = _pattern_expression(pattern)
        for path in sorted(root.rglob("*")):
            match = expression.fullmatch(path.relative_to(root).as_posix())
            if match and path.is_file():
                labels = _labels(match)
                parts = found.setdefault(tuple(labels.get(n, "") for n in PREFIXES), [""] * len(source["patterns"]))
                if parts[number]:
                    raise UserError(
                        f"{root}: pattern {pattern!r}: expected one file for a recording, found {parts[number]} and "
                        f"{path}; make it more specific"
                    )
                parts[number] = str(path)
    rows = []
    for values, parts in found.items():
        missing = [pattern for pattern, path in zip(source["patterns"], parts, strict=True) if not path]
        reason = f"no file for {', '.join(missing)}" if missing else None
        rows.append(_imported_row(dict(zip(PREFIXES, values, strict=True)), tuple(parts), reason))
    return rows


def _labels(match: re.Match[str]) -> dict[str, str]:
    """What a pattern found, without the prefixes of BIDS: ``sub-01`` is the participant ``01``."""
    return {name: value.removeprefix(PREFIXES[name]) or value for name, value in match.groupdict().items()}


def _imported_row(fields: Mapping[str, str], paths: tuple[str, ...], reason: str | None = None) -> dict[str, Any]:
    """Row of a recording that is known by the fields of a pattern; a forbidden label is its reason."""
    known = {name: fields[name] for name in PREFIXES if fields.get(name)}
    for name, value in known.items():
        if not LABEL.fullmatch(value):
            reason = f"{name}: expected letters, digits, '_', '-', '+' and '.', found {value!r}; rename it in the data"
    return {
        **known,
        "recording_id": "_".join(f"{PREFIXES[name]}{value}" for name, value in known.items()),
        "paths": paths,
        "exclude_reason": reason,
    }


def _pattern_expression(pattern: str) -> re.Pattern[str]:
    """A pattern as regular expression; a field that stands in it again holds the same text."""
    expression = ""
    fields = [f"{{{name}}}" for name in PREFIXES]
    for piece in re.split(r"(\{\w+\}|\*)", pattern):
        name = piece[1:-1]
        if piece in fields:
            expression += f"(?P={name})" if f"(?P<{name}>" in expression else f"(?P<{name}>[^/]+?)"
        elif piece.startswith("{"):
            raise UserError(f"source.patterns: unknown field {piece} in {pattern!r}; known: {', '.join(fields)}")
        else:
            expression += "[^/]*" if piece == "*" else re.escape(piece)
    return re.compile(expression)
