"""Stage ``parcellate`` for cohorts that bring extracted time series: HDF5 or files, in the form parcellation gives.

What the cohort declares as already done (band-pass, z-score) is not done twice; what was not done is done here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from semantoks import signals
from semantoks.errors import UserError, run_command
from semantoks.files import KEY, provenance, read_json, read_table, read_text_table, write_table
from semantoks.hdf5_source import open_hdf5, texts
from semantoks.imported_recordings import hdf5_positions
from semantoks.timeseries_files import read_array, read_text
from semantoks.timeseries_table import SCHEMA

Band = tuple[float | None, float | None]
Reader = Callable[[Mapping[str, Any]], NDArray[np.float32]]


def clean_imported(
    bold: NDArray[np.floating], tr: float, already_done: Mapping[str, Any], band_pass: Band, remove_trend: bool
) -> NDArray[np.float32]:
    """Do what was not done yet to an imported recording.

    Parameters
    ----------
    bold : float [ROI, time], native TR.
    tr : seconds.
    already_done : the cohort's declaration, keys ``band_pass`` and ``z_score``.
    band_pass : pass-band in Hz to apply when none was.
    remove_trend : remove mean and linear trend.

    Returns
    -------
    float32 [ROI, time]; a constant or zero ROI is a parcel without data: NaN.

    Raises
    ------
    ValueError
        When some but not all frames of an ROI are missing (NaN or infinite), or no ROI has data.
    """
    bold = np.asarray(bold, dtype=np.float64)
    missing = ~np.isfinite(bold)
    gaps = missing.any(axis=1) & ~missing.all(axis=1)
    if gaps.any():
        raise ValueError(f"NaN or infinity in some frames of {int(gaps.sum())} of {len(bold)} ROIs")
    with_data = signals.rows_with_data(bold)
    if not with_data.any():
        raise ValueError("no ROI with data: all are constant, NaN or infinite")
    result = np.full(bold.shape, np.nan, dtype=np.float32)
    band = (None, None) if already_done["band_pass"] else band_pass
    result[with_data] = signals.clean(bold[with_data], tr, pass_band=band, remove_trend=remove_trend)
    return result


@contextmanager
def hdf5_reader(source: Mapping[str, Any], labels: pd.DataFrame) -> Iterator[Reader]:
    """Reader of the recordings of an HDF5 source, float32 [ROI, time] without padding.

    Raises
    ------
    UserError
        When the file has another layout, or the number or the names of its ROIs are not those of the atlas.
    """
    positions = hdf5_positions(source)
    with open_hdf5(source) as file:
        datasets = [file[name] for name in source["datasets"]]
        n_rois = sum(dataset.shape[1] for dataset in datasets)
        if n_rois != len(labels):
            raise UserError(
                f"{source['path']}: expected {len(labels)} ROIs as in the atlas, found {n_rois} in "
                f"{' + '.join(source['datasets'])}; choose the atlas that made them"
            )
        if source["roi_names"]:
            try:
                _check_names(texts(file[source["roi_names"]]), labels)
            except ValueError as error:
                raise UserError(f"{source['path']}: {source['roi_names']}: {error}") from None

        def read(row: Mapping[str, Any]) -> NDArray[np.float32]:
            position, n_frames = positions[row["recording_id"]], int(row["n_frames"])
            try:
                return np.concatenate([one[position, :, :n_frames].astype(np.float32) for one in datasets])
            except OSError as error:
                raise ValueError(f"unreadable {Path(source['path']).name}: {error}") from None

        yield read


def read_files(source: Mapping[str, Any], paths: Sequence[str], labels: pd.DataFrame) -> NDArray[np.float32]:
    """One recording from one or several files, float32 [ROI, time].

    Raises
    ------
    ValueError
        When a file cannot be read, parts differ in length, or ROIs are not those of the atlas.
    """
    parts: list[NDArray[np.float32]] = []
    names: list[str | None] = []
    for path in paths:
        values, header = _read_part(Path(path), source)
        parts.append(values)
        names += header
    lengths = {part.shape[1] for part in parts}
    if len(lengths) > 1:
        raise ValueError(f"the parts have different numbers of frames: {sorted(lengths)}")
    bold = np.concatenate(parts)
    if len(bold) != len(labels):
        raise ValueError(f"expected {len(labels)} ROIs as in the atlas, found {len(bold)}")
    _check_names(names, labels)
    return bold


def _read_part(path: Path, source: Mapping[str, Any]) -> tuple[NDArray[np.float32], Sequence[str | None]]:
    """Values [ROI, time] of a file and the names of its ROIs, None where it has none."""
    try:
        values, names = (read_array(path), []) if path.suffix == ".npy" else read_text(path, source)
    except Exception as error:  # whatever a damaged file does to its reader
        raise ValueError(f"unreadable {path.name}: {_reason(error)}") from None
    if values.ndim != 2:
        raise ValueError(f"expected a table of time and ROIs in {path.name}, found {values.ndim} dimensions")
    if source["orientation"] == "roi_by_time":  # columns are frames: a header names those
        return values, [None] * len(values)
    return values.T, names or [None] * values.shape[1]


def _reason(error: Exception) -> str:
    """What an error says, on one line, with its type where that is not what is wrong with the data."""
    text = " ".join(str(error).split())
    return text if text and isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}".strip(": ")


def _check_names(found: Sequence[str | None], labels: pd.DataFrame) -> None:
    """Compare ROI names of the data (None: not known) with the atlas, by name or by index (``#1``, ``1``)."""
    known = zip(found, labels["name"], labels["index"].astype(str), strict=True)
    for position, (name, *either) in enumerate(known, start=1):
        if name is not None and name.strip().lstrip("#") not in either:
            raise ValueError(
                f"expected the ROIs in the order of the atlas, found {name!r} at position {position} instead of "
                f"{either[0]!r}; reorder the data or declare the atlas that made them"
            )


def import_batch(
    rows: pd.DataFrame, cohort: Mapping[str, Any], labels: pd.DataFrame, atlas: str, band_pass: Band, remove_trend: bool
) -> list[dict[str, Any]]:
    """Rows of the time-series table for the recordings of one batch; unusable ones carry their reason."""
    table = []
    records: list[Any] = rows.to_dict("records")
    with _reader(cohort["source"], labels) as read:
        for row in records:
            record = {name: row.get(name) for name in [*KEY, "task", "site", "tr", "mean_fd", "exclude_reason"]}
            record["mean_fd"] = None if pd.isna(record["mean_fd"]) else record["mean_fd"]
            record |= {"atlas": atlas, "denoising": _denoising(cohort["already_done"], band_pass)}
            if row["exclude_reason"] is None:
                try:
                    bold = clean_imported(read(row), row["tr"], cohort["already_done"], band_pass, remove_trend)
                    record |= _measures(bold, row["tr"])
                except Exception as error:  # concerns this recording only: what concerns all was seen before
                    record["exclude_reason"] = _reason(error)
            table.append(record)
    return table


def _reader(source: Mapping[str, Any], labels: pd.DataFrame) -> AbstractContextManager[Reader]:
    """What reads the recording of a row of the index, float32 [ROI, time]."""
    if source["type"] == "hdf5":
        return hdf5_reader(source, labels)
    return nullcontext(lambda row: read_files(source, row["bold_path"].split("\n"), labels))


def _measures(bold: NDArray[np.float32], tr: float) -> dict[str, Any]:
    n_frames = bold.shape[1]
    return {
        "bold": bold.ravel(),
        "n_frames": n_frames,
        "kept": np.ones(n_frames, dtype=bool),
        "minutes_kept": n_frames * tr / 60,
        "share_censored": 0.0,
        "longest_gap": 0.0,
    }


def _denoising(already_done: Mapping[str, Any], band_pass: Band) -> str:
    """What the imported series went through, in words."""
    done = already_done["band_pass"]
    low, high = ("open" if edge is None else f"{edge:g}" for edge in done or band_pass)
    words = [f"imported; band-pass {low}-{high} Hz {'before' if done else 'at'} import"]
    if (low, high) == ("open", "open"):
        words = ["imported; not band-passed"]
    if already_done["global_signal_regression"]:
        words.append("global signal regression before import")
    if already_done["z_score"]:
        words.append("z-scored before import")
    return "; ".join(words)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.import_timeseries", description=__doc__)
    parser.add_argument("--settings", type=json.loads, required=True, help="{cohort, band_pass, detrend}, as JSON")
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--batch", required=True)
    parser.add_argument("--atlas", type=Path, required=True, help="folder of the atlas stage")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1, help="as for parcellation; reading is one after another")
    arguments = parser.parse_args(argv)
    settings = arguments.settings
    labels = read_text_table(arguments.atlas / "labels.tsv").astype({"index": int})
    atlas = read_json(arguments.atlas / "atlas.json")
    index = read_table(arguments.index)
    rows = index[index["batch"] == arguments.batch]
    band_pass = tuple(settings["band_pass"] or (None, None))
    records = import_batch(rows, settings["cohort"], labels, atlas["name"], band_pass, settings["detrend"])
    table = pa.Table.from_pylist(records, schema=SCHEMA)
    further = {"roi_names": labels["name"].tolist(), "atlas": atlas}
    metadata = provenance("import_timeseries", settings, [arguments.atlas / "labels.tsv"], **further)
    write_table(arguments.output, table, metadata)


if __name__ == "__main__":
    run_command(main)
