"""What is kept of fMRIPrep's derivatives, and that nothing is deleted unless the user asks for it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest
from fmriprep_cases import RUNS, Runner
from semantoks.files import write_table
from semantoks.fmriprep_retention import main

STEM = "sub-01/func/sub-01_task-rest_run-{}"
USED = [
    f"{STEM.format(run)}_space-MNI152NLin6Asym_res-2_desc-{kind}.nii.gz"
    for run in "12"
    for kind in ("preproc_bold", "brain_mask")
]
USED += [f"{STEM.format(run)}_desc-confounds_timeseries.tsv" for run in "12"]
SIDECARS = [
    f"{STEM.format(1)}_desc-confounds_timeseries.json",
    f"{STEM.format(1)}_space-MNI152NLin6Asym_res-2_desc-preproc_bold.json",
]
REPORTS = ["sub-01.html", "sub-01/figures/sub-01_dseg.svg", "sub-01/log/crash.txt", "dataset_description.json"]
UNUSED = [
    "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
    "sub-01/func/sub-01_task-rest_run-1_space-T1w_desc-preproc_bold.nii.gz",
    "sub-01/func/sub-01_task-rest_run-1_from-boldref_to-T1w_mode-image_desc-coreg_xfm.txt",
]
SURFACES = ["sourcedata/freesurfer/sub-01/surf/lh.white"]
OTHERS = [
    "sub-02/anat/sub-02_desc-preproc_T1w.nii.gz",
    "sourcedata/freesurfer/sub-02/surf/lh.white",
    "sourcedata/freesurfer/fsaverage/surf/lh.white",
]


@pytest.fixture
def derivatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Derivatives of others; fMRIPrep will write more than the images of the runs."""
    monkeypatch.setenv("FAKE_FURTHER", " ".join([*SIDECARS, *REPORTS, *UNUSED, *SURFACES]))
    put(tmp_path / "out", OTHERS)
    return tmp_path / "out"


