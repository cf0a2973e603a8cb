"""Recordings whose time series were extracted elsewhere: the rows of an HDF5 file, or files that fit a pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semantoks.errors import UserError

FIELDS = ["participant_id", "session_id", "task", "run"]
"""What a pattern of imported time series may name."""


def hdf5_recordings(source: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Recordings of an HDF5 file, in the order of the rows of its datasets."""
    import h5py

    try:
        with h5py.File(source["path"], "r") as file:
            for dataset in [*source["datasets"], source["id"]]:
                if dataset not in file:
                    raise UserError(
                        f"{source['path']}: keys 'source.datasets' and 'source.id': expected the dataset {dataset!r}, "
                        f"found {', '.join(_datasets(file))}; correct the cohort file"
                    )
            ids = [value.decode() if isinstance(value, bytes) else str(value) for value in file[source["id"]][:]]
    except OSError as error:
        raise UserError(f"{source['path']}: expected an HDF5 file, found {error}") from None
    expression = _pattern_expression(source["id_pattern"])
    rows = []
    for label in ids:
        match = expression.fullmatch(label)
        if not match:
            raise UserError(
                f"{source['path']}: key 'source.id_pattern': expected ids like {source['id_pattern']!r}, "
                f"found {label!r}"
            )
        rows.append(_imported_row(match.groupdict(), (source["path"],)))
    return rows


def hdf5_positions(source: Mapping[str, Any]) -> dict[str, int]:
    """Row of each recording in the datasets of an HDF5 file, by ``recording_id``."""
    return {row["recording_id"]: position for position, row in enumerate(hdf5_recordings(source))}


def _datasets(file: Any) -> list[str]:
    names: list[str] = []
    file.visit(names.append)
    return names


def file_recordings(source: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Time-series files by pattern; a recording with only some of its parts is excluded with the reason."""
    root = Path(source["path"])
    found: dict[tuple[str, ...], list[str]] = {}
    for number, pattern in enumerate(source["patterns"]):
        expression = _pattern_expression(pattern)
        for path in sorted(root.rglob("*")):
            match = expression.fullmatch(path.relative_to(root).as_posix())
            if match and path.is_file():
                fields = match.groupdict()
                parts = found.setdefault(tuple(fields.get(n) or "" for n in FIELDS), [""] * len(source["patterns"]))
                if parts[number]:
                    raise UserError(
                        f"{root}: pattern {pattern!r} fits {parts[number]} and {path}; make it more specific"
                    )
                parts[number] = str(path)
    rows = []
    for values, parts in found.items():
        missing = [pattern for pattern, path in zip(source["patterns"], parts, strict=True) if not path]
        reason = f"no file for {', '.join(missing)}" if missing else None
        rows.append(_imported_row(dict(zip(FIELDS, values, strict=True)), tuple(parts), reason))
    return rows


def _imported_row(
    fields: Mapping[str, str | None], paths: tuple[str, ...], reason: str | None = None
) -> dict[str, Any]:
    """Row of a recording that is known by the fields of a pattern."""
    prefixes = {"participant_id": "sub", "session_id": "ses", "task": "task", "run": "run"}
    known = {name: fields[name] for name in FIELDS if fields.get(name)}
    return {
        **known,
        "recording_id": "_".join(f"{prefixes[name]}-{value}" for name, value in known.items()),
        "paths": paths,
        "exclude_reason": reason,
    }


def _pattern_expression(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"(\{\w+\}|\*)", pattern)
    fields = [f"{{{name}}}" for name in FIELDS]
    expression = ""
    for piece in pieces:
        if piece in fields:
            expression += f"(?P<{piece[1:-1]}>[^/]+?)"
        elif piece.startswith("{"):
            raise UserError(f"source.patterns: unknown field {piece} in {pattern!r}; known: {', '.join(fields)}")
        else:
            expression += "[^/]*" if piece == "*" else re.escape(piece)
    return re.compile(expression)
