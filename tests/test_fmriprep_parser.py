"""The commands built for fMRIPrep, read by the argument parser of the real fMRIPrep in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from bids_trees import raw
from conftest import REPOSITORY
from fmriprep_cases import python_with
from semantoks.container_images import Image
from semantoks.fmriprep_command import FmriprepSettings, Job, build_command
from semantoks.fmriprep_database import _PROGRAM, knows, make_database
from semantoks.fmriprep_outputs import Target

pytestmark = pytest.mark.slow
SCHEMA = yaml.safe_load((REPOSITORY / "workflow/schemas/fmriprep.schema.yaml").read_text())
VERSION = SCHEMA["properties"]["version"]["default"]
IMAGE = Image("docker.io/nipreps/fmriprep", VERSION, "sha256:" + "5a" * 32)
PROGRAM = """
import json, sys
from fmriprep import __version__
from fmriprep.cli.parser import _build_parser
options = vars(_build_parser().parse_args(json.loads(sys.argv[1])))
options["output_spaces"] = str(options["output_spaces"])
print(json.dumps({"version": __version__} | options, default=str))
"""


@pytest.fixture(scope="session")
def python() -> Path:
    """Python of an environment that holds nothing but fMRIPrep."""
    return python_with(f"fmriprep=={VERSION}")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Everything that fMRIPrep's parser wants to exist."""
    for name in ("bids", "out", "work", "subjects", "database"):
        (tmp_path / name).mkdir()
    (tmp_path / "bids" / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    (tmp_path / "license.txt").write_text("licence")
    (tmp_path / "filter.json").write_text(json.dumps({"bold": {"task": "rest"}}))
    return tmp_path


def parsed(python: Path, folder: Path, session: str | None = None, **changed: Any) -> dict[str, Any]:
    """What fMRIPrep understands of the command of one participant."""
    defaults = {key: entry["default"] for key, entry in SCHEMA["properties"].items()}
    settings = FmriprepSettings(**(defaults | {"engine": "native", "licence": str(folder / "license.txt")} | changed))
    target = Target("01", session, tuple(settings.output_spaces), {})
    job = Job(target, folder / "bids", folder / "out", folder / "work", 12, 16000)
    words, _ = build_command(settings, job, folder / "license.txt", IMAGE, [])
    assert words[0] == "fmriprep"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(python), "-c", PROGRAM, json.dumps(words[1:])]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment | {"NO_ET": "1"}, cwd=folder)
    assert ended.returncode == 0, ended.stderr[-2000:]
    options: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return options


def test_the_default_command_means_what_it_should(python: Path, folders: Path) -> None:
    options = parsed(python, folders)
    expected = {
        "version": VERSION,
        "bids_dir": str(folders / "bids"),
        "output_dir": str(folders / "out"),
        "analysis_level": "participant",
        "participant_label": ["01"],
        "session_label": None,
        "task_id": None,
        "nprocs": 12,
        "omp_nthreads": 8,
        "memory_gb": 14.4,
        "_random_seed": 0,
        "notrack": True,
        "run_reconall": True,
        "skip_bids_validation": False,
        "fs_license_file": str(folders / "license.txt"),
        "fs_subjects_dir": None,
        "bids_filters": None,
        "bids_database_dir": None,
        "work_dir": str(folders / "work"),
        "clean_workdir": False,
        "output_layout": "bids",
        "level": "full",
        "cifti_output": False,
        "me_output_echos": False,
    }
    assert {name: options[name] for name in expected} == expected
    assert "MNI152NLin6Asym" in options["output_spaces"]
    assert "res-2" in options["output_spaces"] or "'res': '2'" in options["output_spaces"]


def test_every_key_reaches_fmriprep(python: Path, folders: Path) -> None:
    options = parsed(
        python,
        folders,
        session="A",
        freesurfer=False,
        freesurfer_folder=str(folders / "subjects"),
        skip_bids_validation=True,
        bids_database_folder=str(folders / "database"),
        bids_filter_file=str(folders / "filter.json"),
        memory_share=0.5,
        random_seed=7,
        output_spaces=["MNI152NLin6Asym:res-2", "MNI152NLin2009cAsym:res-2"],
        extra_arguments=["--dummy-scans", "4"],
    )
    expected = {
        "session_label": ["A"],
        "subject_anatomical_reference": "sessionwise",
        "run_reconall": False,
        "fs_subjects_dir": str(folders / "subjects"),
        "skip_bids_validation": True,
        "bids_database_dir": str(folders / "database"),
        "bids_filters": {"bold": {"task": "rest"}},
        "memory_gb": 8.0,
        "_random_seed": 7,
        "dummy_scans": 4,
    }
    assert {name: options[name] for name in expected} == expected
    assert "MNI152NLin2009cAsym" in options["output_spaces"]


def another_dataset(folders: Path) -> Path:
    raw(folders / "another", "sub-03_task-rest")
    return folders / "another"


def test_the_database_made_beforehand_is_what_fmriprep_reads(
    python: Path, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fMRIPrep opens it without reading the dataset: what was added later is not in it."""
    monkeypatch.setenv("PATH", f"{python.parent}:{os.environ['PATH']}")
    defaults = {key: entry["default"] for key, entry in SCHEMA["properties"].items()}
    settings = FmriprepSettings(**(defaults | {"engine": "native"}))
    raw(folders / "bids", "sub-01_task-rest")

    def known(label: str, dataset: str = "bids") -> bool:
        return knows(folders / "base", folders / dataset, Target(label, None, (), {}))

    assert not known("01")
    assert make_database(settings, folders / "bids", folders / "base") is None
    raw(folders / "bids", "sub-02_task-rest")
    before = (folders / "base/layout_index.sqlite").read_bytes()
    assert make_database(settings, folders / "bids", folders / "base") is None
    assert (folders / "base/layout_index.sqlite").read_bytes() == before, "made once"
    assert [known(label) for label in ("01", "02", "0")] == [True, False, False]
    words = [str(python), "-c", _PROGRAM + "print(*config.execution.layout.get_subjects())"]
    ended = subprocess.run([*words, str(folders / "bids"), str(folders / "base")], capture_output=True, text=True)
    assert ended.stdout.split() == ["01"], ended.stderr
    raw(folders / "bids", "sub-01_ses-2_task-rest")
    assert not known("01"), "a further session is not in it"
    assert make_database(settings, another_dataset(folders), folders / "base") is None
    of_another = [known(label, name) for name in ("bids", "another") for label in ("01", "03")]
    assert of_another == [False, False, False, True], "the folder's database is made anew for another dataset"
    problem = make_database(settings, folders / "absent", folders / "other")
    assert problem is not None
    assert "exit code 1" in problem
    assert not list((folders / "other").iterdir())
