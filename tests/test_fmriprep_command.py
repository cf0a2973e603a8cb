"""The command that is built for fMRIPrep with each engine."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from fmriprep_cases import DIGEST, IMAGE, RUNS, SPACE, Runner
from semantoks import fmriprep_command, fmriprep_database, fmriprep_dry_run
from semantoks.errors import UserError

ARGUMENTS = "participant --participant-label 01 --nthreads 12 --omp-nthreads 8 --mem_mb 14400 --output-spaces"
END = f"{SPACE} --random-seed 0 --notrack"


def command(
    settings: dict[str, Any], job: fmriprep_command.Job, licence: Path, linked: list[tuple[Path, Path]] | None = None
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
    assert command(given, job, licence, [(Path("/study/.git/annex"), Path("/.git/annex"))]) == (
        f"podman run --rm --pull=never --volume {job.bids}:/data:ro --volume {job.derivatives}:/out "
        f"--volume {job.work}:/work --volume {licence}:/opt/freesurfer/license.txt:ro "
        "--volume /filter.json:/bids_filter.json:ro --volume /database:/bids_database "
        "--volume /store/subjects:/subjects --volume /templates:/templateflow:ro "
        "--volume /study/.git/annex:/.git/annex:ro --env TEMPLATEFLOW_HOME=/templateflow "
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
    assert (tmp_path / "scratch" / "study" / "sub-01").is_dir()
    assert not (tmp_path / "work").exists()


def test_work_folder_of_another_cohort_is_left_alone(run: Runner, tmp_path: Path) -> None:
    """Its participants may have equal names, and may be running."""
    scratch = {"work_folder": str(tmp_path / "scratch")}
    run("crash", "--cohort", "other", **scratch)
    status = run("success", "--cohort", "study", **scratch)
    assert status is not None
    assert status["status"] == "done"
    assert sorted(path.relative_to(tmp_path / "scratch").as_posix() for path in (tmp_path / "scratch").glob("*/*")) == [
        "other/sub-01"
    ]


def test_cohorts_have_their_own_reconstructions_and_databases(
    run: Runner, tmp_path: Path, bids: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = {
        "freesurfer_folder": str(tmp_path / "{cohort}/subjects"),
        "bids_database_folder": str(tmp_path / "databases"),
    }
    write_database(tmp_path / "databases/study", bids)
    write_database(tmp_path / "databases/moved", tmp_path / "another dataset")
    for cohort in ("study", "other", "moved"):
        run("crash", "--cohort", cohort, **shared)
        words = (tmp_path / "arguments").read_text().split("\n")
        assert words[words.index("--fs-subjects-dir") + 1] == str(tmp_path / cohort / "subjects")
        told = f"{tmp_path}/databases/{cohort}: no database of {bids} with all BOLD images of sub-01"
        if cohort == "study":
            assert words[words.index("--bids-database-dir") + 1] == str(tmp_path / "databases/study")
            assert told not in capsys.readouterr().err
        else:
            assert "--bids-database-dir" not in words
            assert told in capsys.readouterr().err


def write_database(folder: Path, dataset: Path) -> None:
    """A database with participant 01, and which dataset it was made from."""
    folder.mkdir(parents=True)
    with sqlite3.connect(folder / fmriprep_database.DATABASE) as database:
        database.execute("CREATE TABLE files (path TEXT)")
        images = [f"/data/sub-01/func/{run}_bold.nii.gz" for run in RUNS]
        database.executemany("INSERT INTO files VALUES (?)", [(image,) for image in images])
    (folder / fmriprep_database.DATASET).write_text(json.dumps({"dataset": str(dataset)}))


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


def test_dry_run_of_a_configuration_shows_the_command_of_each_cohort(
    bids: Path, licence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"type": "bids", "path": str(bids), "derivatives": str(tmp_path / "out")}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"source": source, "tasks": ["rest"]}))
    options = {"engine": "podman", "licence": str(licence), "work_folder": "/scratch"}
    config = {"cohorts": [str(tmp_path / "study.yaml")], "atlas": {"name": "own"}, "fmriprep": options}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    fmriprep_dry_run.main(["--configfile", str(tmp_path / "config.yaml")])
    printed = capsys.readouterr()
    title, line = printed.out.splitlines()
    assert title == "# study, sub-01"
    assert line.startswith(f"podman run --rm --pull=never --volume {bids}:/data:ro --volume {tmp_path}/out:/out")
    assert "--volume /scratch/study/sub-01:/work" in line
    assert "this would not start" in printed.err
    with pytest.raises(UserError, match="cohort study: expected participant sub-77 in"):
        fmriprep_dry_run.main(["--configfile", str(tmp_path / "config.yaml"), "--participant", "sub-77"])
