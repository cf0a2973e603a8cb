"""The command line that runs fMRIPrep with each engine: ``fmriprep-docker``, Podman, Apptainer, native."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from semantoks.container_images import Image
from semantoks.errors import UserError
from semantoks.fmriprep_outputs import Target
from semantoks.settings import OF_COHORT

INSIDE = {
    "bids": "/data",
    "derivatives": "/out",
    "work": "/work",
    "licence": "/opt/freesurfer/license.txt",
    "filter": "/bids_filter.json",
    "database": "/bids_database",
    "freesurfer": "/subjects",
}
"""Where things lie inside a container."""
_TEMPLATEFLOW, _HOME = "/templateflow", "/home/runner"
_TEMPLATEFLOW_OF_IMAGE = "/home/fmriprep/.cache/templateflow"
_MOST_OMP_THREADS = 8
"""More threads than this do not make a single step of fMRIPrep faster."""
_OWN_ARGUMENTS = {
    "--participant-label", "--participant_label", "--session-label", "--nprocs", "--nthreads", "--n_cpus", "--n-cpus",
    "--omp-nthreads", "--mem", "--mem_mb", "--mem-mb", "--output-spaces", "--notrack", "--random-seed", "-w",
    "--work-dir", "--skip-bids-validation", "--skip_bids_validation", "--fs-no-reconall", "--fs-license-file",
    "--fs-subjects-dir", "--bids-filter-file", "--bids-database-dir", "--subject-anatomical-reference",
    "--output-layout", "--clean-workdir",
}  # fmt: skip
"""Arguments of fMRIPrep that the settings decide, or (the last two) that would move or delete what is relied on."""


@dataclass(frozen=True)
class FmriprepSettings:
    """The section ``fmriprep`` of the configuration; every key is explained in its schema."""

    engine: Literal["docker", "podman", "apptainer", "native"]
    image: str
    version: str
    image_folder: str | None
    licence: str | None
    templateflow: str | None
    output_spaces: list[str]
    freesurfer: bool
    freesurfer_folder: str | None
    skip_bids_validation: bool
    bids_database_folder: str | None
    bids_filter_file: str | None
    work_folder: str | None
    memory_share: float
    retention: Literal["all", "used", "none"]
    random_seed: int
    per_session: bool
    before_command: str | None
    after_command: str | None
    extra_arguments: list[str]
    engine_arguments: list[str]

    def __post_init__(self) -> None:
        refused = {word.split("=")[0] for word in self.extra_arguments} & _OWN_ARGUMENTS
        if refused:
            raise UserError(
                f"key 'fmriprep.extra_arguments': expected what the workflow does not set itself, found "
                f"{', '.join(sorted(refused))}; use the keys of section `fmriprep`"
            )

    def of_cohort(self, name: str) -> FmriprepSettings:
        """The settings with the folders of one cohort: ``sub-01`` of another cohort is another participant."""
        return replace(
            self,
            work_folder=str(Path(self.work_folder) / name) if self.work_folder else None,
            bids_database_folder=str(Path(self.bids_database_folder) / name) if self.bids_database_folder else None,
            freesurfer_folder=self.freesurfer_folder.replace(OF_COHORT, name) if self.freesurfer_folder else None,
        )


@dataclass(frozen=True)
class Job:
    """One run of fMRIPrep: whose, from where, to where, and what it may use. All paths are absolute."""

    target: Target
    bids: Path
    derivatives: Path
    work: Path
    threads: int
    mem_mb: int


def build_command(
    settings: FmriprepSettings, job: Job, licence: Path, image: Image | None, linked: Sequence[tuple[Path, Path]]
) -> tuple[list[str], dict[str, str]]:
    """The command and the environment variables it needs beside the present ones.

    Parameters
    ----------
    licence : FreeSurfer licence file.
    image : the pinned image; None for ``native``.
    linked : places outside the BIDS folder that links lead to, and where they lead to inside; bound read-only.

    Raises
    ------
    UserError
        When the engine cannot do what the settings ask for.
    """
    outside = {
        "bids": str(job.bids),
        "derivatives": str(job.derivatives),
        "work": str(job.work),
        "licence": str(licence),
        "filter": _absolute(settings.bids_filter_file),
        "database": _absolute(settings.bids_database_folder),
        "freesurfer": _absolute(settings.freesurfer_folder),
    }
    places = {name: path for name, path in outside.items() if path}
    if settings.engine == "native":
        variables = {"TEMPLATEFLOW_HOME": settings.templateflow} if settings.templateflow else {}
        return ["fmriprep", *fmriprep_arguments(settings, job, places)], variables
    assert image is not None
    if settings.engine == "docker":
        return _docker(settings, job, places, image, linked), {}
    binds = [(path, INSIDE[name], name in ("bids", "licence", "filter")) for name, path in places.items()]
    if settings.templateflow:
        binds.append((str(Path(settings.templateflow).absolute()), _TEMPLATEFLOW, True))
    binds += [(str(path), str(inside), True) for path, inside in linked]
    arguments = fmriprep_arguments(settings, job, {name: INSIDE[name] for name in places})
    engine = _podman if settings.engine == "podman" else _apptainer
    return [*engine(settings, job, binds, image), *arguments], {}


def fmriprep_arguments(settings: FmriprepSettings, job: Job, places: Mapping[str, str]) -> list[str]:
    """fMRIPrep's own arguments; ``places`` says where it finds its files and folders."""
    arguments = [places["bids"], places["derivatives"], "participant", "--participant-label", job.target.participant]
    if job.target.session:
        arguments += ["--session-label", job.target.session, "--subject-anatomical-reference", "sessionwise"]
    arguments += ["--nthreads", str(job.threads), "--omp-nthreads", str(min(job.threads, _MOST_OMP_THREADS))]
    # spelt like this, fmriprep-docker does not ask back when memory is small
    arguments += ["--mem_mb", str(int(job.mem_mb * settings.memory_share))]
    arguments += ["--output-spaces", *settings.output_spaces, "--random-seed", str(settings.random_seed), "--notrack"]
    arguments += ["--skip-bids-validation"] if settings.skip_bids_validation else []
    arguments += [] if settings.freesurfer else ["--fs-no-reconall"]
    options = {
        "--fs-license-file": "licence",
        "--fs-subjects-dir": "freesurfer",
        "--bids-filter-file": "filter",
        "--bids-database-dir": "database",
        "-w": "work",
    }
    for option, name in options.items():
        arguments += [option, places[name]] if name in places else []
    return [*arguments, *settings.extra_arguments]


