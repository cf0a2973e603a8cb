"""Handing on cleaned parcel time series: one HDF5 file in the authors' layout, or BIDS derivatives, a file each."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from semantoks import __version__
from semantoks.errors import UserError, run_command
from semantoks.files import read_metadata, read_table, read_tables, read_text_table, replacing, write_json, write_text

_LARGEST = float(np.finfo(np.float16).max)
_COLUMNS = ["participant_id", "session_id", "recording_id", "tr", "n_frames", "bold"]
BIDS_VERSION = "1.11.0"
_MAKER = "semantoks"


def kept_recordings(timeseries: Sequence[Path], decisions: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The recordings that quality control kept, one at a time: ``bold`` as float32 [ROI, time] and its key columns."""
    kept = set(decisions.loc[decisions["exclude_reason"].isna(), "recording_id"])
    for path in timeseries:
        n_rois = len(read_metadata(path)["roi_names"])
        for batch in pq.ParquetFile(path).iter_batches(batch_size=8, columns=_COLUMNS):
            for record in batch.to_pylist():
                if record["recording_id"] in kept:
                    yield record | {"bold": np.asarray(record["bold"], dtype=np.float32).reshape(n_rois, -1)}


def write_hdf5(
    records: Iterator[dict[str, Any]], roi_names: Sequence[str], atlas: str, longest: int, output: Path
) -> int:
    """Write recordings as ``timeseries/<atlas>`` [recording, ROI, time], float16, padded with NaN; how many they are.

    Beside it ``long_subject_id`` (the recording's id), ``ts_len``, ``tr`` (s, native) and ``roi_names``. A parcel
    without data is NaN throughout.

    Parameters
    ----------
    longest : largest number of frames of a recording.

    Raises
    ------
    UserError
        When values are too large for float16.
    """
    import h5py

    text = h5py.string_dtype()
    with replacing(output) as temporary, h5py.File(temporary, "w") as file:
        n_rois = len(roi_names)
        shape, limits = (0, n_rois, longest), (None, n_rois, longest)
        chunk = (1, n_rois, longest)
        series = file.create_dataset(
            f"timeseries/{atlas}", shape, "f2", maxshape=limits, chunks=chunk, compression="lzf"
        )
        ids, lengths, intervals = [], [], []
        for number, record in enumerate(records):
            bold = record["bold"]
            if np.nanmax(np.abs(bold)) > _LARGEST:
                raise UserError(
                    f"{record['recording_id']}: expected values below {_LARGEST:g}, which float16 holds, found "
                    f"{np.nanmax(np.abs(bold)):g}; use the Parquet files or the BIDS export"
                )
            series.resize(number + 1, axis=0)
            series[number] = np.nan
            series[number, :, : bold.shape[1]] = bold.astype(np.float16)
            ids.append(record["recording_id"])
            lengths.append(bold.shape[1])
            intervals.append(record["tr"])
        file.create_dataset("long_subject_id", data=ids, dtype=text)
        file.create_dataset("ts_len", data=np.array(lengths, dtype=np.int64))
        file.create_dataset("tr", data=np.array(intervals, dtype=np.float64))
        file.create_dataset("roi_names", data=list(roi_names), dtype=text)
    return len(ids)


def write_bids(
    records: Iterator[dict[str, Any]],
    metadata: Mapping[str, Any],
    labels: pd.DataFrame,
    sources: Mapping[str, str],
    folder: Path,
) -> int:
    """Write BIDS derivatives: ``…_space-…_atlas-…_stat-mean_timeseries.tsv`` with sidecars, and what goes with them.

    What an earlier export wrote into the folder and this one does not is deleted; nothing else is.

    Parameters
    ----------
    metadata : of the time-series files: ``roi_names``, ``atlas``, ``settings``, ``versions`` and (images) ``strategy``.
    labels : label table of the atlas.
    sources : image or file of each recording, by ``recording_id``.

    Raises
    ------
    UserError
        When the folder holds another dataset, or two recordings or participants have one name in BIDS.
    """
    about = folder / "dataset_description.json"
    if about.exists() and not made_here(about):
        raise UserError(
            f"{folder}: expected a folder of this export, found another dataset's {about.name}; choose another"
        )
    atlas = bids_label(metadata["atlas"]["name"])
    space = f"_space-{bids_label(metadata['atlas']['space'])}" if metadata["atlas"]["space"] else ""
    owners: dict[str, str] = {}
    sidecars = set()
    for record in records:
        parts = bids_name(record)
        name = "_".join(parts)
        for key, owner in ((parts[0], record["participant_id"]), (name, record["recording_id"])):
            if owners.setdefault(key, owner) != owner:
                raise UserError(
                    f"{folder}: expected names that differ in letters and digits, all that labels of BIDS hold, found "
                    f"{owners[key]} and {owner}, both {key}; use the HDF5 export"
                )
        place = folder.joinpath(*(part for part in parts if part.startswith(("sub-", "ses-"))), "func")
        sidecar = place / f"{name}{space}_atlas-{atlas}_stat-mean_timeseries.json"
        table = pd.DataFrame(record["bold"].T, columns=metadata["roi_names"])
        text = table.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.6g", lineterminator="\n")
        write_json(sidecar, _sidecar(record, metadata, sources.get(record["recording_id"])))
        write_text(sidecar.with_suffix(".tsv"), text)
        sidecars.add(sidecar)
    _write_atlas(folder / f"atlas-{atlas}_description.json", metadata, labels)
    _remove_outdated(folder, sidecars | {folder / f"atlas-{atlas}_description.json"})
    write_json(
        about,
        {
            "Name": "Cleaned parcel time series",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": _MAKER, "Version": __version__}],
        },
    )
    return len(sidecars)


