"""Whether a tested participant is also in another cohort under another name: near-identical functional connectivity.

Ids differ between releases of the same data, so participants of other cohorts are compared by content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from semantoks.baselines.connectivity import pearson_edges, read_recordings
from semantoks.baselines.features import Matrix
from semantoks.files import read_metadata

SAME = 0.95
"""Two recordings whose FC correlates more than this are one; two recordings of one person correlate by about .6."""
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Twin:
    """A recording of another cohort, and the correlation of its FC with one of our own."""

    cohort: str
    participant_id: str
    recording_id: str
    correlation: float


def seen_by_content(own: Sequence[Path | str], others: Sequence[Path | str]) -> dict[str, list[Twin]]:
    """Participants of a cohort one of whose recordings is also among those of other cohorts.

    Parameters
    ----------
    own : the cohort's shards.
    others : shards of the other cohorts, e.g. of those that an encoder was pretrained on. FC is compared over the ROIs
        that both have, by name.

    Returns
    -------
    Participant → the recordings it equals, in the order of the other shards.
    """
    if not own or not others:
        return {}
    names, other_names = (list(read_metadata(paths[0])["roi_names"]) for paths in (own, others))
    common = [name for name in names if name in set(other_names)]
    found: dict[str, list[Twin]] = {}
    recordings, edges = _profiles(own, [names.index(name) for name in common])
    candidates, other_edges = _profiles(others, [other_names.index(name) for name in common])
    for first in range(0, len(candidates), ROWS_AT_ONCE):
        correlation = edges @ other_edges[first : first + ROWS_AT_ONCE].T
        for row, column in zip(*np.nonzero(correlation > SAME), strict=True):
            twin = Twin(*candidates[first + int(column)], correlation=float(correlation[row, column]))
            found.setdefault(recordings[row][1], []).append(twin)
    return found


def _profiles(shards: Sequence[Path | str], rois: Sequence[int]) -> tuple[list[tuple[str, str, str]], Matrix]:
    """Cohort, participant, id and unit-norm FC profile of every recording; unknown edges count as its mean edge."""
    names, rows = [], []
    for recording in read_recordings(shards):
        edges = pearson_edges(replace(recording, bold=recording.bold[rois], valid=recording.valid[rois]))
        known = ~np.isnan(edges)
        edges = np.where(known, edges - (edges[known].mean() if known.any() else 0), 0)
        rows.append(edges / max(float(np.linalg.norm(edges)), 1e-12))
        names.append((recording.cohort, recording.participant_id, recording.recording_id))
    return names, np.stack(rows).astype(np.float32) if rows else np.zeros((0, 1), np.float32)
