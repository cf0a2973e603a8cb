"""What is kept of fMRIPrep's derivatives (key ``fmriprep.retention``); nothing is deleted unless the user asks for it.

``all`` keeps everything. ``used`` keeps of a participant, once it is finished, what later stages read, and the reports.
``none`` does the same and deletes the images of a recording, too, once its time series are written. Only files that
fMRIPrep made in the job that finished the participant are deleted: what lay there before its first attempt stays.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterable, Sequence, Set
from pathlib import Path

from semantoks.errors import run_command
from semantoks.files import read_json, read_table, write_json
from semantoks.fmriprep_outputs import Target, expected_files

_REPORTS = ("figures", "log")
"""Folders of a participant with its report's figures, and with what fMRIPrep says of crashes and citations."""


def there_before(record: Path, first: bool, derivatives: Path, target: Target, subjects: Path | None) -> set[Path]:
    """Files of a participant (or session) that were there before the first attempt of its job, which writes them down.

    Parameters
    ----------
    record : file (JSON) that the first attempt writes and the others read.
    first : whether this is the first attempt: what an earlier job left may have been mended since.
    subjects : as for :func:`keep_used`.
    """
    if first or not record.is_file():
        folders = [_folder(derivatives, target), *([subjects / target.name] if subjects else [])]
        write_json(record, {"there_before": [str(path) for folder in folders for path in _files(folder)]})
    return set(map(Path, read_json(record)["there_before"]))


def keep_used(
    derivatives: Path, bids: Path, target: Target, subjects: Path | None, before: Set[Path] = frozenset()
) -> list[Path]:
    """Delete of a finished participant (or session) all that no later stage reads; the files deleted.

    Parameters
    ----------
    subjects : FreeSurfer subjects folder that belongs to the derivatives, whose folder of the participant goes, too;
        None where reconstructions are the user's own.
    before : files that others made, which stay.
    """
    folder = _folder(derivatives, target)
    used = {path.name for path in expected_files(derivatives, bids, target)}
    used |= {f"{name.split('.')[0]}.json" for name in used}
    unused = [
        path
        for path in _files(folder)
        if path.name not in used and not set(path.relative_to(folder).parts[:-1]) & set(_REPORTS)
    ]
    surfaces = _files(subjects / target.name) if subjects else []
    deleted = [path for path in (*unused, *surfaces) if path not in before]
    delete(deleted)
    if subjects and not before & set(surfaces):  # FreeSurfer makes empty folders, too
        shutil.rmtree(subjects / target.name, ignore_errors=True)
    return deleted


def _folder(derivatives: Path, target: Target) -> Path:
    return derivatives / f"sub-{target.participant}" / (f"ses-{target.session}" if target.session else "")


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
    statuses : status files of the participants. Who was finished without a run of this workflow is left alone, and so
        is what was there before the run.
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
        if ended["status"] != "done" or ended["there_before"] is None:
            continue
        before = {root / path for path in ended["there_before"]}
        own = [row for row in rows if row["participant_id"] == ended["participant"]]
        own = [row for row in own if ended["session"] in (None, row["session_id"]) and row["recording_id"] in written]
        paths = [row[key] for row in own for key in ("bold_path", "mask_path", "confounds_path") if row[key]]
        files = {Path(os.path.abspath(path)) for path in paths}
        files |= {path.with_name(f"{path.name.split('.')[0]}.json") for path in files}
        files = {path for path in files if path.is_relative_to(root)} - before
        there = sorted(path for path in files if path.is_symlink() or path.is_file())
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