def bids_label(text: str) -> str:
    """A label with what BIDS allows in one: ``Caltech_0051456`` becomes ``Caltech0051456``."""
    return re.sub(r"[^A-Za-z0-9+]", "", text)


def bids_name(record: Mapping[str, Any]) -> list[str]:
    """Entities of a recording's name, ``sub-…`` first, with labels that BIDS allows."""
    known = [f"sub-{record['participant_id']}"] + ([f"ses-{record['session_id']}"] if record["session_id"] else [])
    further = record["recording_id"].removeprefix("_".join(known)).removesuffix("_bold")
    parts = [part.partition("-") for part in (*known, *re.split(r"_(?=[A-Za-z]+-)", further)[1:])]
    return [f"{entity}-{bids_label(label)}" for entity, _, label in parts]


def made_here(path: Path) -> bool:
    """Whether a sidecar or description of a BIDS dataset says that this module wrote it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        makers = [one["Name"] for one in content.get("GeneratedBy", ())]
        return _MAKER in (*makers, *content.get("SoftwareVersions", ()))
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return False


def _remove_outdated(folder: Path, written: Set[Path]) -> None:
    """Delete the tables (then their sidecars, then empty folders) of an earlier export that were not written now."""
    tables = {f"{place}/*_stat-mean_timeseries.json": ".tsv" for place in ("sub-*/func", "sub-*/ses-*/func")}
    for pattern, ending in {**tables, "atlas-*_description.json": "_dseg.tsv"}.items():
        for sidecar in sorted(folder.glob(pattern)):
            if sidecar in written or not made_here(sidecar):
                continue
            (sidecar.parent / (sidecar.stem.removesuffix("_description") + ending)).unlink(missing_ok=True)
            sidecar.unlink()
            above = sidecar.parent
            while above != folder and not any(above.iterdir()):
                above.rmdir()
                above = above.parent


def _write_atlas(description: Path, metadata: Mapping[str, Any], labels: pd.DataFrame) -> None:
    atlas = metadata["atlas"]
    made_by = [{"Name": _MAKER, "Version": __version__}]
    about = {"Name": atlas["name"], "Space": atlas["space"], "SHA256": atlas["sha256"], "GeneratedBy": made_by}
    write_json(description, about)
    table = description.with_name(description.name.replace("_description.json", "_dseg.tsv"))
    write_text(table, labels.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n"))


def _sidecar(record: Mapping[str, Any], metadata: Mapping[str, Any], source: str | None) -> dict[str, Any]:
    strategy = metadata.get("strategy") or {}
    return {
        "RecordingID": record["recording_id"],
        "RepetitionTime": record["tr"],
        "SamplingFrequency": 1 / record["tr"],
        "Sources": source.split("\n") if source else [],
        "Denoising": strategy.get("name"),
        "DenoisingDescription": strategy.get("description"),
        "Settings": metadata["settings"],
        "SoftwareVersions": metadata["versions"],
        "MissingValues": "a parcel without data is n/a throughout",
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the exports."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.export_timeseries", description=__doc__)
    parser.add_argument("--timeseries", type=Path, nargs="+", required=True)
    parser.add_argument("--qc", type=Path, nargs="+", required=True, help="decision tables of the same batches")
    parser.add_argument("--hdf5", type=Path, help="HDF5 file to write")
    parser.add_argument(
        "--bids", type=Path, help="folder of BIDS derivatives to write; files of an earlier export there are replaced"
    )
    parser.add_argument("--index", type=Path, help="index of the cohort, for the sources of the BIDS derivatives")
    parser.add_argument("--labels", type=Path, help="label table of the atlas, for the BIDS derivatives")
    arguments = parser.parse_args(argv)
    if (arguments.hdf5 is None) == (arguments.bids is None) or (arguments.bids and not arguments.labels):
        parser.error("give --hdf5, or --bids with --labels")
    decisions = read_tables(arguments.qc, ["recording_id", "exclude_reason", "n_frames"])
    metadata = read_metadata(arguments.timeseries[0])
    records = kept_recordings(arguments.timeseries, decisions)
    if arguments.hdf5:
        lengths = decisions.loc[decisions["exclude_reason"].isna(), "n_frames"]
        if lengths.empty:
            raise UserError(
                f"{arguments.hdf5}: expected a recording that quality control kept, found none of {len(decisions)}; "
                "see the reasons in qc/exclusions.tsv of the cohort, then change section qc or the data"
            )
        longest = int(lengths.max())
        written = write_hdf5(records, metadata["roi_names"], metadata["atlas"]["name"], longest, arguments.hdf5)
    else:
        sources = {}
        if arguments.index:
            index = read_table(arguments.index, ["recording_id", "bold_path"])
            sources = {name: path for name, path in zip(index["recording_id"], index["bold_path"], strict=True) if path}
        written = write_bids(records, metadata, read_text_table(arguments.labels), sources, arguments.bids)
    print(f"{written} recordings in {arguments.hdf5 or arguments.bids}")


if __name__ == "__main__":
    run_command(main)
