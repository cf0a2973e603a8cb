"""Stage ``index``: one table of a cohort's recordings, with TR and number of frames from sidecars and headers."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import bids2table
import nibabel
import pandas as pd
from nibabel.spatialimages import HeaderDataError

from semantoks.batches import read_batch
from semantoks.errors import UserError, run_command
from semantoks.files import KEY, provenance, read_json, read_tables, write_table
from semantoks.fmriprep_outputs import derivatives_version
from semantoks.hdf5_source import FramesOf, number_per_recording, open_hdf5
from semantoks.imported_recordings import hdf5_positions
from semantoks.parcel_means import DAMAGED, fast_gzip
from semantoks.recordings import ENTITIES, check_unique, list_derivatives

COLUMNS = [*KEY, "batch", *ENTITIES, "bold_path", "mask_path", "confounds_path", "tr", "n_frames", "source", "site"]
COLUMNS += ["mean_fd", "exclude_reason"]
SPARSE = "sparse acquisition (VolumeTiming): no regular sampling interval"


def build_index(cohort: Mapping[str, Any], listing: pd.DataFrame, status_files: Sequence[Path] = ()) -> pd.DataFrame:
    """The index of a batch: one row per recording, unusable ones with their reason.

    Parameters
    ----------
    cohort : validated cohort settings with ``name``.
    listing : the recordings, as :func:`semantoks.batches.read_batch` gives them, with their ``batch``.
    status_files : fMRIPrep's status per participant, for cohorts of type ``bids``.

    Returns
    -------
    Table with :data:`COLUMNS`; ``tr`` in seconds, ``mean_fd`` in mm (from the participants table, else null).
    """
    source = cohort["source"]["type"]
    if source == "bids":
        listing = _with_derivatives(listing, cohort, status_files)
    listing = listing.join(_path_columns(listing["paths"], images=source != "files"))
    described = _describe_hdf5(listing, cohort) if source == "hdf5" else _describe_files(listing, cohort)
    index = listing.join(described).assign(cohort=cohort["name"], source=source)
    index["exclude_reason"] = index["exclude_reason"].where(index["exclude_reason"].notna(), index["header_reason"])
    index["n_frames"] = index["n_frames"].astype("Int64")
    text = [column for column in COLUMNS if column not in ("tr", "n_frames", "mean_fd")]
    index[text] = index[text].astype(object).where(index[text].notna(), None)
    return index[COLUMNS].sort_values("recording_id", ignore_index=True)


def fmriprep_versions(
    index: pd.DataFrame, cohort: Mapping[str, Any], status_files: Sequence[Path] = ()
) -> list[str | None]:
    """Versions of fMRIPrep that made the usable recordings of an index, None among them where nothing tells it.

    A participant's status file says what the derivatives said when the participant was done, so that later ones by
    another version do not hide it; without one it is what they say now. Imported time series have none.
    """
    source = cohort["source"]
    if source["type"] not in ("bids", "fmriprep"):
        return []
    now = derivatives_version(Path(source["derivatives"] if source["type"] == "bids" else source["path"]))
    told = {(one["participant"], one["session"]): one.get("version") for one in map(read_json, status_files)}
    used = index[index["exclude_reason"].isna()]
    keys = zip(used["participant_id"], used["session_id"], strict=True)
    found = {told.get((participant, session)) or told.get((participant, None)) or now for participant, session in keys}
    return sorted(found, key=lambda version: (version is None, version or ""))


def join_batches(tables: Sequence[Path]) -> pd.DataFrame:
    """The index of a whole cohort from those of its batches.

    Raises
    ------
    UserError
        When no recording at all can be used.
    """
    index = read_tables(tables).sort_values("recording_id", ignore_index=True)
    if index["exclude_reason"].notna().all():
        reasons = "; ".join(index["exclude_reason"].value_counts().index[:3])
        raise UserError(
            f"cohort {index['cohort'].iloc[0]}: none of {len(index)} recordings can be used: {reasons}; "
            "correct the cohort file or the data"
        )
    return index


def _path_columns(paths: pd.Series, images: bool) -> pd.DataFrame:
    """Image, mask and confounds path; the parts of an imported recording stay together, separated by newlines."""
    rows = [(*path, "", "")[:3] if images else ("\n".join(path), "", "") for path in paths]
    names = ["bold_path", "mask_path", "confounds_path"]
    columns = {
        name: [value or None for value in values] for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }
    return pd.DataFrame(columns, index=paths.index, dtype=object)


def _with_derivatives(listing: pd.DataFrame, cohort: Mapping[str, Any], status_files: Sequence[Path]) -> pd.DataFrame:
    """Replace raw files by fMRIPrep's; a recording without derivative gets the reason from the status."""
    ended = {(one["participant"], one["session"]): one for one in map(read_json, status_files)}
    participants = sorted(set(listing["participant_id"]))
    derivatives = list_derivatives(cohort, cohort["source"]["derivatives"], participants)
    check_unique(derivatives, cohort["name"])
    columns = ["space", "res", "desc", "paths", "exclude_reason"]
    found = {row["recording_id"]: {c: row[c] for c in columns} for row in derivatives.to_dict("records")}
    rows = []
    missing = {"paths": ("",), "exclude_reason": f"fMRIPrep wrote no desc-preproc_bold in space {cohort['space']}"}
    records: list[Any] = listing.to_dict("records")
    with ThreadPoolExecutor(16) as pool:  # fMRIPrep's sidecars need not repeat it
        sparse = list(pool.map(_is_sparse, (row["paths"][0] for row in records)))
    for row, without_interval in zip(records, sparse, strict=True):
        if row["exclude_reason"] is not None:
            rows.append(row | {"paths": ("",)})
            continue
        row |= found.get(row["recording_id"], missing)
        participant = row["participant_id"]
        status = ended.get((participant, row["session_id"])) or ended.get((participant, None)) or {"status": "done"}
        if status["status"] != "done":
            row["exclude_reason"] = f"fMRIPrep {status['status']}: {status['reason']}"
        if without_interval:
            row["exclude_reason"] = SPARSE
        rows.append(row)
    return pd.DataFrame(rows, columns=listing.columns, dtype=object)


