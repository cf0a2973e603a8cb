"""Stage ``parcellate`` for cohorts that bring extracted time series: HDF5 or files, in the form parcellation gives.

What the cohort declares as already done (band-pass, z-score) is not done twice; what was not done is done here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from semantoks import signals
from semantoks.errors import UserError, run_command
from semantoks.files import KEY, provenance, read_json, read_table, read_text_table, write_table
from semantoks.imported_recordings import hdf5_positions
from semantoks.timeseries_table import SCHEMA

Band = tuple[float | None, float | None]


def clean_imported(
    bold: NDArray[np.floating], tr: float, already_done: Mapping[str, Any], band_pass: Band
) -> NDArray[np.float32]:
    """Do what was not done yet to an imported recording.

    Parameters
    ----------
    bold : float [ROI, time], native TR.
    tr : seconds.
    already_done : the cohort's declaration, keys ``band_pass`` and ``z_score``.
    band_pass : pass-band in Hz to apply when none was.

    Returns
    -------
    float32 [ROI, time]; a constant or zero ROI is a parcel without data: NaN.

    Raises
    ------
    ValueError
        When some but not all frames of an ROI are missing.
    """
    bold = np.asarray(bold, dtype=np.float64)
    missing = np.isnan(bold)
    gaps = missing.any(axis=1) & ~missing.all(axis=1)
    if gaps.any():
        raise ValueError(f"NaN in some frames of {int(gaps.sum())} of {len(bold)} ROIs")
    with_data = signals.rows_with_data(bold)
    if not with_data.any():
        raise ValueError("no ROI with data: all are constant or NaN")
    result = np.full(bold.shape, np.nan, dtype=np.float32)
    band = (None, None) if already_done["band_pass"] else band_pass
    result[with_data] = signals.clean(bold[with_data], tr, pass_band=band)
    return result


def read_hdf5(source: Mapping[str, Any], rows: pd.DataFrame, labels: pd.DataFrame) -> Iterator[NDArray[np.float32]]:
    """Recordings of an HDF5 source, float32 [ROI, time] without padding, in the order of ``rows``.

    Raises
    ------
    UserError
        When the number or the names of ROIs are not those of the atlas.
    """
    import h5py

    positions = hdf5_positions(source)
    with h5py.File(source["path"], "r") as file:
        datasets = [file[name] for name in source["datasets"]]
        n_rois = sum(dataset.shape[1] for dataset in datasets)
        if n_rois != len(labels):
            raise UserError(
                f"{source['path']}: expected {len(labels)} ROIs as in the atlas, found {n_rois} in "
                f"{' + '.join(source['datasets'])}; choose the atlas that made them"
            )
        if source["roi_names"]:
            names = [value.decode() if isinstance(value, bytes) else str(value) for value in file[source["roi_names"]]]
            _check_names(names, labels, source["path"])
        for recording, n_frames in zip(rows["recording_id"], rows["n_frames"], strict=True):
            position = positions[recording]
            yield np.concatenate([d[position, :, : int(n_frames)].astype(np.float32) for d in datasets])


def read_files(source: Mapping[str, Any], paths: Sequence[str], labels: pd.DataFrame) -> NDArray[np.float32]:
    """One recording from one or several files, float32 [ROI, time].

    Raises
    ------
    ValueError
        When a file cannot be read, parts differ in length, or ROIs are not those of the atlas.
    """
    parts, names = [], []
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
    if names:
        try:
            _check_names(names, labels, paths[0])
        except UserError as error:
            raise ValueError(str(error)) from None
    return bold


def _read_part(path: Path, source: Mapping[str, Any]) -> tuple[NDArray[np.float32], list[str]]:
    try:
        if path.suffix == ".npy":
            values, names = np.load(path, allow_pickle=False), []
        else:
            separator = source["delimiter"] or r"\s+"
            table = pd.read_csv(path, sep=separator, header=0 if source["header"] else None, na_values=["n/a"])
            values, names = table.to_numpy(), [str(column) for column in table.columns] if source["header"] else []
        values = values.astype(np.float32)
    except (OSError, ValueError, EOFError, pd.errors.ParserError) as error:
        raise ValueError(f"unreadable {path.name}: {error}") from None
    if values.ndim != 2:
        raise ValueError(f"expected a table of time and ROIs in {path.name}, found {values.ndim} dimensions")
    return (values if source["orientation"] == "roi_by_time" else values.T), names


def _check_names(found: Sequence[str], labels: pd.DataFrame, where: str) -> None:
    """Compare ROI names of the data with the label table, by name or by its index (``#1``, ``1``)."""
    bare = [name.strip().lstrip("#") for name in found]
    if bare in (labels["name"].tolist(), labels["index"].astype(str).tolist()):
        return
    position = next(
        i for i, name in enumerate(bare) if name not in (labels["name"].iloc[i], str(labels["index"].iloc[i]))
    )
    raise UserError(
        f"{where}: expected the ROIs in the order of the atlas, found {found[position]!r} at position {position + 1} "
        f"instead of {labels['name'].iloc[position]!r}; reorder the data or declare the atlas that made them"
    )


def import_batch(
    rows: pd.DataFrame, cohort: Mapping[str, Any], labels: pd.DataFrame, atlas: str, band_pass: Band
) -> list[dict[str, Any]]:
    """Rows of the time-series table for the recordings of one batch; unusable ones carry their reason."""
    source = cohort["source"]
    usable = rows["exclude_reason"].isna()
    stream = read_hdf5(source, rows[usable], labels) if source["type"] == "hdf5" else None
    table = []
    for row in rows.to_dict("records"):
        record = {name: row.get(name) for name in [*KEY, "task", "site", "tr", "mean_fd", "exclude_reason"]}
        record["mean_fd"] = None if pd.isna(record["mean_fd"]) else record["mean_fd"]
        record |= {"atlas": atlas, "denoising": _denoising(cohort["already_done"], band_pass)}
        if row["exclude_reason"] is None:
            try:
                bold = next(stream) if stream else read_files(source, row["bold_path"].split("\n"), labels)
                bold = clean_imported(bold, row["tr"], cohort["already_done"], band_pass)
                record |= _measures(bold, row["tr"])
            except UserError:  # concerns every recording of the cohort
                raise
            except ValueError as error:
                record["exclude_reason"] = str(error)
        table.append(record)
    return table


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
    if already_done["global_signal_regression"]:
        words.append("global signal regression before import")
    if already_done["z_score"]:
        words.append("z-scored before import")
    return "; ".join(words)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.import_timeseries", description=__doc__)
    parser.add_argument("--settings", type=json.loads, required=True, help="{cohort: …, band_pass: [low, high] in Hz}")
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
    records = import_batch(
        rows, settings["cohort"], labels, atlas["name"], tuple(settings["band_pass"] or (None, None))
    )
    table = pa.Table.from_pylist(records, schema=SCHEMA)
    further = {"roi_names": labels["name"].tolist(), "atlas": atlas}
    metadata = provenance("import_timeseries", settings, [arguments.atlas / "labels.tsv"], **further)
    write_table(arguments.output, table, metadata)


if __name__ == "__main__":
    run_command(main)
