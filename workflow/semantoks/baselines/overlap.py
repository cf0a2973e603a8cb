"""Whether a tested participant is also elsewhere: in pretraining by id, in another cohort by content.

Ids differ between releases of the same data, so participants of other cohorts are compared by their functional
connectivity: near-identical is the same recording under another name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from semantoks.baselines.connectivity import pearson_edges, read_recordings
from semantoks.baselines.features import Matrix, participant_keys
from semantoks.baselines.study import Study
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


def seen_in_pretraining(
    encoder: str,
    pretrained: Iterable[Sequence[Any]] | None,
    people: pd.DataFrame,
    twins: Mapping[str, Sequence[Twin]],
    study: Study,
) -> frozenset[str] | None:
    """Participants whose recordings an encoder was pretrained on, by id and by content; None where nobody knows.

    Parameters
    ----------
    encoder : its name, for the log.
    pretrained : cohort and participant of everybody it was pretrained on (``pretrain_recordings``); None is unknown.
    people : columns ``cohort``, ``participant_id`` and ``session_id`` of the recordings that have features.
    twins : participants of the tested cohort that equal recordings elsewhere (:func:`seen_by_content`).
    study : gives the names of participants.
    """
    if pretrained is None:
        print(f"{encoder} does not say whom it was pretrained on: transductive is left empty", file=sys.stderr)
        return None
    known = {(str(cohort), str(name)) for cohort, name in pretrained}
    sessions = people["session_id"] if study.tested.by_session else None
    keys = participant_keys(people["cohort"], people["participant_id"], sessions)
    pairs = list(zip(people["cohort"], people["participant_id"], strict=True))
    seen = {key for key, pair in zip(keys, pairs, strict=True) if pair in known}
    for participant, found in sorted(twins.items()):
        for twin in [twin for twin in found if (twin.cohort, twin.participant_id) in known][:1]:
            own = [
                name == participant and (not study.transfers or cohort == study.tested.name) for cohort, name in pairs
            ]
            seen.update(key for key, is_own in zip(keys, own, strict=True) if is_own)
            print(
                f"{participant}: pretraining of {encoder} saw the same content as {twin.recording_id} "
                f"(FC r {twin.correlation:.3f})",
                file=sys.stderr,
            )
    return frozenset(seen)


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