def _describe_files(listing: pd.DataFrame, cohort: Mapping[str, Any]) -> pd.DataFrame:
    """TR, number of frames and reason of each recording; headers and sidecars are read in parallel."""
    override = cohort["tr"]
    rows: list[Described]
    if cohort["source"]["type"] == "files":
        reason = None if override else "no TR: set 'tr' in the cohort file, time-series files do not tell it"
        rows = [Described(override, None, reason)] * len(listing)
    else:
        with ThreadPoolExecutor(16) as pool:
            rows = list(pool.map(functools.partial(_describe_image, override=override), listing["bold_path"]))
    _tell_of_other_trs(rows, listing["recording_id"])
    table = pd.DataFrame(rows, columns=list(Described._fields), index=listing.index, dtype=object)
    return table.drop(columns="header_tr").astype({"tr": float})


class Described(NamedTuple):
    """What sidecar and header say: TR in s, frames, why the image cannot be used, and the header's own TR in s."""

    tr: float | None
    n_frames: int | None
    header_reason: str | None
    header_tr: float | None = None


def _tell_of_other_trs(rows: Sequence[Described], recordings: pd.Series) -> None:
    """Say where the header contradicts the sidecar, which BIDS has decide."""
    pairs = zip(rows, recordings, strict=True)
    other = [
        f"{name} ({row.tr:g} and {row.header_tr:g} s)"
        for row, name in pairs
        if row.tr and row.header_tr and abs(row.header_tr / row.tr - 1) > 0.01
    ]
    if other:
        print(
            f"TR of sidecar (or cohort file) and header differ in {len(other)} recordings, the first is taken: "
            f"{', '.join(other[:5])}{' …' if len(other) > 5 else ''}",
            file=sys.stderr,
        )


def _describe_image(path: str | None, override: float | None) -> Described:
    if path is None:
        return Described(override, None, None)
    if not Path(path).exists():
        return Described(override, None, f"unreadable: {path} is a link to nothing (annexed data not fetched?)")
    try:
        sidecar = _sidecar(Path(path))
    except (OSError, ValueError) as error:
        return Described(override, None, f"unreadable sidecar of {Path(path).name}: {error}")
    if "VolumeTiming" in sidecar:
        return Described(override, None, SPARSE)
    if Path(path).stat().st_size == 0:
        return Described(override, None, "empty image")
    try:
        header = _header(Path(path))
    except (nibabel.filebasedimages.ImageFileError, HeaderDataError, ValueError, *DAMAGED) as error:
        return Described(override, None, f"unreadable image: {error}")
    shape = header.get_data_shape()
    if len(shape) != 4:
        return Described(override, None, f"expected a 4D image, found {len(shape)}D")
    tr: Any = override
    if tr is None:
        tr = sidecar["RepetitionTime"] if "RepetitionTime" in sidecar else _header_tr(header)
    known = isinstance(tr, int | float) and not isinstance(tr, bool)
    if not known or not 0.05 <= tr <= 30:
        found = "none" if tr is None else repr(tr)
        return Described(None, int(shape[3]), f"TR: expected 0.05 to 30 s in the sidecar or header, found {found}")
    return Described(float(tr), int(shape[3]), None, _header_tr(header))