def _docker(
    settings: FmriprepSettings,
    job: Job,
    places: Mapping[str, str],
    image: Image,
    linked: Sequence[tuple[Path, Path]],
) -> list[str]:
    """``fmriprep-docker`` takes paths of this machine and binds them itself, and nothing else."""
    what = None
    if settings.templateflow:
        what = "key 'fmriprep.templateflow': a folder of templates"
    elif linked:
        what = f"{job.bids}/sub-{job.target.participant}: links to {', '.join(str(path) for path, _ in linked)}"
    if what:
        raise UserError(f"{what}, which fmriprep-docker cannot bind; use engine 'podman' or 'apptainer'")
    arguments = fmriprep_arguments(settings, job, places)
    wrapper = ["--no-tty", "--user", f"{os.getuid()}:{os.getgid()}", "--image", image.reference]
    return ["fmriprep-docker", *arguments, *wrapper, *settings.engine_arguments]


def _podman(settings: FmriprepSettings, job: Job, binds: list[tuple[str, str, bool]], image: Image) -> list[str]:
    command = ["podman", "run", "--rm", "--pull=never"]
    for outside, inside, read_only in binds:
        command += ["--volume", f"{outside}:{inside}" + (":ro" if read_only else "")]
    command += ["--env", f"TEMPLATEFLOW_HOME={_TEMPLATEFLOW}"] if settings.templateflow else []
    return [*command, *settings.engine_arguments, image.reference]


def _apptainer(settings: FmriprepSettings, job: Job, binds: list[tuple[str, str, bool]], image: Image) -> list[str]:
    """Apptainer with nothing of this machine but what is bound: no environment, own home, own temporary folder.

    ``--containall`` alone gives a temporary folder of 64 MB.
    """
    templates = _TEMPLATEFLOW if settings.templateflow else _TEMPLATEFLOW_OF_IMAGE
    command = ["apptainer", "run", "--cleanenv", "--containall", "--home", f"{job.work / 'home'}:{_HOME}"]
    for outside, inside, read_only in [*binds, (str(job.work / "tmp"), "/tmp", False)]:
        command += ["--bind", f"{outside}:{inside}" + (":ro" if read_only else "")]
    command += ["--env", f"TEMPLATEFLOW_HOME={templates}", *settings.engine_arguments]
    return [*command, str(apptainer_file(settings, image))]


def apptainer_file(settings: FmriprepSettings, image: Image) -> Path:
    """The ``.sif`` file of an image, named after tag and digest."""
    if settings.image_folder is None:
        raise UserError(
            "key 'fmriprep.image_folder': expected the folder of Apptainer image files, found null; "
            f"it must hold {image.file_name} (docs/fmriprep.md has the command that makes it)"
        )
    return Path(settings.image_folder).absolute() / image.file_name


def _absolute(path: str | None) -> str | None:
    return str(Path(path).absolute()) if path else None
