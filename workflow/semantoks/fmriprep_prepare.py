"""What all participants of fMRIPrep share, made once before the first starts: templates, ``fsaverage``, a database.

Runs where the workflow was started, because compute nodes often have no network. What is wrong on every machine alike
(no licence, no digest) ends it. What else keeps it from succeeding, e.g. an engine that only compute nodes have, is
written down, and a participant that has to run tries again.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from semantoks.container_images import Image, find_image
from semantoks.errors import UserError, run_command
from semantoks.files import read_json, write_json
from semantoks.fmriprep_command import FmriprepSettings, apptainer_file
from semantoks.fmriprep_database import make_database
from semantoks.fmriprep_process import clean_environment

_EXECUTABLES = {
    "docker": ("fmriprep-docker", "docker"),
    "podman": ("podman",),
    "apptainer": ("apptainer",),
    "native": ("fmriprep",),
}
_NO_SUCH_IMAGE = re.compile(r"no such (image|object)|image not known", re.I)
"""What Docker and Podman say of an image that they lack, other than of a daemon that does not answer."""
_ALWAYS_NEEDED = ("MNI152NLin2009cAsym", "MNI152NLin6Asym", "OASIS30ANTs", "fsLR", "fsaverage")
"""Templates that fMRIPrep reads whatever the output spaces are."""
_SUBJECTS_OF_IMAGE = "/opt/freesurfer/subjects"


def check_ready(settings: FmriprepSettings) -> None:
    """Refuse to start with what would fail for everybody: no command, no digest, no image, another version."""
    for executable in _EXECUTABLES[settings.engine]:
        if shutil.which(executable) is None:
            raise UserError(
                f"key 'fmriprep.engine': {settings.engine!r} needs the command {executable!r}, found none in PATH; "
                "install it or choose another engine"
            )
    if settings.engine == "native":
        return _check_installed_version(settings)
    image = _resolved_image(settings)
    if settings.engine == "apptainer":
        path = apptainer_file(settings, image)
        if not path.is_file():
            raise UserError(
                f"{path}: expected the Apptainer image, found none; make it with "
                f"`apptainer pull {path} docker://{image.reference}`"
            )
        return
    _check_image(settings.engine, image)


def _resolved_image(settings: FmriprepSettings) -> Image:
    image = find_image(settings.image, settings.version)
    if not image.resolved:
        raise UserError(
            f"containers/images.lock: expected the digest of {image.repository}:{image.tag}, found 'unresolved'; "
            "run `make pins` where there is a network"
        )
    return image


def check_settings(settings: FmriprepSettings) -> None:
    """Refuse what is wrong on every machine alike: no licence, no digest."""
    licence_file(settings)
    if settings.engine != "native":
        _resolved_image(settings)


def licence_file(settings: FmriprepSettings) -> Path:
    """FreeSurfer's licence file, from the settings or the environment; a :class:`UserError` when there is none."""
    given = settings.licence or os.environ.get("FS_LICENSE")
    if not given:
        raise UserError(
            "key 'fmriprep.licence': expected the path of FreeSurfer's licence file, found null, and the environment "
            "variable FS_LICENSE is not set; a licence is free: https://surfer.nmr.mgh.harvard.edu/registration.html"
        )
    named = "key 'fmriprep.licence'" if settings.licence else "environment variable FS_LICENSE"
    if "\n" in given:  # a secret, and no message may repeat it
        raise UserError(f"{named}: expected the path of FreeSurfer's licence file, found what may be its content")
    path = Path(given).absolute()
    if not path.is_file() or path.stat().st_size == 0:
        found = "an empty file" if path.exists() else "none"
        raise UserError(f"{path}: expected FreeSurfer's licence file, found {found}; correct {named}")
    return path


def _check_image(engine: str, image: Image) -> None:
    """Refuse an image that Docker or Podman lacks, or an engine that does not answer."""
    query = [engine, "image", "inspect", image.reference]
    answer = subprocess.run(query, capture_output=True, text=True)
    if answer.returncode and not _NO_SUCH_IMAGE.search(answer.stderr):
        raise UserError(
            f"key 'fmriprep.engine': expected {engine} to work, found `{' '.join(query)}` to fail: "
            f"{answer.stderr.strip()[-300:] or 'no message'}"
        )
    if answer.returncode:
        raise UserError(
            f"key 'fmriprep.image': expected {image.reference} on this machine, found none; "
            f"fetch it with `{engine} pull {image.reference}`"
        )


def _check_installed_version(settings: FmriprepSettings) -> None:
    answer = subprocess.run(["fmriprep", "--version"], capture_output=True, text=True, env=clean_environment({}))
    found = re.search(r"\d+(?:\.\w+)+", answer.stdout)
    if not found or found[0] != settings.version:
        raise UserError(
            f"key 'fmriprep.version': expected fMRIPrep {settings.version} to be installed, "
            f"found {found[0] if found else answer.stderr.strip()[-200:]!r}; install that version or change the key"
        )


def wanted_templates(output_spaces: Sequence[str]) -> list[str]:
    """Templates that fMRIPrep reads for these output spaces, sorted."""
    own_spaces = {"anat", "T1w", "run", "func", "bold", "fsnative", "fsaverage5", "fsaverage6"}
    return sorted({space.split(":")[0] for space in output_spaces} - own_spaces | set(_ALWAYS_NEEDED))


