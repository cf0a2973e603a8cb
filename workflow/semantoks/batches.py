"""Recordings in batches, one job each: an append-only manifest and one file per batch.

A recording stays in the batch it first came into; new recordings open new batches. The file of a batch lists its
recordings with size and modification time of their files, and with what the participants table says of site and
motion: it changes when one of them changes. Snakemake compares small files by content, so unchanged batches do not
rerun.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from semantoks.errors import UserError
from semantoks.files import read_text_table, write_text_if_changed
from semantoks.missing_codes import without_codes
from semantoks.recordings import COLUMNS, fingerprints, list_recordings
from semantoks.units import participant_of, session_of, unit_names


def update_batches(cohort: Mapping[str, Any], folder: Path, batch_size: int) -> None:
    """List a cohort's recordings and bring the manifest and the batches in ``folder`` up to date."""
    listing = list_recordings(cohort)
    manifest = assign(listing["recording_id"].tolist(), read_manifest(folder), batch_size)
    write_text_if_changed(folder / "manifest.tsv", manifest.to_csv(sep="\t", index=False))
    listing = with_participants(listing.merge(manifest, on="recording_id"), cohort)
    listing["fingerprint"] = fingerprints(listing["paths"])
    listing["paths"] = listing["paths"].map(json.dumps)
    for batch, rows in listing.groupby("batch"):
        text = rows.drop(columns="batch").sort_values("recording_id").to_csv(sep="\t", index=False)
        write_text_if_changed(folder / f"{batch}.tsv", text)
    for emptied in set(current_batches(folder)) - set(listing["batch"]):
        (folder / f"{emptied}.tsv").unlink()


def read_batch(path: Path) -> pd.DataFrame:
    """The recordings of a batch: columns of a listing, ``site`` (text) and ``mean_fd`` (mm)."""
    table = read_text_table(path)
    table["paths"] = [tuple(json.loads(paths)) for paths in table["paths"]]
    table["mean_fd"] = pd.to_numeric(table["mean_fd"])
    table = table[[*COLUMNS, "site", "mean_fd"]]
    text = [column for column in table.columns if column not in ("paths", "mean_fd")]
    table[text] = table[text].astype(object).where(table[text].notna(), None)
    return table


def current_batches(folder: Path) -> list[str]:
    """Names of the batches that hold recordings, in order."""
    return sorted(path.stem for path in folder.glob("part-*.tsv"))


def fmriprep_targets(batch: Path, per_session: bool) -> list[str]:
    """What fMRIPrep is run on for a batch: ``sub-01``, or ``sub-01_ses-1`` where sessions are run apart; in order."""
    return sorted(set(_targets(batch, per_session).values()))


def recordings_by_target(folder: Path, per_session: bool) -> dict[str, list[str]]:
    """What fMRIPrep is run on for all batches of a cohort → its recordings, both in order."""
    found: dict[str, list[str]] = {}
    for batch in current_batches(folder):
        for recording, target in _targets(folder / f"{batch}.tsv", per_session).items():
            found.setdefault(target, []).append(recording)
    return {target: sorted(found[target]) for target in sorted(found)}


def _targets(batch: Path, per_session: bool) -> dict[str, str]:
    """Recording → what fMRIPrep is run on for it."""
    table = read_text_table(batch)
    table = table[table["paths"] != '[""]']  # of a link to nothing there are no files to run it on
    names = "sub-" + table["participant_id"]
    if per_session:
        names += ("_ses-" + table["session_id"]).fillna("")
    return dict(zip(table["recording_id"], names, strict=True))


def targets_by_last_batch(folder: Path, per_session: bool) -> dict[str, dict[str, list[str]]]:
    """Batch → what fMRIPrep is run on (as in :func:`fmriprep_targets`) that ends in it → all batches that hold it."""
    batches: dict[str, list[str]] = {}
    for batch in current_batches(folder):
        for target in fmriprep_targets(folder / f"{batch}.tsv", per_session):
            batches.setdefault(target, []).append(batch)
    found: dict[str, dict[str, list[str]]] = {}
    for target, names in batches.items():
        found.setdefault(names[-1], {})[target] = names
    return found


