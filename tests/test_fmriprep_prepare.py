"""What all participants of fMRIPrep share is made ready once, before the first of them starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fmriprep_cases import IMAGE, Runner
from semantoks import fmriprep_prepare
from semantoks.errors import UserError


def prepare(tmp_path: Path, settings: dict[str, Any], **changed: Any) -> str | None:
    """Run the step before; the problem that it wrote down."""
    where = [
        "--cohort",
        "study",
        "--bids",
        str(tmp_path / "bids"),
        "--output-derivatives",
        str(tmp_path / "out"),
        "--output",
        str(tmp_path / "prepared.json"),
    ]
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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"licence": None}, r"key 'fmriprep.licence': expected the path"),
        ({"licence": "/nowhere"}, "/nowhere: expected FreeSurfer's licence file, found none"),
        ({"engine": "podman"}, r"digest of docker.io/nipreps/fmriprep:25.2.3, found 'unresolved'"),
    ],
)
def test_what_is_wrong_on_every_machine_is_one_message_before_any_job(
    tmp_path: Path,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.delenv("FS_LICENSE", raising=False)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, settings, **changed)
    assert not (tmp_path / "prepared.json").exists()


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