def put(folder: Path, names: Iterable[str]) -> None:
    for path in (folder / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("retention", ["all", "used", "none"])
def test_what_no_later_stage_reads_goes_when_asked(run: Runner, derivatives: Path, retention: str) -> None:
    status = run("success", retention=retention)
    assert status is not None
    assert status["status"] == "done"
    gone = {*UNUSED, *SURFACES} if retention != "all" else set()
    assert files(derivatives) == {*USED, *SIDECARS, *REPORTS, *UNUSED, *SURFACES, *OTHERS} - gone
    assert (derivatives / "sourcedata/freesurfer/sub-01").exists() == (retention == "all")
    again = run("crash", retention=retention)
    assert again is not None
    assert (again["status"], again["command"]) == ("done", None), "what is kept makes a finished participant"


def test_what_was_finished_before_is_never_trimmed(run: Runner, derivatives: Path) -> None:
    run("success")
    before = files(derivatives)
    for retention in ("used", "none"):
        status = run("success", retention=retention)
        assert status is not None
        assert status["command"] is None
    assert files(derivatives) == before


OWN = [
    "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",  # fMRIPrep writes it again
    "sub-01/anat/sub-01_desc-lesion_mask.nii.gz",
    "sub-01/func/sub-01_task-rest_run-1_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz",
    "sourcedata/freesurfer/sub-01/mri/brainmask.mgz",
]


@pytest.mark.parametrize("retention", ["used", "none"])
def test_what_was_there_before_fmriprep_ran_stays(run: Runner, derivatives: Path, retention: str) -> None:
    """Derivatives in another space, images and reconstructions of the user."""
    put(derivatives, OWN)
    status = run("success", retention=retention)
    assert status is not None
    assert status["there_before"] == [OWN[2]]
    assert files(derivatives) == {*USED, *SIDECARS, *REPORTS, *OTHERS, *OWN}


def test_what_the_first_attempt_made_goes_after_the_second(run: Runner, derivatives: Path, tmp_path: Path) -> None:
    put(derivatives, OWN[1:])
    with pytest.raises(SystemExit):
        run("memory", "--attempts", "2", retention="used")
    run("success", "--attempt", "2", "--attempts", "2", retention="used")
    assert files(derivatives) == {*USED, *SIDECARS, *REPORTS, *OTHERS, *OWN[1:]}
    assert [path.name for path in (tmp_path / "status").iterdir()] == ["sub-01.json"]


@pytest.mark.parametrize(("behaviour", "attempts"), [("crash", "1"), ("memory", "2")])
def test_what_an_earlier_job_left_stays(run: Runner, derivatives: Path, behaviour: str, attempts: str) -> None:
    """The user may have mended it, as reconstructions are mended, before it runs again; also when it has no status."""
    with contextlib.suppress(SystemExit):
        run(behaviour, "--attempts", attempts, retention="used")
    run("success", retention="used")
    assert {*UNUSED, *SURFACES} < files(derivatives)


@pytest.mark.parametrize("behaviour", ["crash", "half"])
def test_nothing_of_an_unfinished_participant_goes(run: Runner, derivatives: Path, behaviour: str) -> None:
    run(behaviour, retention="used")
    assert {*UNUSED, *SURFACES} < files(derivatives)


def test_reconstructions_of_the_user_stay(run: Runner, derivatives: Path, tmp_path: Path) -> None:
    own = tmp_path / "own/sub-01/surf/lh.white"
    own.parent.mkdir(parents=True)
    own.write_text("surface")
    run("success", retention="used", freesurfer_folder=str(tmp_path / "own"))
    assert own.exists()
    assert set(SURFACES) < files(derivatives)


def tables(folder: Path, derivatives: Path, reasons: list[str | None]) -> list[str]:
    """Index and time series of the runs, as arguments of the command."""
    stem = "_space-MNI152NLin6Asym_res-2_desc-"
    rows = [
        {
            "participant_id": "01",
            "session_id": None,
            "recording_id": name,
            "bold_path": str(derivatives / f"sub-01/func/{name}{stem}preproc_bold.nii.gz"),
            "mask_path": str(derivatives / f"sub-01/func/{name}{stem}brain_mask.nii.gz"),
            "confounds_path": str(derivatives / f"sub-01/func/{name}_desc-confounds_timeseries.tsv"),
            "exclude_reason": reason,
        }
        for name, reason in zip(RUNS, reasons, strict=True)
    ]
    for name in ("index", "timeseries"):
        write_table(folder / f"{name}.parquet", pd.DataFrame(rows), {"stage": name})
    given = ["--index", str(folder / "index.parquet"), "--timeseries", str(folder / "timeseries.parquet")]
    given += ["--status", str(folder / "status/sub-01.json"), "--derivatives", str(derivatives)]
    return [*given, "--output", str(folder / "deleted.json")]


def test_images_go_with_their_status_when_time_series_are_written(
    run: Runner, derivatives: Path, tmp_path: Path
) -> None:
    run("success", retention="none")
    main(tables(tmp_path, derivatives, [None, "too few degrees of freedom"]))
    first = {name for name in (*USED, *SIDECARS) if "run-1" in name}
    assert files(derivatives) == {*USED, *SIDECARS, *REPORTS, *OTHERS} - first, "an excluded one stays to be looked at"
    assert {
        Path(path).relative_to(derivatives).as_posix()
        for path in json.loads((tmp_path / "deleted.json").read_text())["deleted"]
    } == first
    assert not (tmp_path / "status/sub-01.json").exists(), "it is no longer finished"
    main(tables(tmp_path, derivatives, [None, None]))
    assert json.loads((tmp_path / "deleted.json").read_text()) == {"deleted": []}, "nobody with a status"


def test_images_that_were_there_before_stay_when_time_series_are_written(
    run: Runner, derivatives: Path, tmp_path: Path
) -> None:
    put(derivatives, [USED[0], SIDECARS[1]])
    run("success", retention="none")
    main(tables(tmp_path, derivatives, [None, None]))
    assert files(derivatives) == {USED[0], SIDECARS[1], *REPORTS, *OTHERS}


@pytest.mark.parametrize("why", ["finished before", "failed", "outside"])
def test_images_stay_when_another_made_them(run: Runner, derivatives: Path, tmp_path: Path, why: str) -> None:
    run("success", retention="none")
    status = tmp_path / "status/sub-01.json"
    content = json.loads(status.read_text())
    not_run = {"command": None, "there_before": None}
    changes = {"finished before": not_run, "failed": {"status": "failed"}, "outside": {}}
    status.write_text(json.dumps(content | changes[why]))
    before = files(derivatives)
    words = tables(tmp_path, derivatives, [None, None])
    if why == "outside":
        (tmp_path / "elsewhere").mkdir()
        words[words.index("--derivatives") + 1] = str(tmp_path / "elsewhere")
    main(words)
    assert files(derivatives) == before
    assert status.exists()
