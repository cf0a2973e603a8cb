"""Functional connectivity (FC): Fisher-z Pearson correlations between ROIs, the reference that is hard to beat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from semantoks.baselines.features import Index, Matrix, mean_over_recordings, participant_keys, standardise
from semantoks.errors import UserError
from semantoks.files import read_metadata
from semantoks.phenotypes import Phenotype

LARGEST_CORRELATION = 1 - 1e-6
"""Correlations are clipped here before the Fisher transform: identical ROIs would be infinite."""


@dataclass(frozen=True)
class Recording:
    """One recording of a shard: ``bold`` [ROI, time] float32, z-scored; ``valid`` [ROI]."""

    cohort: str
    participant_id: str
    recording_id: str
    bold: Matrix
    valid: npt.NDArray[np.bool_]
    session_id: str | None = None


def read_recordings(shards: Sequence[Path | str]) -> Iterator[Recording]:
    """Read the recordings of shards one at a time, float16 cast to float32.

    Raises
    ------
    UserError
        When shards disagree in their ROI names or a recording's bytes do not fill its shape.
    """
    columns = ["cohort", "participant_id", "session_id", "recording_id", "n_rois", "n_frames", "valid", "bold"]
    names: list[str] | None = None
    for path in shards:
        found = read_metadata(path)["roi_names"]
        if names is not None and found != names:
            raise UserError(f"{path}: its ROI names differ from those of {shards[0]}; make both with one atlas")
        names = found
        for batch in pq.ParquetFile(path).iter_batches(batch_size=64, columns=columns):
            for row in batch.to_pylist():
                yield _recording(row, path)


def _recording(row: dict, path: Path | str) -> Recording:
    bold = np.frombuffer(row["bold"], dtype="<f2").astype(np.float32)
    if bold.size != row["n_rois"] * row["n_frames"]:
        raise UserError(
            f"{path}: {row['recording_id']}: expected {row['n_rois']} x {row['n_frames']} values, found {bold.size}; "
            "run shards again"
        )
    valid = np.asarray(row["valid"], dtype=bool)
    bold = bold.reshape(row["n_rois"], -1)
    return Recording(row["cohort"], row["participant_id"], row["recording_id"], bold, valid, row["session_id"])


def correlation(bold: Matrix, valid: npt.NDArray[np.bool_]) -> Matrix:
    """Pearson correlation [ROI, ROI] float32; NaN in rows and columns of ROIs without data or variance."""
    centred = bold - bold.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.einsum("rt,rt->r", centred, centred))
    usable = valid & (norm > 0)
    centred[usable] /= norm[usable, None]
    matrix: Matrix = centred @ centred.T
    matrix[~usable] = np.nan
    matrix[:, ~usable] = np.nan
    return matrix


def fisher_z(matrix: Matrix) -> Matrix:
    """Upper triangle (row-major, without diagonal) of a correlation matrix, Fisher z = artanh r, float32."""
    edges = matrix[np.triu_indices(len(matrix), 1)]
    z: Matrix = np.arctanh(np.clip(edges, -LARGEST_CORRELATION, LARGEST_CORRELATION))
    return z


@dataclass(frozen=True)
class Connectivity:
    """Fisher-z FC of every participant.

    ``edges`` is [participants, ROI·(ROI−1)/2] float32, NaN where an ROI has no data, averaged over recordings;
    ``valid`` [participants, ROI]; ``valid_share`` the share of training participants in whom an ROI must be valid.
    """

    name: str
    participants: list[str]
    edges: Matrix
    valid: npt.NDArray[np.bool_]
    valid_share: float

    def design(self, phenotype: Phenotype, training: Index) -> Matrix:
        """Standardised edges between ROIs valid in enough training participants; the rest imputed with their mean."""
        return standardise(self.kept(training), training)

    def kept(self, training: Index) -> Matrix:
        """Edges between ROIs that are valid in enough training participants; NaN where still missing."""
        enough = enough_valid(self.valid, training, self.valid_share)
        if enough.all():
            return self.edges
        first, second = np.triu_indices(len(enough), 1)
        return self.edges[:, enough[first] & enough[second]]


def enough_valid(valid: npt.NDArray[np.bool_], training: Index, share: float) -> npt.NDArray[np.bool_]:
    """ROIs [ROI] that have data in at least this share of the training rows.

    Raises
    ------
    UserError
        When fewer than two are left.
    """
    enough: npt.NDArray[np.bool_] = valid[training].mean(axis=0) >= share
    if enough.sum() < 2:
        raise UserError(
            f"probe.roi_valid_share: only {enough.sum()} ROIs have data in {share:.0%} of the training "
            "participants; lower the share or see the coverage in the qc report"
        )
    return enough


def pearson_edges(recording: Recording) -> Matrix:
    """Fisher-z Pearson correlations between the ROIs of a recording."""
    return fisher_z(correlation(recording.bold, recording.valid))


def read_connectivity(
    shards: Sequence[Path | str],
    valid_share: float,
    edges_of: Callable[[Recording], Matrix] = pearson_edges,
    name: str = "fc",
    by_session: bool = False,
) -> Connectivity:
    """FC of every unit in the shards, in float32 from z-scored time series; its recordings are averaged."""
    people, edges, valid = [], [], []
    for recording in read_recordings(shards):
        people.append((recording.cohort, recording.participant_id, recording.session_id if by_session else None))
        edges.append(edges_of(recording))
        valid.append(recording.valid)
    owner = participant_keys(*zip(*people, strict=True))
    participants, mean = mean_over_recordings(np.stack(edges), owner)
    _, known = mean_over_recordings(np.stack(valid).astype(np.float32), owner)
    return Connectivity(name, participants, mean, known > 0, valid_share)
