"""Who of a cohort was finished by fMRIPrep before this workflow ran: they need no job.

A job of fMRIPrep asks for many cores and much memory for hours; for a participant whose outputs are there it would be
queued, started and ended at once. So the job graph is made without them, from a list that is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from semantoks.errors import UserError
from semantoks.files import read_json, write_json_if_changed

NAME = "finished.json"


def update_finished(
    folder: Path,
    source: Mapping[str, str],
    wanted: Mapping[str, Any],
    fmriprep: Mapping[str, Any],
    names: Sequence[str],
) -> None:
    """List those that are finished and have no status.

    Of who is listed already only names of files are looked at: a recording may have been added, or an output deleted.

    Parameters
    ----------
    folder : folder of a cohort's status files.
    source : ``path`` of the raw data and ``derivatives``.
    wanted : entity → labels of the runs that the cohort uses.
    fmriprep : keys of the section ``fmriprep`` that decide about results.
    names : participants (``sub-01``) or sessions (``sub-01_ses-1``).
    """
    asked = {"source": dict(source), "wanted": dict(wanted), "fmriprep": dict(fmriprep)}
    from semantoks.fmriprep_outputs import read_bids_filter  # here, as below

    chosen = read_bids_filter(fmriprep["bids_filter_file"])
    place = _Place(folder, Path(source["path"]), Path(source["derivatives"]), frozenset(finished_before(folder, asked)))
    finished = functools.partial(_is_finished, place, fmriprep["output_spaces"], wanted, chosen)
    with ThreadPoolExecutor(16) as pool:
        answers = list(tqdm(pool.map(finished, names), total=len(names), desc="fMRIPrep outputs", disable=None))
    listed = sorted(name for name, answer in zip(names, answers, strict=True) if answer)
    write_json_if_changed(folder / NAME, {"asked": asked, "finished": listed})


def finished_before(folder: Path, asked: Mapping[str, Any] | None = None) -> list[str]:
    """The names listed in a folder; with ``asked`` none when they were listed for other runs or settings."""
    if not (folder / NAME).is_file():
        return []
    content = read_json(folder / NAME)
    return list(content["finished"]) if asked is None or content["asked"] == asked else []


class _Place(NamedTuple):
    """Folders of a cohort (statuses, raw data, derivatives) and who is listed as finished there."""

    statuses: Path
    bids: Path
    derivatives: Path
    listed: frozenset[str]


def _is_finished(
    place: _Place, spaces: Sequence[str], wanted: Mapping[str, Any], chosen: Mapping[str, Any], name: str
) -> bool:
    from semantoks.fmriprep_outputs import Target, missing_files, problems  # with nibabel, which jobs need not wait for

    participant, _, session = name.partition("_")
    labels = participant.removeprefix("sub-"), session.removeprefix("ses-") or None
    target = Target(*labels, tuple(spaces), chosen, wanted)
    known = name in place.listed
    begun = (place.derivatives / participant / session).is_dir()
    if not begun or (not known and (place.statuses / f"{name}.json").exists()):
        return False
    look = missing_files if known else problems
    try:
        return not look(place.derivatives, place.bids, target)
    except UserError:  # its own job says what is wrong
        return False