def _sidecar(path: Path) -> Mapping[str, Any]:
    """Metadata of an image; the folders above are searched only when its own sidecar does not tell the TR."""
    own = path.with_name(f"{path.name.split('.')[0]}.json")
    if own.is_file():
        content = json.loads(own.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "RepetitionTime" in content:
            return content
    inherited: Mapping[str, Any] = bids2table.load_bids_metadata(path)
    return inherited


def _is_sparse(raw_image: str) -> bool:
    """Whether the raw sidecars say that volumes were not acquired at a regular interval."""
    try:
        return "VolumeTiming" in _sidecar(Path(raw_image))
    except (OSError, ValueError):
        return False


def _header(path: Path) -> Any:
    """Header of an image; of NIfTI files only the first bytes are read, which is five times faster than loading."""
    with fast_gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        block = file.read(540)
    for kind, size in ((nibabel.Nifti1Header, 348), (nibabel.Nifti2Header, 540)):
        if len(block) >= size and size.to_bytes(4, "little") == block[:4]:
            return kind(block[:size], endianness="<")
    return nibabel.load(path).header


def _header_tr(header: Any) -> float | None:
    """TR in seconds from the NIfTI header, whose unit may be ms; None when it is not set.

    Without a unit the number means nothing: libraries write 1 there when nobody tells them the TR.
    """
    scale = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}.get(header.get_xyzt_units()[1])
    return None if scale is None else float(header.get_zooms()[3]) * scale or None


def _describe_hdf5(listing: pd.DataFrame, cohort: Mapping[str, Any]) -> pd.DataFrame:
    """TR, number of frames and reason of each recording of an HDF5 file."""
    source = cohort["source"]
    positions = hdf5_positions(source)
    rows: list[tuple[float, int | None, str | None]] = []
    with open_hdf5(source) as file:
        tr = None if cohort["tr"] else number_per_recording(file, source, "tr")
        frames_of = FramesOf(file, source)
        for recording in listing["recording_id"]:
            position = positions[recording]
            seconds = round(float(cohort["tr"] if tr is None else tr[position]), 6)
            n_frames, reason = None, None
            try:
                n_frames = frames_of(position)
            except ValueError as error:
                reason = str(error)
            except OSError as error:
                reason = f"unreadable {Path(source['path']).name}: {error}"
            if not 0.05 <= seconds <= 30:
                reason = f"TR: expected 0.05 to 30 s, found {seconds}"
            rows.append((seconds, n_frames, reason))
    return pd.DataFrame(rows, columns=["tr", "n_frames", "header_reason"], index=listing.index)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.index", description=__doc__)
    parser.add_argument(
        "--settings", type=json.loads, required=True, help="the cohort's settings with its name, as JSON"
    )
    parser.add_argument("--batch", type=Path, help="file of a batch: index its recordings")
    parser.add_argument("--fmriprep-status", type=Path, nargs="*", default=[], help="status files of fMRIPrep")
    parser.add_argument("--join", type=Path, nargs="+", help="indices of all batches: join them")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    if (arguments.batch is None) == (arguments.join is None):
        parser.error("give either --batch or --join")
    further = {}
    if arguments.join:
        index = join_batches(arguments.join)
    else:
        listing = read_batch(arguments.batch).assign(batch=arguments.batch.stem)
        index = build_index(arguments.settings, listing, arguments.fmriprep_status)
        further["fmriprep_versions"] = fmriprep_versions(index, arguments.settings, arguments.fmriprep_status)
    metadata = provenance("index", arguments.settings, arguments.join or [arguments.batch], **further)
    write_table(arguments.output, index, metadata)
    usable = int(index["exclude_reason"].isna().sum())
    print(f"{arguments.settings['name']}: {len(index)} recordings, {usable} usable so far")


if __name__ == "__main__":
    run_command(main)
