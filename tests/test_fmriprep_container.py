"""The stage ``fmriprep`` through a real container engine, with an image that stands in for fMRIPrep's."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bids_trees import raw
from container_engine import Engine
from fmriprep_cases import PINNED, RUNS, python_with, schema_defaults, write_outputs
from semantoks import fmriprep, fmriprep_prepare
from semantoks.container_images import Image
from semantoks.errors import UserError
from semantoks.fmriprep_outputs import Target, problems
from semantoks.fmriprep_process import end_containers
from small_study import copy_repository

pytestmark = pytest.mark.slow
COMMANDS = ["podman", "docker"]
Preprocess = Callable[..., dict[str, Any]]


@pytest.fixture
def place(tmp_path: Path, bids: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A participant with two runs and a licence; what the image copies lies in the dataset's folder ``code``."""
    (bids / "code").mkdir()
    write_outputs(bids / "code")
    (tmp_path / "license.txt").write_text("name@place 1 a b")
    for name, value in engine.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return tmp_path


@pytest.fixture
def wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real ``fmriprep-docker``, which calls ``docker``: a link to Podman."""
    version = schema_defaults("fmriprep")["version"]
    folder = python_with(f"fmriprep-docker=={version}").parent
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{folder}")


@pytest.fixture
def image(fmriprep_image: Image, monkeypatch: pytest.MonkeyPatch) -> Image:
    """The image in the place of fMRIPrep's own, as if `make pins` had found its digest."""
    for module in PINNED:
        monkeypatch.setattr(module, "find_image", lambda *_: fmriprep_image)
    return fmriprep_image


@pytest.fixture
def preprocess(place: Path, image: Image) -> Preprocess:
    """Run the stage on the participant; the status file's content."""

    def preprocess(behaviour: str, *arguments: str, engine: str = "podman", **changed: Any) -> dict[str, Any]:
        (place / "bids/code/behaviour-01").write_text(behaviour)
        status = place / "status/sub-01.json"
        status.unlink(missing_ok=True)
        fmriprep.main([*stage_arguments(place, engine, **changed), *arguments])
        return dict(json.loads(status.read_text()))

    return preprocess


def stage_arguments(place: Path, engine: str, **changed: Any) -> list[str]:
    """Arguments of the stage."""
    settings = schema_defaults("fmriprep") | {"engine": engine, "licence": str(place / "license.txt")}
    settings |= {"engine_arguments": ["--network=none"], "freesurfer": False} | changed
    where = {"--bids": "bids", "--output-derivatives": "out", "--work": "work", "--status": "status/sub-01.json"}
    words = [word for option, name in where.items() for word in (option, str(place / name))]
    return ["--settings", json.dumps(settings), "--participant", "01", "--cohort", "study", *words]


def told(place: Path) -> dict[str, str]:
    """What the stand-in wrote down of itself."""
    lines = (place / "out/logs/01").read_text().splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


@pytest.mark.usefixtures("wrapper")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_participant_goes_through_the_container(place: Path, preprocess: Preprocess, command: str) -> None:
    (place / "filter.json").write_text(json.dumps({"bold": {"task": "rest"}}))
    further = {"bids_filter_file": str(place / "filter.json"), "bids_database_folder": str(place / "database")}
    status = preprocess("success", "--threads", "4", "--mem-mb", "9000", engine=command, **further)
    assert (status["status"], status["reason"], status["runs"]) == ("done", None, list(RUNS))
    assert problems(place / "out", place / "bids", Target("01", None, ("MNI152NLin6Asym:res-2",), {})) == []
    found = told(place)
    words = found["arguments"].split()
    assert words[:3] == ["/data", "/out", "participant"]
    options = dict(itertools.pairwise(words))
    assert options["--participant-label"] == "01"
    assert options["--mem_mb"] == "8100", "below the job's memory"
    assert options["--nthreads"] == "4"
    assert "--notrack" in words
    assert found["data writable"] == "no"
    assert found["interfaces"] == "lo", "no network"
    assert found["user"] == str(os.getuid())
    assert {"--bids-filter-file", "-w"} <= set(words)
    assert "--bids-database-dir" not in words, "there is none, and fMRIPrep would begin to make one"
    assert not list((place / "work").iterdir()), "intermediate files go after success"


