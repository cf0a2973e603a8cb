"""A participant for the stage ``fmriprep``, and executables that stand in for fMRIPrep and the engines."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from conftest import REPOSITORY
from container_engine import Engine, busybox_root
from semantoks import fmriprep, fmriprep_command, fmriprep_database, fmriprep_prepare
from semantoks.container_images import Image
from semantoks.fmriprep_outputs import Target

DIGEST = "sha256:" + "5a" * 32
IMAGE = Image("docker.io/nipreps/fmriprep", "25.2.3", DIGEST)
SPACE = "MNI152NLin6Asym:res-2"
PINNED = (fmriprep, fmriprep_database, fmriprep_prepare)
"""Modules that look up the image's digest."""
RUNS = ("sub-01_task-rest_run-1", "sub-01_task-rest_run-2")

# What stands in for fMRIPrep: writes FAKE_FURTHER files, the outputs of the runs it finds, then does what FAKE says.
STAND_IN = f"""#!{sys.executable}
import os, shutil, signal, sys
from pathlib import Path
arguments = sys.argv[1:]
if arguments == ["--version"]: print("fMRIPrep v" + os.environ["FAKE_VERSION"]); sys.exit()
if arguments[0] == "ps": sys.exit()
if arguments[:2] == ["image", "inspect"]:
    if os.environ["FAKE"] == "no image": sys.exit("Error: no such image")
    sys.exit("Cannot connect to the Docker daemon" if os.environ["FAKE"] == "no daemon" else 0)
if "cp" in arguments:  # what an image has of FreeSurfer
    mount = next(word for word in arguments if word.endswith(":/subjects")).split(":")[0]
    sys.exit((Path(mount) / "fsaverage" / "surf").mkdir(parents=True))
Path(os.environ["FAKE_LOG"]).write_text("\\n".join(arguments))
bids, derivatives = (Path(path) for path in os.environ["FAKE_FOLDERS"].split(":"))
behaviour = os.environ["FAKE"]
for path in (derivatives / name for name in os.environ.get("FAKE_FURTHER", "").split()):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{{}}")
print("260101-10:00:00 nipype.workflow INFO: starting", flush=True)
def write(only_first=False, cut=False):
    for run in {RUNS!r}[: 1 if only_first else None]:
        stem = derivatives / "sub-01" / "func" / (run + "_space-MNI152NLin6Asym_res-2")
        stem.parent.mkdir(parents=True, exist_ok=True)
        for kind in ("preproc_bold", "brain_mask"):
            shutil.copy(os.environ["FAKE_IMAGES"] + "/" + kind + ".nii.gz", str(stem) + "_desc-" + kind + ".nii.gz")
        (stem.parent / (run + "_desc-confounds_timeseries.tsv")).write_text("csf\\n" + "1.0\\n" * 4)
    if cut:
        path = Path(str(stem) + "_desc-preproc_bold.nii.gz")
        path.write_bytes(path.read_bytes()[:-200])
if behaviour == "success": write()
if behaviour == "half": write(only_first=True)
if behaviour == "cut": write(cut=True)
if behaviour == "crash":
    write(only_first=True)
    print("RuntimeError: command recon-all failed")
    print("fMRIPrep finished with errors, please see above")
    sys.exit(1)
if behaviour == "disk": print("OSError: [Errno 28] No space left on device"); sys.exit(1)
if behaviour == "memory": print("concurrent.futures.process.BrokenProcessPool: a child died"); sys.exit(1)
if behaviour == "no start": print("Error: unable to start container process"); sys.exit(125)
if behaviour == "bad licence": print("ERROR: a valid license file is required for FreeSurfer to run."); sys.exit(126)
if behaviour == "segfault": sys.exit(139)
if behaviour == "python path": print("OSError: saw", os.environ.get("PYTHONPATH")); sys.exit(1)
if behaviour == "killed": os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    func = tmp_path / "bids" / "sub-01" / "func"
    func.mkdir(parents=True)
    for run in RUNS:
        (func / f"{run}_bold.nii.gz").write_bytes(b"")
    (func / "sub-01_task-rest_run-1_sbref.nii.gz").write_bytes(b"")
    return tmp_path / "bids"


@pytest.fixture
def licence(tmp_path: Path) -> Path:
    path = tmp_path / "license.txt"
    path.write_text("name@place 1 a b")
    return path


def schema_defaults(section: str) -> dict[str, Any]:
    """A section of the configuration with every default."""
    schema = yaml.safe_load((REPOSITORY / "workflow" / "schemas" / f"{section}.schema.yaml").read_text())
    return {key: entry["default"] for key, entry in schema["properties"].items()}


@pytest.fixture
def settings(licence: Path) -> dict[str, Any]:
    return schema_defaults("fmriprep") | {"engine": "native", "licence": str(licence)}


def write_outputs(folder: Path) -> None:
    """An image, a mask and confounds as fMRIPrep writes them of a run of four volumes."""
    noise = np.random.default_rng(0).normal(size=(6, 6, 6, 4)).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, np.eye(4)), folder / "preproc_bold.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((6, 6, 6), np.uint8), np.eye(4)), folder / "brain_mask.nii.gz")
    (folder / "confounds.tsv").write_text("csf\n" + "1.0\n" * 4)
    (folder / "preproc_bold.json").write_text('{"RepetitionTime": 2.0}')


@pytest.fixture(scope="session")
def fmriprep_image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """An image that stands in for fMRIPrep's, under its name."""
    defaults = schema_defaults("fmriprep")
    root = busybox_root(tmp_path_factory.mktemp("image") / "root")
    shutil.copy(REPOSITORY / "tests/fmriprep_stand_in.sh", root / "fmriprep")
    (root / "fmriprep").chmod(0o755)
    (root / "bin/fmriprep").write_text("#!/bin/python\n")  # its first line says which Python has fMRIPrep
    (root / "bin/python").write_text('#!/bin/sh\n[ "$1" = -c ] && { echo "$3"; ls "$3"; } > "$4/layout_index.sqlite"\n')
    (root / "bin/python").chmod(0o755)
    surfaces = root / "opt/freesurfer/subjects/fsaverage/surf"
    surfaces.mkdir(parents=True)
    (surfaces / "of_file").write_text("a surface\n")
    (surfaces / "lh.white").symlink_to("of_file")
    name = f"{defaults['image']}:{defaults['version']}"
    return Image(defaults["image"], defaults["version"], engine.image_of(root, name, ['ENTRYPOINT ["/fmriprep"]']))