def fetch_templates(folder: Path, templates: Sequence[str], get: Callable[[str], Any] | None = None) -> list[str]:
    """Fetch the templates that the folder lacks with the TemplateFlow client; returns their names.

    Parameters
    ----------
    folder : TemplateFlow home.
    templates : names without ``tpl-``.
    get : fetches one template; by default ``templateflow.api.get``.

    Raises
    ------
    UserError
        When a template cannot be fetched.
    """
    fetched = []
    for template in templates:
        images = (folder / f"tpl-{template}").rglob("*.gz")  # of a skeleton they are empty
        complete = folder / f".{template}.complete"
        if complete.is_file():
            continue
        try:
            (get or _templateflow_get(folder))(template)
        except Exception as error:  # the client raises what its own libraries raise
            if any(path.stat().st_size for path in images):  # fetched by hand: what is there is the user's word
                continue
            raise UserError(
                f"key 'fmriprep.templateflow': expected template {template} in {folder}, found none, and it could not "
                f"be fetched ({error}); fetch it where there is a network: docs/fmriprep.md"
            ) from None
        complete.touch()
        fetched.append(template)
    return fetched


def _templateflow_get(folder: Path) -> Callable[[str], Any]:
    os.environ["TEMPLATEFLOW_HOME"] = str(folder)
    from templateflow import api

    return lambda template: api.get(template, raise_empty=True)


def copy_fsaverage(settings: FmriprepSettings, subjects: Path) -> bool:
    """Copy FreeSurfer's ``fsaverage`` into the subjects folder; False when it was there.

    Participants that start at the same time would each copy it, and fail over each other's files.
    """
    if (subjects / "fsaverage").is_dir():
        return False
    subjects.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=subjects, prefix=".fsaverage.") as folder:
        copy = Path(folder) / "fsaverage"
        command = _copy_command(settings, Path(folder))
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode or not copy.is_dir():
            raise UserError(
                f"{subjects}/fsaverage: expected a copy of FreeSurfer's, found none after `{' '.join(command)}`: "
                f"{ended.stderr.strip()[-300:] or 'no message'}"
            )
        try:
            copy.rename(subjects / "fsaverage")
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # otherwise another job was faster
                raise
    return True


def _copy_command(settings: FmriprepSettings, target: Path) -> list[str]:
    source = f"{_SUBJECTS_OF_IMAGE}/fsaverage"
    if settings.engine == "native":
        home = os.environ.get("FREESURFER_HOME")
        if not home:
            raise UserError(
                "environment variable FREESURFER_HOME: expected FreeSurfer's folder with `engine: native` and "
                "`freesurfer: true`, found it unset; set it or set 'fmriprep.freesurfer' to false"
            )
        return ["cp", "-rL", f"{home}/subjects/fsaverage", str(target)]
    image = find_image(settings.image, settings.version)
    if settings.engine == "apptainer":
        command = ["apptainer", "exec", "--cleanenv", "--containall", "--bind", f"{target}:/subjects"]
        return [*command, str(apptainer_file(settings, image)), "cp", "-rL", source, "/subjects"]
    command = [settings.engine, "run", "--rm", "--pull=never", "--volume", f"{target}:/subjects", "--entrypoint", "cp"]
    command += ["--user", f"{os.getuid()}:{os.getgid()}"] if settings.engine == "docker" else []
    return [*command, image.reference, "-rL", source, "/subjects"]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the step before the stage ``fmriprep``."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.fmriprep_prepare", description=__doc__)
    parser.add_argument("--settings", type=json.loads, required=True, help="keys that decide about results, as JSON")
    parser.add_argument("--running", type=Path, help="file with all other keys of the section (JSON)")
    parser.add_argument("--cohort", required=True, help="name of the cohort, which is part of its folders")
    parser.add_argument("--bids", type=Path, required=True, help="BIDS folder")
    parser.add_argument("--output-derivatives", type=Path, required=True, help="folder for what fMRIPrep writes")
    parser.add_argument("--output", type=Path, required=True, help="file to write (JSON): what is there")
    arguments = parser.parse_args(argv)
    settings = FmriprepSettings(**arguments.settings, **(read_json(arguments.running) if arguments.running else {}))
    settings = settings.of_cohort(arguments.cohort)
    check_settings(settings)  # one message instead of one per participant
    problem = None
    try:
        prepare(settings, arguments.output_derivatives, arguments.bids)
    except UserError as error:
        problem = str(error)
        print(f"not prepared: {error}")
    write_json(arguments.output, {"problem": problem})


def subjects_folder(settings: FmriprepSettings, derivatives: Path) -> Path:
    """FreeSurfer's subjects folder: the one given, else fMRIPrep's own inside the derivatives."""
    return Path(settings.freesurfer_folder or derivatives / "sourcedata" / "freesurfer").absolute()


def prepare(settings: FmriprepSettings, derivatives: Path, bids: Path) -> None:
    """Fetch templates, copy ``fsaverage`` and make a database of the dataset, as the settings ask for it."""
    check_ready(settings)
    if settings.templateflow:
        templates = wanted_templates(settings.output_spaces)
        fetched = fetch_templates(Path(settings.templateflow).absolute(), templates)
        print(f"templates fetched: {', '.join(fetched) or 'none, all were there'}")
    if settings.freesurfer:
        subjects = subjects_folder(settings, derivatives)
        print(f"fsaverage {'copied to' if copy_fsaverage(settings, subjects) else 'was in'} {subjects}")
    if settings.bids_database_folder:
        folder = Path(settings.bids_database_folder).absolute()
        problem = make_database(settings, bids.absolute(), folder)
        print(f"{folder}: {f'no database, jobs go without: {problem}' if problem else 'database is there'}")


if __name__ == "__main__":
    run_command(main)
