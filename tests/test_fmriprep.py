"""How the stage ``fmriprep`` ends, with executables that stand in for the engines: statuses, attempts, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from fmriprep_cases import DIGEST, RUNS, Runner
from semantoks import fmriprep
from semantoks.errors import UserError
from semantoks.fmriprep_outputs import Target, input_files
from semantoks.fmriprep_process import Ended

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
        "there_before": [],
    }
    assert status["command"].startswith("fmriprep ")
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("crash", "exit code 1: RuntimeError: command recon-all failed | no sub-01_task-rest_run-2_space-MNI152NLin6"),
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

    def killed(*_: Any, **__: Any) -> None:
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


DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("first", "code"), [("pass", -15), (DEAF, -9)])
def test_request_to_stop_reaches_the_command_and_ends_it_by_force_when_it_is_deaf(
    number: signal.Signals, first: str, code: int
) -> None:
    script = f"{first}\nimport time; print('started', flush=True); time.sleep(60)"
    program = (
        "from semantoks import fmriprep_process as process; import sys; process.GRACE = 0.5\n"
        f"ended = process.run_and_show([sys.executable, '-c', {script!r}], {{}}, end=lambda: print('end'))\n"
        "print(ended.code, ended.killed_or_out_of_memory, ended.interrupted)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "workflow")}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(number)
        told = "end\n" if first == DEAF else ""
        assert process.stdout.read() == f"{told}{code} True {number == signal.SIGINT}\n"
        assert process.wait(timeout=20) == 0


def test_a_run_that_the_user_stops_is_neither_failed_nor_an_attempt(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fmriprep, "run_and_show", lambda *_, **__: Ended(-2, (), interrupted=True))
        with pytest.raises(SystemExit) as ended:
            run("success")
    assert ended.value.code == 130
    assert [path.name for path in (tmp_path / "status").glob("*")] == ["sub-01.before.json"]
    status = run("success")
    assert status is not None
    assert status["status"] == "done"


def test_native_fmriprep_does_not_see_the_path_of_this_package(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere/workflow")
    status = run("python path")
    assert status is not None
    assert status["reason"].startswith("exit code 1: OSError: saw None | no sub-01_task-rest_run-1_space")
    assert status["reason"].endswith("(6 in all)")


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


@pytest.mark.usefixtures("pinned")
def test_an_engine_that_does_not_answer_is_not_taken_for_a_missing_image(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"fmriprep.engine.*expected docker to work.*Cannot connect to the Docker"):
        run("no daemon", engine="docker")
    monkeypatch.setenv("PATH", str(tmp_path / "commands"))
    for name in ("docker", "fmriprep-docker"):
        (tmp_path / "commands" / name).unlink()
        with pytest.raises(UserError, match=rf"fmriprep.engine.*'docker' needs the command '{name}'"):
            run("success", engine="docker")
        (tmp_path / "commands" / name).symlink_to("podman")


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


@pytest.mark.parametrize(
    "unread",
    [
        "sub-01/dwi/sub-01_dwi.nii.gz",
        "sub-01/func/sub-01_task-rest_run-1_physio.tsv.gz",
        "sub-01/func/sub-01_task-other_bold.nii.gz",
    ],
)
def test_files_that_fmriprep_does_not_read_need_not_be_fetched(
    run: Runner, bids: Path, tmp_path: Path, unread: str
) -> None:
    (bids / unread).parent.mkdir(exist_ok=True)
    (bids / unread).symlink_to("../../.git/annex/objects/x/y.nii.gz")
    (tmp_path / "filter.json").write_text(json.dumps({"bold": {"task": "rest"}}))
    status = run("success", bids_filter_file=str(tmp_path / "filter.json"))
    assert status is not None
    assert status["status"] == "done", status["reason"]


def test_a_job_of_a_session_needs_that_sessions_files(bids: Path) -> None:
    for session in ("1", "2"):
        for kind, suffix in (("anat", "T1w"), ("func", "task-rest_bold"), ("fmap", "dir-AP_epi")):
            path = bids / f"sub-02/ses-{session}/{kind}/sub-02_ses-{session}_{suffix}.nii.gz"
            path.parent.mkdir(parents=True)
            path.symlink_to("../../../.git/annex/objects/x/y.nii.gz")
    (bids / "sub-02/ses-2/func").rename(bids / "elsewhere")
    (bids / "sub-02/ses-2/func").symlink_to("../../elsewhere")
    own, all_of_both = (input_files(bids, Target("02", session, (), {})) for session in ("2", None))
    kinds = [str(path.relative_to(bids / "sub-02/ses-2")).split("/")[0] for path in own]
    assert kinds == ["anat", "fmap", "func", "func"], "a folder that is a link is a place to bind"
    assert len(all_of_both) == 7


def test_participant_without_run_fails_without_running(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "filter.json").write_text(json.dumps({"bold": {"task": "other"}}))
    status = run("success", bids_filter_file=str(tmp_path / "filter.json"))
    assert status is not None
    assert (status["status"], status["command"]) == ("failed", None)
    assert "no BOLD run fits" in status["reason"]
