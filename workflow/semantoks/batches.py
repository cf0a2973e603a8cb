"""Recordings in batches, one job each: an append-only manifest and one small fingerprint file per batch.

A recording stays in the batch it first came into; new recordings open new batches; a changed file changes the
fingerprint of its own batch only. Snakemake compares fingerprint files by content, so unchanged batches do not rerun.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from semantoks.files import write_text
from semantoks.recordings import fingerprint, list_recordings


def update_batches(cohort: Mapping[str, Any], folder: Path, batch_size: int) -> None:
    """List a cohort's recordings and bring the manifest and the fingerprints in ``folder`` up to date."""
    listing = list_recordings(cohort)
    manifest = assign(listing["recording_id"].tolist(), read_manifest(folder), batch_size)
    _write_if_changed(folder / "manifest.tsv", manifest.to_csv(sep="\t", index=False))
    listing = listing.merge(manifest, on="recording_id")
    listing["fingerprint"] = listing["paths"].map(fingerprint)
    for batch, rows in listing.groupby("batch"):
        text = rows[["recording_id", "fingerprint"]].sort_values("recording_id").to_csv(sep="\t", index=False)
        _write_if_changed(folder / f"{batch}.tsv", text)
    for emptied in set(current_batches(folder)) - set(listing["batch"]):
        (folder / f"{emptied}.tsv").unlink()


def current_batches(folder: Path) -> list[str]:
    """Names of the batches that hold recordings, in order."""
    return sorted(path.stem for path in folder.glob("part-*.tsv"))


def current_participants(folder: Path) -> list[str]:
    """Labels of the participants with recordings, in order."""
    tables = [pd.read_csv(folder / f"{batch}.tsv", sep="\t", dtype=str) for batch in current_batches(folder)]
    recordings = pd.concat(tables)["recording_id"]
    return sorted(set(recordings.str.extract(r"^sub-([^_]+)")[0]))


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


def _write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
