"""What is kept of fMRIPrep's derivatives (key ``fmriprep.retention``); nothing is deleted unless the user asks for it.

``all`` keeps everything. ``used`` keeps of a participant, once it is finished, what later stages read, and the reports.
``none`` does the same and deletes the images of a recording, too, once its time series are written. Only what a run of
this workflow made is deleted: derivatives that were finished before stay as they are.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from semantoks.errors import run_command
from semantoks.files import read_json, read_table, write_json
from semantoks.fmriprep_outputs import Target, expected_files

_REPORTS = ("figures", "log")
"""Folders of a participant with its report's figures, and with what fMRIPrep says of crashes and citations."""


def keep_used(derivatives: Path, bids: Path, target: Target, subjects: Path | None) -> list[Path]:
    """Delete of a finished participant (or session) all that no later stage reads; the files deleted.

    Parameters
    ----------
    subjects : FreeSurfer subjects folder that belongs to the derivatives, whose folder of the participant goes, too;
        None where reconstructions are the user's own.
    """
    folder = derivatives / f"sub-{target.participant}" / (f"ses-{target.session}" if target.session else "")
    used = {path.name for path in expected_files(derivatives, bids, target)}
    used |= {f"{name.split('.')[0]}.json" for name in used}
    unused = [
        path
        for path in _files(folder)
        if path.name not in used and not set(path.relative_to(folder).parts[:-1]) & set(_REPORTS)
    ]
    surfaces = _files(subjects / target.name) if subjects else []
    delete([*unused, *surfaces])
    if subjects:
        shutil.rmtree(subjects / target.name, ignore_errors=True)
    return [*unused, *surfaces]


def delete(files: Iterable[Path]) -> int:
    """Delete files and the folders that they leave empty; bytes freed. Of a link, the link is deleted."""
    freed = 0
    for path in files:
        freed += path.lstat().st_size
        path.unlink()
        for folder in path.parents:
            if any(folder.iterdir()):
                break
            folder.rmdir()
    return freed


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())


def forget_images(
    timeseries: Sequence[Path], index: Sequence[Path], statuses: Sequence[Path], root: Path
) -> list[Path]:
    """Delete images, masks and confounds of the recordings whose time series are written; the files deleted.

    The status of a participant of whom something is deleted goes, too: it is no longer finished, and runs again when
    its images are needed again, e.g. for another denoising strategy.

    Parameters
    ----------
    timeseries, index : tables of all batches that hold recordings of the participants.
    statuses : status files of the participants. Who was finished without a run of this workflow is left alone.
    root : derivatives folder; nothing outside it is deleted.
    """
    written: set[str] = set()
    for table in timeseries:
        recordings = read_table(table, ["recording_id", "exclude_reason"])
        written |= set(recordings["recording_id"][recordings["exclude_reason"].isna()])
    rows = [row for table in map(read_table, index) for row in table.to_dict("records")]
    root = Path(os.path.abspath(root))
    deleted: list[Path] = []
    for status in statuses:
        ended = read_json(status)
        if ended["status"] != "done" or ended["command"] is None:
            continue
        own = [row for row in rows if row["participant_id"] == ended["participant"]]
        own = [row for row in own if ended["session"] in (None, row["session_id"]) and row["recording_id"] in written]
        paths = [row[key] for row in own for key in ("bold_path", "mask_path", "confounds_path") if row[key]]
        files = {Path(os.path.abspath(path)) for path in paths}
        files |= {path.with_name(f"{path.name.split('.')[0]}.json") for path in files}
        there = sorted(path for path in files if path.is_relative_to(root) and (path.is_symlink() or path.is_file()))
        if there:
            delete(there)
            status.unlink()
        deleted += there
    return deleted


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: delete the images of batches whose time series are written (``retention: none``)."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.fmriprep_retention", description=__doc__)
    parser.add_argument("--timeseries", type=Path, nargs="+", required=True, help="time series of the batches")
    parser.add_argument("--index", type=Path, nargs="+", required=True, help="indices of the batches")
    parser.add_argument("--status", type=Path, nargs="*", default=[], help="status files of fMRIPrep")
    parser.add_argument("--derivatives", type=Path, required=True, help="folder that fMRIPrep wrote to")
    parser.add_argument("--output", type=Path, required=True, help="file to write (JSON): what was deleted")
    arguments = parser.parse_args(argv)
    there = [path for path in arguments.status if path.is_file()]
    deleted = forget_images(arguments.timeseries, arguments.index, there, arguments.derivatives)
    write_json(arguments.output, {"deleted": [str(path) for path in deleted]})
    print(f"{len(deleted)} files deleted")


if __name__ == "__main__":
    run_command(main)