@pytest.mark.usefixtures("wrapper")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("behaviour", "status", "reason"),
    [
        ("error", "failed", "exit code 1: RuntimeError: command recon-all failed"),
        ("killed", "failed", "killed (memory or time limit?)"),
        ("half", "incomplete", "no sub-01_task-rest_run-2_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz"),
        ("cut", "incomplete", "desc-preproc_bold.nii.gz is cut short"),
    ],
)
def test_failures_are_statuses_and_nothing_that_was_made_is_deleted(
    place: Path, preprocess: Preprocess, command: str, behaviour: str, status: str, reason: str
) -> None:
    found = preprocess(behaviour, engine=command)
    assert found["status"] == status
    assert reason in found["reason"]
    assert (place / "work/sub-01/attempts").read_text() == "an attempt\n", "intermediate files wait for the next one"
    if behaviour != "killed":
        assert list((place / "out/sub-01/func").glob("*run-1*preproc_bold.nii.gz"))
    again = preprocess("success", engine=command)
    assert (again["status"], again["reason"]) == ("done", None)


@pytest.mark.usefixtures("wrapper")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_container_fails_the_job_until_its_last_attempt(
    place: Path, preprocess: Preprocess, command: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        preprocess("killed once", "--attempt", "1", "--attempts", "2", engine=command)
    assert ended.value.code == 137
    assert not (place / "status/sub-01.json").exists()
    status = preprocess("killed once", "--attempt", "2", "--attempts", "2", engine=command)
    assert status["status"] == "done", "the second attempt went on in the work folder of the first"


def test_a_full_disk_is_the_reason(small_disk: Path, place: Path, preprocess: Preprocess) -> None:
    status = preprocess("full", work_folder=str(small_disk))
    assert status["status"] == "failed"
    assert "No space left on device" in status["reason"]
    assert (small_disk / "study/sub-01/intermediate").stat().st_size > 500_000
    assert len(list((place / "out/sub-01/func").glob("*preproc_bold.nii.gz"))) == 1


@pytest.mark.usefixtures("wrapper")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_licence_that_fmriprep_refuses_concerns_everybody(place: Path, preprocess: Preprocess, command: str) -> None:
    (place / "license.txt").write_text("forged")
    with pytest.raises(UserError, match=r"fMRIPrep did not start .*a valid license file is required"):
        preprocess("success", engine=command)
    (place / "license.txt").unlink()
    with pytest.raises(UserError, match=r"license.txt: expected FreeSurfer's licence file, found none"):
        preprocess("success", engine=command)


@pytest.mark.usefixtures("wrapper")
@pytest.mark.parametrize("command", COMMANDS)
def test_an_image_that_is_not_there_is_named_with_the_command_that_fetches_it(
    place: Path, preprocess: Preprocess, monkeypatch: pytest.MonkeyPatch, image: Image, command: str
) -> None:
    other = Image(image.repository, image.tag, "sha256:" + "5a" * 32)
    for module in PINNED:
        monkeypatch.setattr(module, "find_image", lambda *_: other)
    with pytest.raises(UserError, match=rf"found none; fetch it with `{command} pull {other.reference}`"):
        preprocess("success", engine=command)


def test_templates_are_bound_read_only_and_annexed_data_where_their_links_lead(
    place: Path, preprocess: Preprocess
) -> None:
    (place / "templates/tpl-MNI152NLin6Asym").mkdir(parents=True)
    store = place / "store/annex/objects/a/b"
    store.mkdir(parents=True)
    link = place / "bids/sub-01/func" / f"{RUNS[0]}_bold.nii.gz"
    link.rename(store / "image.nii.gz")
    link.symlink_to(store / "image.nii.gz")
    status = preprocess("success", templateflow=str(place / "templates"))
    assert status["status"] == "done", "the stand-in found the run behind the link"
    found = told(place)
    assert found["TEMPLATEFLOW_HOME"] == "/templateflow"
    assert found["templates writable"] == "no"


def test_a_bids_folder_inside_an_annexed_dataset_is_read_through_its_relative_links(
    place: Path, preprocess: Preprocess
) -> None:
    """The stand-in copies what it finds behind the links of ``code``, which only the bound annex has."""
    for name in ("code/preproc_bold.nii.gz", "code/brain_mask.nii.gz", f"sub-01/func/{RUNS[0]}_bold.nii.gz"):
        key = place / ".git/annex/objects/x" / Path(name).name
        key.mkdir(parents=True)
        (place / "bids" / name).rename(key / key.name)
        up = "../" * len(Path(name).parts)
        (place / "bids" / name).symlink_to(f"{up}.git/annex/objects/x/{key.name}/{key.name}")
        assert (place / "bids" / name).is_file()
    status = preprocess("success")
    assert (status["status"], status["reason"]) == ("done", None)
    assert list((place / "out/sub-01/func").glob("*run-2*preproc_bold.nii.gz"))


@pytest.mark.usefixtures("wrapper")
def test_docker_refuses_links_that_its_wrapper_cannot_bind(place: Path, preprocess: Preprocess) -> None:
    image = place / "bids/sub-01/func" / f"{RUNS[0]}_bold.nii.gz"
    (place / ".git/annex").mkdir(parents=True)
    image.rename(place / ".git/annex/image")
    image.symlink_to("../../../.git/annex/image")
    with pytest.raises(UserError, match=r"links to .*/.git/annex, which fmriprep-docker cannot bind; use engine 'podm"):
        preprocess("success", engine="docker")


@pytest.mark.usefixtures("wrapper")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_session_is_a_job_of_its_own(place: Path, preprocess: Preprocess, command: str) -> None:
    shutil.rmtree(place / "bids/sub-01/func")
    for session in ("A", "B"):
        raw(place / "bids", f"sub-01_ses-{session}_task-rest")
    status = preprocess("success", "--session", "A", engine=command)
    assert (status["status"], status["session"], status["runs"]) == ("done", "A", ["sub-01_ses-A_task-rest"])
    assert [path.name for path in (place / "out/sub-01").iterdir()] == ["ses-A"]
    words = told(place)["arguments"].split()
    assert words[words.index("--session-label") + 1] == "A"
    assert words[words.index("--subject-anatomical-reference") + 1] == "sessionwise"
    whole = preprocess("nothing", engine=command)
    assert whole["status"] == "incomplete"
    assert "no sub-01_ses-B_task-rest_space" in whole["reason"]


@pytest.mark.usefixtures("image", "wrapper")
@pytest.mark.parametrize("command", COMMANDS)
def test_fsaverage_is_copied_out_of_the_image_and_a_database_made_in_it_once(place: Path, command: str) -> None:
    settings = schema_defaults("fmriprep") | {"engine": command, "licence": str(place / "license.txt")}
    settings["bids_database_folder"] = str(place / "database")
    given = ["--settings", json.dumps(settings), "--cohort", "study", "--bids", str(place / "bids")]
    given += ["--output-derivatives", str(place / "out")]
    for _ in range(2):
        fmriprep_prepare.main([*given, "--output", str(place / "prepared.json")])
        assert json.loads((place / "prepared.json").read_text()) == {"problem": None}
    copied = place / "out/sourcedata/freesurfer/fsaverage/surf/lh.white"
    assert copied.read_text() == "a surface\n"
    assert not copied.is_symlink()
    database = place / "database/study/layout_index.sqlite"
    assert database.read_text().split() == ["/data", *sorted(path.name for path in (place / "bids").iterdir())]
    assert sorted(path.name for path in database.parent.iterdir()) == ["dataset.json", database.name]


def started(place: Path, repository: Path, **changed: Any) -> subprocess.Popen[str]:
    """The stage as a process of its own, when its container is running."""
    (place / "bids/code/behaviour-01").write_text("hanging")
    words = [sys.executable, "-m", "semantoks.fmriprep", *stage_arguments(place, "podman", **changed)]
    variables = os.environ | {"PYTHONPATH": str(repository / "workflow")}
    process = subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert any(line == "hanging\n" for line in process.stdout)
    return process


def running(engine: Engine) -> list[str]:
    return engine.run("ps", "--quiet").stdout.split()


@pytest.fixture
def repository(place: Path, image: Image) -> Path:
    """The workflow with a lock file that holds the digest of the stand-in."""
    folder = copy_repository(place / "repository")
    lock = folder / "containers/images.lock"
    lock.write_text(lock.read_text().replace("unresolved\n", f"{image.digest}\n"))
    assert image.digest in lock.read_text()
    return folder


def test_a_request_to_stop_ends_the_container_too(place: Path, repository: Path, engine: Engine) -> None:
    with started(place, repository) as process:
        end_containers("podman", place / "work/sub-0")
        assert len(running(engine)) == 1, "another participant's container is left alone"
        process.terminate()
        process.communicate(timeout=60)
    assert running(engine) == [], "process 1 of a container is deaf to SIGTERM"
    status = json.loads((place / "status/sub-01.json").read_text())
    assert status["status"] == "failed"
    assert status["reason"].startswith("killed (memory or time limit?): hanging | no sub-01_task-rest_run-1")


def test_a_job_killed_from_outside_is_failed_at_the_next_invocation_and_its_container_ended(
    place: Path, repository: Path, engine: Engine, preprocess: Preprocess, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "commands").mkdir()
    (place / "commands/sacct").write_text("#!/bin/sh\necho OUT_OF_MEMORY\n")
    (place / "commands/sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'commands'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with started(place, repository) as process:
        os.killpg(process.pid, signal.SIGKILL)
    assert len(running(engine)) == 1, "the job is gone, its container is not"
    status = preprocess("success")
    assert (status["status"], status["reason"]) == ("failed", "killed from outside: Slurm job 77: OUT_OF_MEMORY")
    again = preprocess("success")
    assert again["status"] == "done"
    assert running(engine) == [], "what the killed attempt left would write into the same work folder"
