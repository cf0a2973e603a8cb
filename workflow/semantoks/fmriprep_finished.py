"""Who of a cohort was finished by fMRIPrep before this workflow ran: they need no job.

A job of fMRIPrep asks for many cores and much memory for hours; for a participant whose outputs are there it would be
queued, started and ended at once. So the job graph is made without them, from a list that grows.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
    """Look at the outputs of participants of whom nothing is known, and list those that are finished.

    Parameters
    ----------
    folder : folder of a cohort's status files; who has one is known.
    source : ``path`` of the raw data and ``derivatives``.
    wanted : entity → labels of the runs that the cohort uses.
    fmriprep : keys of the section ``fmriprep`` that decide about results.
    names : participants (``sub-01``) or sessions (``sub-01_ses-1``).
    """
    asked = {"source": dict(source), "wanted": dict(wanted), "fmriprep": dict(fmriprep)}
    derivatives = Path(source["derivatives"])
    there = [name for name in names if _has_outputs(derivatives, name)]
    listed = set(finished_before(folder, asked)) & set(there)
    waiting = [name for name in there if name not in listed and not (folder / f"{name}.json").exists()]
    from semantoks.fmriprep_outputs import read_bids_filter  # here, as below

    chosen = read_bids_filter(fmriprep["bids_filter_file"])
    finished = functools.partial(_is_finished, Path(source["path"]), derivatives, fmriprep, wanted, chosen)
    with ThreadPoolExecutor(16) as pool:
        answers = list(tqdm(pool.map(finished, waiting), total=len(waiting), desc="fMRIPrep outputs", disable=None))
    listed |= {name for name, answer in zip(waiting, answers, strict=True) if answer}
    write_json_if_changed(folder / NAME, {"asked": asked, "finished": sorted(listed)})


def finished_before(folder: Path, asked: Mapping[str, Any] | None = None) -> list[str]:
    """The names listed in a folder; with ``asked`` none when they were listed for other runs or settings."""
    if not (folder / NAME).is_file():
        return []
    content = read_json(folder / NAME)
    return list(content["finished"]) if asked is None or content["asked"] == asked else []


def _has_outputs(derivatives: Path, name: str) -> bool:
    participant, _, session = name.partition("_")
    return (derivatives / participant / session).is_dir()


def _is_finished(
    bids: Path,
    derivatives: Path,
    fmriprep: Mapping[str, Any],
    wanted: Mapping[str, Any],
    chosen: Mapping[str, Any],
    name: str,
) -> bool:
    from semantoks.fmriprep_outputs import Target, problems  # with nibabel, which jobs need not wait for

    participant, _, session = name.partition("_")
    labels = participant.removeprefix("sub-"), session.removeprefix("ses-") or None
    target = Target(*labels, tuple(fmriprep["output_spaces"]), chosen, wanted)
    try:
        return not problems(derivatives, bids, target)
    except UserError:  # its own job says what is wrong
        return False
