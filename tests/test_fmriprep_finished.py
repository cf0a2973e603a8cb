"""Who was finished by fMRIPrep before the workflow ran needs no job."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from bids_trees import derivative, raw, write_image
from fmriprep_cases import schema_defaults
from semantoks.files import read_table
from semantoks.fmriprep_finished import finished_before, update_finished
from test_workflow import dry_run, snakemake, write_config

FMRIPREP = schema_defaults("fmriprep") | {"output_spaces": ["MNI152NLin6Asym:res-2"]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Participant 01 is finished, 02 half, 03 not begun; 04 has a status."""
    for label in ("01", "02", "03", "04"):
        for run in ("1", "2"):
            raw(tmp_path / "raw", f"sub-{label}_task-rest_run-{run}")
            if label in ("01", "04") or (label, run) == ("02", "1"):
                derivative(tmp_path / "out", f"sub-{label}_task-rest_run-{run}", res="2")
    (tmp_path / "fmriprep").mkdir()
    (tmp_path / "fmriprep/sub-04.json").write_text("{}")
    return tmp_path


def update(folder: Path, wanted: dict[str, Any] | None = None, **fmriprep: Any) -> list[str]:
    source = {"type": "bids", "path": str(folder / "raw"), "derivatives": str(folder / "out")}
    names = [f"sub-{label}" for label in ("01", "02", "03", "04")]
    update_finished(folder / "fmriprep", source, wanted or {}, FMRIPREP | fmriprep, names)
    return finished_before(folder / "fmriprep")


def test_those_with_all_outputs_and_without_a_status_are_listed(data: Path) -> None:
    assert finished_before(data / "fmriprep") == []
    assert update(data) == ["sub-01"]
    derivative(data / "out", "sub-02_task-rest_run-2", res="2")
    assert update(data) == ["sub-01", "sub-02"], "the list grows"


def test_the_list_is_made_anew_for_other_runs_or_settings(data: Path) -> None:
    assert update(data, {"run": ["1"]}) == ["sub-01", "sub-02"]
    assert update(data) == ["sub-01"]
    assert update(data, output_spaces=["MNI152NLin6Asym:res-2", "MNI152NLin2009cAsym"]) == []
    (data / "filter.json").write_text(json.dumps({"bold": {"run": 1}}))
    assert update(data, bids_filter_file=str(data / "filter.json")) == ["sub-01", "sub-02"]


def test_who_has_lost_the_outputs_is_listed_no_longer(data: Path) -> None:
    update(data)
    (data / "out/sub-01").rename(data / "out/elsewhere")
    assert update(data) == []


def test_who_has_a_new_recording_is_listed_no_longer(data: Path) -> None:
    assert update(data) == ["sub-01"]
    raw(data / "raw", "sub-01_task-rest_run-3")
    assert update(data) == []
    derivative(data / "out", "sub-01_task-rest_run-3", res="2")
    assert update(data) == ["sub-01"]


def test_who_has_lost_a_single_output_is_listed_no_longer(data: Path) -> None:
    update(data)
    next((data / "out/sub-01").rglob("*run-2*confounds*.tsv")).unlink()
    assert update(data) == []


FMRIPREP_THAT_FAILS_FOR_02 = """#!{python}
import shutil, sys
from pathlib import Path
if sys.argv[1:] == ["--version"]: print("25.2.3"); sys.exit()
label = sys.argv[sys.argv.index("--participant-label") + 1]
open("asked", "a").write(label + "\\n")
if label == "02": print("RuntimeError: recon-all failed"); sys.exit(1)
shutil.copytree(f"made/sub-{{label}}", f"out/sub-{{label}}", dirs_exist_ok=True)
"""


@pytest.mark.slow
def test_new_recordings_open_every_case_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Participant 01 was finished before, 02 fails, 03 is done by this workflow; then each has a second session."""
    for label in ("01", "02", "03"):
        write_image(raw(tmp_path / "raw", f"sub-{label}_ses-1_task-rest"))
        derivative(tmp_path / ("out" if label == "01" else "made"), f"sub-{label}_ses-1_task-rest", res="2")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/fmriprep").write_text(FMRIPREP_THAT_FAILS_FOR_02.format(python=sys.executable))
    (tmp_path / "bin/fmriprep").chmod(0o755)
    (tmp_path / "license.txt").write_text("x")
    source = {"type": "bids", "path": str(tmp_path / "raw"), "derivatives": str(tmp_path / "out")}
    options = {"engine": "native", "freesurfer": False, "licence": str(tmp_path / "license.txt")}
    write_config(tmp_path, {"study": {"source": source}}, fmriprep=options, batch_size=10)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def asked() -> list[str]:
        (tmp_path / "asked").write_text("")
        ended = snakemake(tmp_path, "results/study/index.parquet")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return sorted((tmp_path / "asked").read_text().split())

    assert asked() == ["02", "03"]
    assert asked() == [], "who failed is not run again and again"
    for label in ("01", "02", "03"):
        write_image(raw(tmp_path / "raw", f"sub-{label}_ses-2_task-rest"))
        derivative(tmp_path / "made", f"sub-{label}_ses-2_task-rest", res="2")
    first = (tmp_path / "out/sub-01/ses-1").stat().st_mtime_ns
    assert asked() == ["01", "02", "03"]
    assert asked() == []
    assert (tmp_path / "out/sub-01/ses-1").stat().st_mtime_ns == first
    index = read_table(tmp_path / "results/study/index.parquet")
    assert index[["participant_id", "session_id"]].agg("/".join, axis=1).tolist() == [
        *("01/1", "01/2", "02/1", "02/2", "03/1", "03/2")
    ]
    usable = index["exclude_reason"].isna().tolist()
    assert usable == [True, True, False, False, True, True]


def test_a_dry_run_plans_jobs_for_the_others_only(data: Path) -> None:
    source = {"type": "bids", "path": str(data / "raw"), "derivatives": str(data / "out")}
    write_config(data, {"study": {"source": source}}, batch_size=100)
    jobs = dry_run(data)
    assert jobs["fmriprep"] == 2, "participants 02 and 03; 04 has no status in these results and is finished"
    assert json.loads((data / "results/study/fmriprep/finished.json").read_text())["finished"] == ["sub-01", "sub-04"]
