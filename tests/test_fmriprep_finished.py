"""Who was finished by fMRIPrep before the workflow ran needs no job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bids_trees import derivative, raw
from fmriprep_cases import schema_defaults
from semantoks.fmriprep_finished import finished_before, update_finished
from test_workflow import dry_run, write_config

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


def test_a_dry_run_plans_jobs_for_the_others_only(data: Path) -> None:
    source = {"type": "bids", "path": str(data / "raw"), "derivatives": str(data / "out")}
    write_config(data, {"study": {"source": source}}, batch_size=100)
    jobs = dry_run(data)
    assert jobs["fmriprep"] == 2, "participants 02 and 03; 04 has no status in these results and is finished"
    assert json.loads((data / "results/study/fmriprep/finished.json").read_text())["finished"] == ["sub-01", "sub-04"]
