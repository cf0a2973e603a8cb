"""Whether pretraining saw a tested participant under another name: near-identical functional connectivity.

Ids differ between releases of the same data, so participants of other cohorts are compared by content.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from semantoks.baselines.connectivity import pearson_edges, read_recordings
from semantoks.baselines.features import Matrix
from semantoks.files import read_metadata

SAME = 0.95
"""Two recordings whose FC correlates more than this are one; two recordings of one person correlate by about .6."""
ROWS_AT_ONCE = 256


def seen_by_content(own: Sequence[Path | str], pretrained: Sequence[Path | str]) -> dict[str, tuple[str, float]]:
    """Participants of a cohort one of whose recordings is also among the recordings of pretraining.

    Parameters
    ----------
    own : the cohort's shards.
    pretrained : shards of the other cohorts that the encoder was pretrained on. FC is compared over the ROIs that both
        have, by name.

    Returns
    -------
    Participant → the recording it equals, and the correlation of their FC.
    """
    if not own or not pretrained:
        return {}
    names, others = (list(read_metadata(paths[0])["roi_names"]) for paths in (own, pretrained))
    common = [name for name in names if name in set(others)]
    found: dict[str, tuple[str, float]] = {}
    owner, edges = _profiles(own, [names.index(name) for name in common])
    recordings, candidates = _profiles(pretrained, [others.index(name) for name in common], by="recording_id")
    for first in range(0, len(candidates), ROWS_AT_ONCE):
        correlation = edges @ candidates[first : first + ROWS_AT_ONCE].T
        for row, best in enumerate(correlation.argmax(axis=1)):
            value = float(correlation[row, best])
            if value > max(SAME, found.get(owner[row], ("", 0.0))[1]):
                found[owner[row]] = (recordings[first + best], value)
    return found


def _profiles(
    shards: Sequence[Path | str], rois: Sequence[int], by: str = "participant_id"
) -> tuple[list[str], Matrix]:
    """Name and unit-norm FC profile of every recording; unknown edges count as its mean edge."""
    names, rows = [], []
    for recording in read_recordings(shards):
        kept = type(recording)(
            recording.participant_id, recording.recording_id, recording.bold[rois], recording.valid[rois]
        )
        edges = pearson_edges(kept)
        known = ~np.isnan(edges)
        edges = np.where(known, edges - (edges[known].mean() if known.any() else 0), 0)
        rows.append(edges / max(float(np.linalg.norm(edges)), 1e-12))
        names.append(str(getattr(recording, by)))
    return names, np.stack(rows).astype(np.float32) if rows else np.zeros((0, 1), np.float32)
