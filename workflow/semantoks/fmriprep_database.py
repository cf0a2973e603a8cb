"""A PyBIDS database of a raw dataset, made once with fMRIPrep's own settings, so that no job reads all its files."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
from pathlib import Path

from semantoks.container_images import find_image
from semantoks.files import read_json, write_json
from semantoks.fmriprep_command import INSIDE, FmriprepSettings, apptainer_file
from semantoks.fmriprep_outputs import Target, input_files
from semantoks.fmriprep_process import clean_environment

DATABASE = "layout_index.sqlite"
"""Name that PyBIDS gives its file."""
DATASET = "dataset.json"
"""File beside it: which dataset it was made from. PyBIDS itself knows only the path inside the container."""

# fMRIPrep itself decides what is indexed.
_PROGRAM = """
import sys
from pathlib import Path
from fmriprep import config
config.execution.bids_dir, config.execution.bids_database_dir = map(Path, sys.argv[1:])
config.execution.init()
"""
_IN_IMAGE = 'exec "$(head -n 1 "$(command -v fmriprep)" | cut -c 3-)" -c "$0" "$@"'
"""Inside the image: the Python that fMRIPrep is installed in, which is the first line of its command."""


def make_database(settings: FmriprepSettings, bids: Path, folder: Path) -> str | None:
    """Make the database in ``folder`` unless it is there; what kept it from being made, None when it is there now.

    Participants that start together would each make it, in one file. One of another dataset, or of unknown origin, is
    made anew.
    """
    if _is_of(folder, bids):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making.") as temporary:
        command = _command(settings, bids, Path(temporary))
        ended = subprocess.run(command, capture_output=True, text=True, env=clean_environment({"NO_ET": "1"}))
        made = Path(temporary) / DATABASE
        if ended.returncode or not made.is_file():
            return f"exit code {ended.returncode}: {ended.stderr.strip()[-300:] or 'no message'}"
        (folder / DATASET).unlink(missing_ok=True)
        made.rename(folder / DATABASE)
        write_json(folder / DATASET, {"dataset": str(bids.resolve())})
    return None


def _is_of(folder: Path, bids: Path) -> bool:
    origin = folder / DATASET
    return (folder / DATABASE).is_file() and origin.is_file() and read_json(origin)["dataset"] == str(bids.resolve())


def knows(folder: Path, bids: Path, target: Target) -> bool:
    """Whether there is a database of the dataset in ``folder`` with the target's BOLD images: some may be newer."""
    if not _is_of(folder, bids):
        return False
    try:
        with sqlite3.connect(f"file:{folder / DATABASE}?mode=ro", uri=True) as database:
            found = database.execute("SELECT path FROM files WHERE path LIKE ?", [f"%/sub-{target.participant}/%"])
            names = {Path(path).name for (path,) in found}
    except sqlite3.DatabaseError:
        return False
    images = {path.name for path in input_files(bids, target) if path.name.split(".nii")[0].endswith("_bold")}
    return bool(names) and images <= names


def _command(settings: FmriprepSettings, bids: Path, target: Path) -> list[str]:
    """A container sees the dataset where fMRIPrep will see it: the database holds paths."""
    if settings.engine == "native":
        fmriprep = Path(shutil.which("fmriprep") or "fmriprep")
        python = fmriprep.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].removeprefix("#!").strip()
        return [python, "-c", _PROGRAM, str(bids), str(target)]
    image = find_image(settings.image, settings.version)
    inside = [_IN_IMAGE, _PROGRAM, INSIDE["bids"], INSIDE["database"]]
    binds = [f"{bids}:{INSIDE['bids']}:ro", f"{target}:{INSIDE['database']}"]
    if settings.engine == "apptainer":
        command = ["apptainer", "exec", "--cleanenv", "--containall", "--env", "NO_ET=1"]
        command += [word for bind in binds for word in ("--bind", bind)]
        return [*command, str(apptainer_file(settings, image)), "sh", "-c", *inside]
    command = [settings.engine, "run", "--rm", "--pull=never", "--env", "NO_ET=1", "--entrypoint", "sh"]
    command += [word for bind in binds for word in ("--volume", bind)]
    command += ["--user", f"{os.getuid()}:{os.getgid()}"] if settings.engine == "docker" else []
    return [*command, image.reference, "-c", *inside]