def recordings_of(batch: Path) -> int:
    """Number of recordings of a batch."""
    return batch.read_bytes().count(b"\n") - 1  # paths are JSON, so a line is a recording


def read_manifest(folder: Path) -> pd.DataFrame:
    """The manifest: one row per recording ever seen, columns recording_id and batch."""
    path = folder / "manifest.tsv"
    if not path.is_file():
        return pd.DataFrame(columns=["recording_id", "batch"], dtype=str)
    return pd.read_csv(path, sep="\t", dtype=str)


def assign(recordings: list[str], manifest: pd.DataFrame, batch_size: int) -> pd.DataFrame:
    """Append new recordings to the manifest in new batches of ``batch_size``; old ones keep theirs."""
    known = set(manifest["recording_id"])
    new = [recording for recording in sorted(recordings) if recording not in known]
    numbers = manifest["batch"].str.removeprefix("part-").astype(int)
    first = int(numbers.max()) + 1 if len(numbers) else 1
    batches = [f"part-{first + position // batch_size:04d}" for position in range(len(new))]
    return pd.concat([manifest, pd.DataFrame({"recording_id": new, "batch": batches})], ignore_index=True)


def with_participants(listing: pd.DataFrame, cohort: Mapping[str, Any]) -> pd.DataFrame:
    """Add site and mean framewise displacement (mm) from the participants table; null where it does not know them.

    Raises
    ------
    UserError
        When the table lacks a column that the cohort names, has several rows for one participant, or a mean
        framewise displacement that is no number of mm.
    """
    listing = listing.assign(site=None, mean_fd=None)
    if cohort["participants"] is None:
        return listing
    described = cohort["participants"]
    path, key, session = described["path"], described["id_column"], described.get("session_column")
    columns = {"site": cohort["site_column"], "mean_fd": cohort["mean_fd_column"]}
    table = read_text_table(path)
    missing = [
        column for column in (key, session, *columns.values()) if column is not None and column not in table.columns
    ]
    if missing:
        raise UserError(
            f"{path}: expected the columns {', '.join(map(repr, missing))}, found "
            f"{', '.join(table.columns)}; correct the cohort file of {cohort['name']}"
        )
    participants = [participant_of(text, described.get("id_pattern"), path) for text in table[key].astype(str)]
    labels = pd.Series(unit_names(participants, table[session].map(session_of) if session else None))
    if labels.duplicated().any():
        double = labels[labels.duplicated()].iloc[0]
        unit = "participant and session" if session else "participant"
        raise UserError(f"{path}: expected one row per {unit}, found several for {double}")
    own = listing["participant_id"].str.removeprefix("sub-")
    units = unit_names(own, listing["session_id"] if session else None)
    table = without_codes(table.set_axis(labels).reindex(units), described.get("missing") or ())
    if columns["site"]:
        listing["site"] = table[columns["site"]].to_numpy()
    if columns["mean_fd"]:
        listing["mean_fd"] = _displacements(table[columns["mean_fd"]], path).to_numpy()
    return listing


def _displacements(texts: pd.Series, path: str) -> pd.Series:
    """Mean framewise displacement in mm, NaN where the table has none; ``texts`` is indexed by participant."""
    values = pd.to_numeric(texts, errors="coerce").astype(float)
    wrong = texts[texts.notna() & ~(np.isfinite(values) & (values >= 0))]
    if len(wrong):
        raise UserError(
            f"{path}: column {texts.name!r}: expected mean framewise displacement in mm as a number from 0, found "
            f"{wrong.iloc[0]!r} for {wrong.index[0]} ({wrong.index.nunique()} participants in all); write it with a "
            "decimal point; where it is not known write n/a or name the code in participants.missing"
        )
    return values
