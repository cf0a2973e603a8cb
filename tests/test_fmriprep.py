"""The stage ``fmriprep`` with executables that stand in for the engines: commands, finished or not, failures."""

from __future__ import annotations

import gzip
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from semantoks import container_images, fmriprep, fmriprep_command, fmriprep_prepare
from semantoks.container_images import Image
from semantoks.errors import UserError
from semantoks.fmriprep_outputs import Target, derivatives_version, problems, raw_runs

REPOSITORY = Path(__file__).resolve().parents[1]
DIGEST = "sha256:" + "5a" * 32
IMAGE = Image("docker.io/nipreps/fmriprep", "25.2.3", DIGEST)
SPACE = "MNI152NLin6Asym:res-2"
RUNS = ("sub-01_task-rest_run-1", "sub-01_task-rest_run-2")

# What stands in for fMRIPrep: writes the outputs of the runs it finds, then does what FAKE says.
STAND_IN = f"""#!{sys.executable}
import os, shutil, signal, sys
from pathlib import Path
arguments = sys.argv[1:]
if arguments == ["--version"]: print("fMRIPrep v" + os.environ["FAKE_VERSION"]); sys.exit()
if arguments[:2] == ["image", "inspect"]: sys.exit(os.environ["FAKE"] == "no image")
if "cp" in arguments:  # what an image has of FreeSurfer
    mount = next(word for word in arguments if word.endswith(":/subjects")).split(":")[0]
    sys.exit((Path(mount) / "fsaverage" / "surf").mkdir(parents=True))
Path(os.environ["FAKE_LOG"]).write_text("\\n".join(arguments))
bids, derivatives = (Path(path) for path in os.environ["FAKE_FOLDERS"].split(":"))
behaviour = os.environ["FAKE"]
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


@pytest.fixture
def settings(licence: Path) -> dict[str, Any]:
    schema = yaml.safe_load((REPOSITORY / "workflow" / "schemas" / "fmriprep.schema.yaml").read_text())
    defaults = {key: entry["default"] for key, entry in schema["properties"].items()}
    return defaults | {"engine": "native", "licence": str(licence)}


Runner = Callable[..., dict[str, Any] | None]


@pytest.fixture
def run(tmp_path: Path, bids: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run the stage with a stand-in that behaves as told; the status file's content, or None without one."""
    images = tmp_path / "images"
    images.mkdir()
    noise = np.random.default_rng(0).normal(size=(6, 6, 6, 4)).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, np.eye(4)), images / "preproc_bold.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((6, 6, 6), np.uint8), np.eye(4)), images / "brain_mask.nii.gz")
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
        fmriprep.main([*map(str, [*where, *given]), *arguments])
        return json.loads(status.read_text()) if status.is_file() else None

    return run


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if `make pins` had found the digest."""
    for module in (fmriprep, fmriprep_prepare):
        monkeypatch.setattr(module, "find_image", lambda repository, tag: Image(repository, tag, DIGEST))


# --- how it ends ----------------------------------------------------------------------------------------------------


def test_success_is_done_and_the_work_folder_goes(run: Runner, tmp_path: Path) -> None:
    status = run("success")
    assert status == {
        "participant": "01",
        "session": None,
        "status": "done",
        "reason": None,
        "command": status["command"] if status else "",
        "version": None,
        "runs": list(RUNS),
    }
    assert status["command"].startswith("fmriprep ")
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("crash", "exit code 1: RuntimeError: command recon-all failed"),
        ("disk", "No space left on device"),
        ("memory", "exit code 1: concurrent.futures.process.BrokenProcessPool"),
        ("killed", "killed (memory or time limit?)"),
        ("segfault", "killed (memory or time limit?)"),
        ("half", "no sub-01_task-rest_run-2_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz"),
        ("cut", "run-2_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz is cut short"),
        ("nothing", "no sub-01_task-rest_run-1_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz"),
    ],
)
def test_failure_is_a_status_with_the_reason_and_what_was_made_stays(
    run: Runner, tmp_path: Path, behaviour: str, reason: str
) -> None:
    finished = tmp_path / "out" / "sub-02" / "func" / "kept"
    finished.parent.mkdir(parents=True)
    finished.write_text("another participant")
    status = run(behaviour)
    assert status is not None
    assert status["status"] == ("incomplete" if behaviour in ("half", "cut", "nothing") else "failed")
    assert reason in status["reason"]
    assert finished.exists()
    assert (tmp_path / "work" / "sub-01").is_dir()  # kept for the next attempt
    if behaviour in ("crash", "half", "cut"):
        assert list((tmp_path / "out" / "sub-01" / "func").glob("*run-1*preproc_bold.nii.gz"))


@pytest.mark.parametrize(("behaviour", "code"), [("killed", 137), ("memory", 1), ("segfault", 139)])
def test_kill_and_memory_exit_with_an_error_until_the_last_attempt(run: Runner, behaviour: str, code: int) -> None:
    for attempt in ("1", "2"):
        with pytest.raises(SystemExit) as ended:
            run(behaviour, "--attempt", attempt, "--attempts", "3")
        assert ended.value.code == code
    status = run(behaviour, "--attempt", "3", "--attempts", "3")
    assert status is not None
    assert status["status"] == "failed"


def test_other_failures_are_not_tried_again(run: Runner) -> None:
    status = run("crash", "--attempt", "1", "--attempts", "3")
    assert status is not None
    assert status["status"] == "failed"


def test_finished_participant_is_recognised_and_not_run_again(run: Runner, tmp_path: Path) -> None:
    run("success")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    status = run("crash", licence="/nowhere", engine="docker")  # nothing of it is needed
    assert status is not None
    assert (status["status"], status["command"]) == ("done", None)
    assert not (tmp_path / "arguments").exists()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_failed_participant_runs_again_when_asked_again(run: Runner) -> None:
    run("half")
    status = run("success")
    assert status is not None
    assert status["status"] == "done"
    assert status["command"]


@pytest.mark.parametrize(
    ("attempts", "job", "reason"),
    [(1, None, "no word from a scheduler"), (1, "77", "Slurm job 77: OUT_OF_MEMORY"), (2, "77", None)],
)
def test_job_killed_from_outside_on_its_last_attempt_is_failed_at_the_next(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempts: int, job: str | None, reason: str | None
) -> None:
    sacct = tmp_path / "commands" / "sacct"
    sacct.write_text('#!/bin/sh\n[ "$7" = 77 ] && echo OUT_OF_MEMORY\n')
    sacct.chmod(0o755)
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fmriprep, "run_and_show", killed)
        with pytest.raises(KeyboardInterrupt):  # this job never came to its end
            run("success", "--attempt", "1", "--attempts", str(attempts))
    status = run("success", "--attempt", str(attempts), "--attempts", str(attempts))
    assert status is not None
    if reason is None:
        assert status["status"] == "done"
    else:
        assert status["status"] == "failed"
        assert reason in status["reason"]
        again = run("success")
        assert again is not None
        assert again["status"] == "done"


def test_request_to_stop_reaches_the_command() -> None:
    script = "import sys, time; print('started', flush=True); time.sleep(60)"
    program = (
        "from semantoks.fmriprep import run_and_show; import sys\n"
        f"ended = run_and_show([sys.executable, '-c', {script!r}], {{}})\n"
        "print(ended.code, ended.killed_or_out_of_memory)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "workflow")}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.terminate()
        assert process.stdout.read() == "-15 True\n"
        assert process.wait(timeout=20) == 0


def test_native_fmriprep_does_not_see_the_path_of_this_package(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere/workflow")
    status = run("python path")
    assert status is not None
    assert status["reason"] == "exit code 1: OSError: saw None"


def test_runs_that_the_cohort_does_not_use_are_not_waited_for(run: Runner, bids: Path) -> None:
    run("half")  # the second run is missing
    status = run("crash", "--runs", json.dumps({"task": ["rest"], "run": ["1"]}))
    assert status is not None
    assert (status["status"], status["runs"]) == ("done", [RUNS[0]])
    status = run("half", "--runs", json.dumps({"task": ["nback"]}))
    assert status is not None
    assert "no BOLD run fits" in status["reason"]


def test_own_commands_before_and_after_know_whom_they_are_for(run: Runner, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    own = {
        "before_command": f'echo "before $PARTICIPANT $BIDS" >> {trace}',
        "after_command": f'echo "after [$SESSION] $DERIVATIVES" >> {trace}; false',
    }
    status = run("success", **own)
    assert status is not None
    assert status["status"] == "done"
    assert trace.read_text() == f"before 01 {tmp_path}/bids\nafter [] {tmp_path}/out\n"
    run("success", **own)
    assert len(trace.read_text().splitlines()) == 2, "a finished participant needs neither"


def test_a_command_before_that_fails_is_the_reason(run: Runner, tmp_path: Path) -> None:
    status = run("success", before_command="echo 'error: no such remote'; exit 3")
    assert status is not None
    assert status["status"] == "failed"
    assert status["reason"] == "key 'fmriprep.before_command': exit code 3: error: no such remote"
    assert not (tmp_path / "arguments").exists()


def test_no_command_after_between_attempts(run: Runner, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run("killed", "--attempts", "2", after_command=f"touch {tmp_path}/after")
    assert not (tmp_path / "after").exists()


# --- what is made ready before --------------------------------------------------------------------------------------


def prepare(tmp_path: Path, settings: dict[str, Any], **changed: Any) -> str | None:
    """Run the step before; the problem that it wrote down."""
    where = ["--output-derivatives", str(tmp_path / "out"), "--output", str(tmp_path / "prepared.json")]
    fmriprep_prepare.main(["--settings", json.dumps(settings | changed), *where])
    problem: str | None = json.loads((tmp_path / "prepared.json").read_text())["problem"]
    return problem


@pytest.mark.usefixtures("pinned", "run")
@pytest.mark.parametrize("engine", ["native", "podman", "docker", "apptainer"])
def test_fsaverage_is_copied_once_before_anyone_starts(
    tmp_path: Path, settings: dict[str, Any], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "success")
    monkeypatch.setenv("FREESURFER_HOME", str(tmp_path / "freesurfer"))
    (tmp_path / "freesurfer" / "subjects" / "fsaverage" / "surf").mkdir(parents=True)
    (tmp_path / IMAGE.file_name).write_bytes(b"image")
    changed = {"engine": engine, "image_folder": str(tmp_path)}
    assert prepare(tmp_path, settings, **changed) is None
    assert (tmp_path / "out/sourcedata/freesurfer/fsaverage/surf").is_dir()
    monkeypatch.delenv("FREESURFER_HOME")
    assert prepare(tmp_path, settings, **changed) is None, "it is there"
    assert sorted(path.name for path in (tmp_path / "out/sourcedata/freesurfer").iterdir()) == ["fsaverage"]


@pytest.mark.usefixtures("run")
def test_what_cannot_be_made_ready_stops_only_those_who_need_it(
    run: Runner, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FREESURFER_HOME", raising=False)
    problem = prepare(tmp_path, settings)
    assert problem is not None
    assert "FREESURFER_HOME: expected FreeSurfer's folder" in problem
    with pytest.raises(UserError, match="FREESURFER_HOME"):
        run("success", "--prepared", str(tmp_path / "prepared.json"))
    (tmp_path / "freesurfer" / "subjects" / "fsaverage").mkdir(parents=True)
    monkeypatch.setenv("FREESURFER_HOME", str(tmp_path / "freesurfer"))
    status = run("success", "--prepared", str(tmp_path / "prepared.json"))
    assert status is not None
    assert status["status"] == "done"
    monkeypatch.delenv("FREESURFER_HOME")
    assert prepare(tmp_path, settings, freesurfer=False) is None


def test_templates_are_fetched_once_and_a_missing_network_is_named(tmp_path: Path) -> None:
    asked: list[str] = []
    wanted = fmriprep_prepare.wanted_templates(
        ["MNI152NLin6Asym:res-2", "MNIPediatricAsym:cohort-3", "T1w", "fsnative"]
    )
    assert wanted == ["MNI152NLin2009cAsym", "MNI152NLin6Asym", "MNIPediatricAsym", "OASIS30ANTs", "fsLR", "fsaverage"]
    assert fmriprep_prepare.fetch_templates(tmp_path, wanted, asked.append) == wanted == asked
    assert fmriprep_prepare.fetch_templates(tmp_path, wanted, asked.append) == []

    def no_network(template: str) -> None:
        raise OSError("network unreachable")

    by_hand = tmp_path / "tpl-WHS" / "tpl-WHS_T2w.nii.gz"
    by_hand.parent.mkdir()
    by_hand.write_bytes(b"")
    with pytest.raises(UserError, match=r"fmriprep.templateflow.*template WHS .*network unreachable.*docs/fmriprep.md"):
        fmriprep_prepare.fetch_templates(tmp_path, ["WHS"], no_network)
    by_hand.write_bytes(b"image")
    assert fmriprep_prepare.fetch_templates(tmp_path, ["WHS"], no_network) == []


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"licence": None}, r"fmriprep.licence.*FS_LICENSE is not set"),
        ({"licence": "/nowhere/license.txt"}, "/nowhere/license.txt: expected FreeSurfer's licence file, found none"),
        ({"engine": "podman"}, "digest of docker.io/nipreps/fmriprep:25.2.3, found 'unresolved'; run `make pins`"),
        ({"engine": "podman", "version": "9.9.9"}, r"images.lock \(docker.io/nipreps/fmriprep:25.2.3\), found .*9.9.9"),
        ({"version": "24.0.0"}, r"fmriprep.version.*expected fMRIPrep 24.0.0 to be installed, found '25.2.3'"),
        ({"extra_arguments": ["--mem", "1"]}, r"fmriprep.extra_arguments.*found --mem; use the keys"),
        ({"extra_arguments": ["--nthreads=2"]}, r"fmriprep.extra_arguments.*found --nthreads"),
    ],
)
def test_what_is_wrong_for_everybody_stops_with_one_message(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], message: str
) -> None:
    monkeypatch.delenv("FS_LICENSE", raising=False)
    with pytest.raises(UserError, match=message):
        run("success", **changed)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "arguments").exists()


def test_missing_engine_is_named(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "commands" / "fmriprep").unlink()
    with pytest.raises(UserError, match=r"fmriprep.engine.*'native' needs the command 'fmriprep'"):
        run("success")


@pytest.mark.usefixtures("pinned")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"engine": "docker", "templateflow": "/templates"}, r"fmriprep.templateflow.*engine 'podman' or 'apptainer'"),
        ({"engine": "apptainer"}, rf"fmriprep.image_folder.*fmriprep_25.2.3_{DIGEST.replace(':', '-')}.sif"),
        ({"engine": "apptainer", "image_folder": "/nowhere"}, r"/nowhere/.*sif: expected .*`apptainer pull /nowhere"),
        ({"engine": "podman"}, r"found none; fetch it with `podman pull docker.io/nipreps/fmriprep@sha256"),
        ({"engine": "docker"}, r"found none; fetch it with `docker pull docker.io/nipreps/fmriprep@sha256"),
    ],
)
def test_image_that_is_not_there_stops_with_the_command_that_fetches_it(
    run: Runner, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run("no image", **changed)


@pytest.mark.parametrize(
    ("behaviour", "message"), [("no start", "unable to start"), ("bad licence", "a valid license")]
)
def test_command_that_cannot_start_concerns_everybody(run: Runner, behaviour: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"sub-01: fMRIPrep did not start .*{message}.* the command was: fmriprep "):
        run(behaviour)


@pytest.mark.parametrize("label", ["01; rm -rf /", "../02", "0 1", "sub-", "01$HOME"])
def test_labels_that_bids_forbids_never_reach_a_command(run: Runner, tmp_path: Path, label: str) -> None:
    with pytest.raises(UserError, match="expected letters and digits"):
        run("success", "--participant", label)
    assert not (tmp_path / "arguments").exists()


def test_unknown_participant_is_named(run: Runner) -> None:
    with pytest.raises(UserError, match=r"sub-99: expected the participant's folder"):
        run("success", "--participant", "sub-99")


def test_annexed_file_that_was_not_fetched_fails_this_participant_only(run: Runner, bids: Path) -> None:
    (bids / "sub-01" / "anat").mkdir()
    (bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz").symlink_to("../../.git/annex/objects/x/y.nii.gz")
    status = run("success")
    assert status is not None
    assert status["status"] == "failed"
    assert "sub-01_T1w.nii.gz is a link to nothing" in status["reason"]


def test_participant_without_run_fails_without_running(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "filter.json").write_text(json.dumps({"bold": {"task": "other"}}))
    status = run("success", bids_filter_file=str(tmp_path / "filter.json"))
    assert status is not None
    assert (status["status"], status["command"]) == ("failed", None)
    assert "no BOLD run fits" in status["reason"]


# --- the command ----------------------------------------------------------------------------------------------------

ARGUMENTS = "participant --participant-label 01 --nthreads 12 --omp-nthreads 8 --mem_mb 14400 --output-spaces"
END = f"{SPACE} --random-seed 0 --notrack"


@pytest.fixture
def job(bids: Path, tmp_path: Path) -> fmriprep_command.Job:
    target = Target("01", None, (SPACE,), {})
    return fmriprep_command.Job(target, bids, tmp_path / "out", tmp_path / "work" / "sub-01", 12, 16000)


def command(
    settings: dict[str, Any], job: fmriprep_command.Job, licence: Path, linked: list[Path] | None = None
) -> str:
    words, variables = fmriprep_command.build_command(
        fmriprep_command.FmriprepSettings(**settings), job, licence, IMAGE, linked or []
    )
    return " ".join([*(f"{key}={value}" for key, value in variables.items()), *words])


def test_native_command(settings: dict[str, Any], job: fmriprep_command.Job, licence: Path) -> None:
    given = settings | {"templateflow": "/templates", "freesurfer": False, "extra_arguments": ["--dummy-scans", "4"]}
    assert command(given, job, licence) == (
        f"TEMPLATEFLOW_HOME=/templates fmriprep {job.bids} {job.derivatives} {ARGUMENTS} {END} --fs-no-reconall "
        f"--fs-license-file {licence} -w {job.work} --dummy-scans 4"
    )


def test_docker_command_leaves_the_binding_to_the_wrapper(
    settings: dict[str, Any], job: fmriprep_command.Job, licence: Path
) -> None:
    given = settings | {
        "engine": "docker",
        "bids_filter_file": "/filter.json",
        "bids_database_folder": "/database",
        "freesurfer_folder": "/subjects",
        "engine_arguments": ["--network", "none"],
    }
    assert command(given, job, licence) == (
        f"fmriprep-docker {job.bids} {job.derivatives} {ARGUMENTS} {END} --fs-license-file {licence} "
        "--fs-subjects-dir /subjects --bids-filter-file /filter.json --bids-database-dir /database "
        f"-w {job.work} --no-tty --user {os.getuid()}:{os.getgid()} --image {IMAGE.reference} --network none"
    )


def test_podman_command_binds_everything_it_names(
    settings: dict[str, Any], job: fmriprep_command.Job, licence: Path
) -> None:
    given = settings | {
        "engine": "podman",
        "templateflow": "/templates",
        "bids_filter_file": "/filter.json",
        "bids_database_folder": "/database",
        "freesurfer_folder": "/store/subjects",
        "skip_bids_validation": True,
    }
    assert command(given, job, licence, [Path("/store/annex")]) == (
        f"podman run --rm --pull=never --volume {job.bids}:/data:ro --volume {job.derivatives}:/out "
        f"--volume {job.work}:/work --volume {licence}:/opt/freesurfer/license.txt:ro "
        "--volume /filter.json:/bids_filter.json:ro --volume /database:/bids_database "
        "--volume /store/subjects:/subjects --volume /templates:/templateflow:ro "
        "--volume /store/annex:/store/annex:ro --env TEMPLATEFLOW_HOME=/templateflow "
        f"{IMAGE.reference} /data /out {ARGUMENTS} {END} --skip-bids-validation "
        "--fs-license-file /opt/freesurfer/license.txt --fs-subjects-dir /subjects "
        "--bids-filter-file /bids_filter.json --bids-database-dir /bids_database -w /work"
    )


def test_apptainer_command_shares_nothing_but_the_binds(
    settings: dict[str, Any], job: fmriprep_command.Job, licence: Path
) -> None:
    given = settings | {"engine": "apptainer", "image_folder": "/images", "engine_arguments": ["--nv"]}
    assert command(given, job, licence) == (
        f"apptainer run --cleanenv --containall --home {job.work}/home:/home/runner --bind {job.bids}:/data:ro "
        f"--bind {job.derivatives}:/out --bind {job.work}:/work --bind {licence}:/opt/freesurfer/license.txt:ro "
        f"--bind {job.work}/tmp:/tmp --env TEMPLATEFLOW_HOME=/home/fmriprep/.cache/templateflow --nv "
        f"/images/fmriprep_25.2.3_{DIGEST.replace(':', '-')}.sif /data /out {ARGUMENTS} {END} "
        "--fs-license-file /opt/freesurfer/license.txt -w /work"
    )


@pytest.mark.usefixtures("pinned")
@pytest.mark.parametrize("engine", ["docker", "podman", "apptainer"])
def test_engines_are_started_with_the_pinned_image(run: Runner, tmp_path: Path, engine: str) -> None:
    (tmp_path / IMAGE.file_name).write_bytes(b"image")
    status = run("success", engine=engine, image_folder=str(tmp_path))
    assert status is not None
    assert status["status"] == "done"
    words = (tmp_path / "arguments").read_text().split("\n")
    assert (str(tmp_path / IMAGE.file_name) if engine == "apptainer" else IMAGE.reference) in words


def test_one_session_and_a_filter(run: Runner, tmp_path: Path, bids: Path) -> None:
    func = bids / "sub-01" / "ses-A" / "func"
    func.mkdir(parents=True)
    for task in ("rest", "nback"):
        (func / f"sub-01_ses-A_task-{task}_bold.nii.gz").write_bytes(b"")
    (tmp_path / "filter.json").write_text(json.dumps({"bold": {"task": "rest"}}))
    status = run("nothing", "--session", "ses-A", bids_filter_file=str(tmp_path / "filter.json"))
    assert status is not None
    assert status["runs"] == ["sub-01_ses-A_task-rest"]
    words = (tmp_path / "arguments").read_text().split("\n")
    assert words[words.index("--session-label") + 1] == "A"
    assert words[words.index("--subject-anatomical-reference") + 1] == "sessionwise"
    assert words[words.index("--bids-filter-file") + 1] == str(tmp_path / "filter.json")


def test_work_folder_of_the_settings_wins(run: Runner, tmp_path: Path) -> None:
    run("crash", work_folder=str(tmp_path / "scratch"))
    assert (tmp_path / "scratch" / "sub-01").is_dir()
    assert not (tmp_path / "work").exists()


def test_dry_run_prints_the_command_and_what_keeps_it_from_starting(
    run: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("success", "--dry-run", engine="podman") is None
    printed = capsys.readouterr()
    assert printed.out.startswith("podman run --rm")
    assert "docker.io/nipreps/fmriprep@unresolved" in printed.out
    assert "this would not start" in printed.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "work").exists()


def test_targets_of_links_are_bound_once(bids: Path, tmp_path: Path, job: fmriprep_command.Job) -> None:
    store = tmp_path / "store" / "annex"
    for number, key in enumerate(("a/k1", "b/k2")):
        (store / "objects" / key).mkdir(parents=True)
        (store / "objects" / key / "image.nii.gz").write_bytes(b"x")
        link = bids / "sub-01" / "func" / f"sub-01_task-rest_run-{number + 3}_bold.nii.gz"
        link.symlink_to(store / "objects" / key / "image.nii.gz")
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "T1w.json").write_text("{}")
    (bids / "sub-01" / "sub-01_T1w.json").symlink_to(other / "T1w.json")
    inside = bids / "sub-01" / "copy_bold.json"
    inside.symlink_to(bids / "sub-01" / "func" / "sub-01_task-rest_run-1_bold.nii.gz")
    assert fmriprep._linked_folders(job) == sorted([store, other])


# --- finished or not ------------------------------------------------------------------------------------------------


def target(*spaces: str, **bold: Any) -> Target:
    return Target("01", None, spaces or (SPACE,), {"bold": bold} if bold else {})


def test_echoes_are_one_run_phase_is_none_and_the_filter_counts(tmp_path: Path) -> None:
    func = tmp_path / "sub-01" / "func"
    func.mkdir(parents=True)
    names = [
        "sub-01_task-rest_run-01_echo-1_bold.nii.gz",
        "sub-01_task-rest_run-01_echo-2_bold.nii.gz",
        "sub-01_task-nback_dir-AP_part-phase_bold.nii.gz",
        "sub-01_task-nback_dir-AP_part-mag_bold.nii",
    ]
    for name in names:
        (func / name).write_bytes(b"")
    rest, nback = "sub-01_task-rest_run-01", "sub-01_task-nback_dir-AP_part-mag"  # fMRIPrep 25 keeps part in names
    assert raw_runs(tmp_path, target()) == [nback, rest]
    assert raw_runs(tmp_path, target(task=["rest", "nback"], suffix="bold")) == [nback, rest]
    assert raw_runs(tmp_path, target(run=1)) == [rest]
    assert raw_runs(tmp_path, target(direction="AP")) == raw_runs(tmp_path, target(run=None)) == [nback]
    assert raw_runs(tmp_path, target(direction="*")) == [nback]


def test_names_of_older_versions_are_known(run: Runner, tmp_path: Path, bids: Path) -> None:
    run("success")
    for path in (tmp_path / "out" / "sub-01" / "func").glob("*confounds_timeseries.tsv"):
        path.rename(str(path).replace("timeseries", "regressors"))
    assert problems(tmp_path / "out", bids, target()) == []


@pytest.mark.parametrize(
    "description",
    [
        {"GeneratedBy": [{"Name": "other", "Version": "1"}, {"Name": "fMRIPrep", "Version": "20.1.3"}]},
        {"PipelineDescription": {"Name": "fMRIPrep", "Version": "20.1.3"}},
    ],
)
def test_version_is_what_the_derivatives_say(tmp_path: Path, description: dict[str, Any]) -> None:
    assert derivatives_version(tmp_path) is None
    (tmp_path / "dataset_description.json").write_text(json.dumps(description))
    assert derivatives_version(tmp_path) == "20.1.3"


def test_every_damage_is_named(run: Runner, tmp_path: Path, bids: Path) -> None:
    run("success")
    func = tmp_path / "out" / "sub-01" / "func"
    stem = "sub-01_task-rest_run-1_space-MNI152NLin6Asym_res-2_desc"
    (func / f"{stem}-preproc_bold.nii.gz").write_bytes(b"")
    (func / f"{stem}-brain_mask.nii.gz").unlink()
    (func / "sub-01_task-rest_run-2_desc-confounds_timeseries.tsv").write_text("csf\n1.0\n")
    found = problems(tmp_path / "out", bids, target(SPACE, "fsaverage:den-10k"))
    assert [text.split(" (")[0] for text in found] == [
        f"{stem}-preproc_bold.nii.gz is unreadable",
        f"no {stem}-brain_mask.nii.gz",
        "sub-01_task-rest_run-2_desc-confounds_timeseries.tsv has 1 rows for 4 volumes",
    ]


def rewritten(how: str, path: Path) -> None:
    content = gzip.decompress(path.read_bytes())
    if how == "two members":
        path.write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]))
    elif how == "not fetched":
        path.unlink()
        path.symlink_to("../../.git/annex/objects/x.nii.gz")
    elif how == "cut at the end":
        path.write_bytes(path.read_bytes()[:-4])
    elif how == "cut content":
        path.write_bytes(gzip.compress(content[:-10]))


@pytest.mark.parametrize(
    ("how", "finished"),
    [("two members", True), ("not fetched", True), ("cut at the end", False), ("cut content", False)],
)
def test_gzip_and_annex_subtleties(run: Runner, tmp_path: Path, bids: Path, how: str, finished: bool) -> None:
    run("success")
    rewritten(how, next((tmp_path / "out" / "sub-01" / "func").glob("*run-1*preproc_bold.nii.gz")))
    assert (problems(tmp_path / "out", bids, target()) == []) == finished


@pytest.mark.parametrize("space", ["MNI152NLin6Asym:res-2", "MNI152NLin6Asym", "MNI152NLin2009cAsym:res-2"])
def test_spaces_are_told_apart(run: Runner, tmp_path: Path, bids: Path, space: str) -> None:
    run("success")
    assert (problems(tmp_path / "out", bids, target(space)) == []) == space.startswith("MNI152NLin6Asym")


def test_derivatives_of_a_real_dataset_have_the_names_expected_here(shared: Path, tmp_path: Path) -> None:
    """Listing of ds000228 (fMRIPrep 21.0.2): nothing but contents is missed when its files stand there empty."""
    pieces = shared / "data" / "fmriprep_pieces" / "ds000228-fmriprep"
    bids = tmp_path / "bids" / "sub-pixar001" / "func"
    bids.mkdir(parents=True)
    (bids / "sub-pixar001_task-pixar_bold.nii.gz").write_bytes(b"")
    for line in next(pieces.glob("TREE_*.tsv")).read_text().splitlines()[1:]:
        path = tmp_path / "out" / line.split("\t")[0]
        if "sub-pixar001" in line and path.suffix in (".gz", ".tsv"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    wanted = Target("pixar001", None, ("MNI152NLin2009cAsym:res-2", "fsLR:den-91k"), {})
    found = problems(tmp_path / "out", tmp_path / "bids", wanted)
    assert len(found) == 2
    assert all("is unreadable" in text for text in found)


# --- digests --------------------------------------------------------------------------------------------------------


@pytest.fixture
def registry() -> Iterator[str]:
    """A registry that wants a token and knows one image."""

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"token": "pass"}).encode())

        def do_HEAD(self) -> None:
            known = self.path == "/v2/nipreps/fmriprep/manifests/25.2.3"
            allowed = self.headers["Authorization"] == "Bearer pass"
            self.send_response(404 if not known else 200 if allowed else 401)
            if not allowed:
                realm = f'Bearer realm="http://127.0.0.1:{self.server.server_port}/token",service="here",scope="pull"'
                self.send_header("WWW-Authenticate", realm)
            self.send_header("Docker-Content-Digest", DIGEST)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_pins_fills_in_what_the_registry_says_and_keeps_the_rest(tmp_path: Path, registry: str) -> None:
    path = tmp_path / "images.lock"
    path.write_text(container_images.LOCK.read_text())

    def ask(image: Image) -> str:
        return container_images.ask_registry(f"{registry}/v2/nipreps/fmriprep/manifests/{image.tag}")

    assert [image.tag for image in container_images.pin(path, ask)] == ["25.2.3"]
    assert path.read_text() == container_images.LOCK.read_text().replace(": unresolved", f": {DIGEST}")
    assert container_images.find_image(IMAGE.repository, "25.2.3", path) == IMAGE
    assert container_images.pin(path, lambda _: pytest.fail("asked again")) == []


def test_pins_finds_the_right_line_among_several(tmp_path: Path) -> None:
    path = tmp_path / "images.lock"
    text = "images:\n  docker.io/a/x:\n    '1.0': {}\n    1.0.1: unresolved\n  docker.io/b/x:\n    '1.0': unresolved\n"
    path.write_text(text.format(DIGEST))
    digests = {"docker.io/a/x:1.0.1": "sha256:" + "1" * 64, "docker.io/b/x:1.0": "sha256:" + "2" * 64}
    container_images.pin(path, lambda image: digests[f"{image.repository}:{image.tag}"])
    found = {f"{image.repository}:{image.tag}": image.digest for image in container_images.read_lock(path)}
    assert found == {"docker.io/a/x:1.0": DIGEST, **digests}


def test_registry_out_of_reach_is_one_message() -> None:
    with pytest.raises(UserError, match=r"localhost:9/x:1: expected an answer of the registry localhost:9"):
        container_images.registry_digest(Image("localhost:9/x", "1", "unresolved"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images: {a: [1]}", "expected `images:`, below it repositories"),
        ("[]", "expected `images:`"),
        ("images: {a: {'1': 'sha256:12'}}", "a:1: expected sha256:<64"),
    ],
)
def test_wrong_lock_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "images.lock"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        container_images.read_lock(path)
    with pytest.raises(UserError, match="found none"):
        container_images.read_lock(tmp_path / "absent")


def test_default_version_is_in_the_shipped_lock(settings: dict[str, Any]) -> None:
    assert container_images.find_image(settings["image"], settings["version"]).tag == settings["version"]