Runner = Callable[..., dict[str, Any] | None]


@pytest.fixture
def run(tmp_path: Path, bids: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run the stage with a stand-in that behaves as told; the status file's content, or None without one."""
    images = tmp_path / "images"
    images.mkdir()
    write_outputs(images)
    commands = tmp_path / "commands"
    commands.mkdir()
    for name in ("fmriprep", "podman", "apptainer", "fmriprep-docker", "docker"):
        (commands / name).write_text(STAND_IN)
        (commands / name).chmod(0o755 | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_IMAGES", str(images))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "arguments"))
    monkeypatch.setenv("FAKE_FOLDERS", f"{bids}:{tmp_path / 'out'}")
    monkeypatch.setenv("FAKE_VERSION", settings["version"])
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def run(behaviour: str, *arguments: str, **changed: Any) -> dict[str, Any] | None:
        monkeypatch.setenv("FAKE", behaviour)
        status = tmp_path / "status" / "sub-01.json"
        status.unlink(missing_ok=True)
        (tmp_path / "arguments").unlink(missing_ok=True)
        where = ["--bids", bids, "--output-derivatives", tmp_path / "out", "--work", tmp_path / "work"]
        given = ["--settings", json.dumps(settings | changed), "--participant", "01", "--status", status]
        given += ["--cohort", "study"]
        fmriprep.main([*map(str, [*where, *given]), *arguments])
        return json.loads(status.read_text()) if status.is_file() else None

    return run


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if `make pins` had found the digest."""
    for module in PINNED:
        monkeypatch.setattr(module, "find_image", lambda repository, tag: Image(repository, tag, DIGEST))


@pytest.fixture
def job(bids: Path, tmp_path: Path) -> fmriprep_command.Job:
    target = Target("01", None, (SPACE,), {})
    return fmriprep_command.Job(target, bids, tmp_path / "out", tmp_path / "work" / "sub-01", 12, 16000)


def python_with(requirement: str) -> Path:
    """Python of an environment that holds one package of PyPI, made once and kept in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "semantoks-tests" / requirement.replace("==", "-")
    if not (folder / "complete").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", requirement]
        ended = subprocess.run(install, capture_output=True, text=True, timeout=900)
        if ended.returncode:
            pytest.skip(f"{requirement} cannot be installed here: {ended.stderr.strip()[-300:]}")
        (folder / "complete").touch()
    return folder / "bin" / "python"
