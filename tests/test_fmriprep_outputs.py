"""Whether a participant of fMRIPrep is finished, by the files that are there."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fmriprep_cases import SPACE, Runner
from semantoks.fmriprep_outputs import Target, derivatives_version, expected_files, problems, raw_runs


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


OLD = {
    "1.2 to 20.1": {"confounds_timeseries": "confounds_regressors"},
    "1.0 and 1.1": {
        "_space-MNI152NLin6Asym_res-2_desc-preproc_bold": "_bold_space-MNI152NLin6Asym_preproc",
        "_space-MNI152NLin6Asym_res-2_desc-brain_mask": "_bold_space-MNI152NLin6Asym_brainmask",
        "_desc-confounds_timeseries": "_bold_confounds",
    },
}


@pytest.mark.parametrize("version", OLD)
def test_names_of_older_versions_are_known(run: Runner, tmp_path: Path, bids: Path, version: str) -> None:
    run("success")
    wanted = target("MNI152NLin6Asym")
    for path in (tmp_path / "out" / "sub-01" / "func").iterdir():
        name = path.name
        for new, old in OLD[version].items():
            name = name.replace(new, old)
        path.rename(path.with_name(name))
    assert problems(tmp_path / "out", bids, wanted) == []
    assert len(expected_files(tmp_path / "out", bids, wanted)) == 6
    next((tmp_path / "out" / "sub-01" / "func").glob("*run-2*mask*")).unlink()
    assert len(problems(tmp_path / "out", bids, wanted)) == 1


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


@pytest.mark.parametrize("description", [{"GeneratedBy": None}, {"PipelineDescription": {"Name": "fMRIPrep"}}])
def test_a_description_without_version_tells_none(tmp_path: Path, description: dict[str, Any]) -> None:
    (tmp_path / "dataset_description.json").write_text(json.dumps(description))
    assert derivatives_version(tmp_path) is None


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


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("func", [""]),
        ("run", [""]),
        ("bold", [""]),
        ("anat", ["_space-T1w"]),
        ("T1w", ["_space-T1w"]),
        ("MNI152NLin6Asym:res-native", ["_space-MNI152NLin6Asym"]),
        ("MNIPediatricAsym:cohort-3:res-2", ["_space-MNIPediatricAsym_cohort-3_res-2"]),
        ("MNIPediatricAsym:res-2:cohort-3", ["_space-MNIPediatricAsym_cohort-3_res-2"]),
        ("MNI152NLin6Asym:res-1:res-2", ["_space-MNI152NLin6Asym_res-1", "_space-MNI152NLin6Asym_res-2"]),
        ("fsaverage5", []),
        ("fsLR:den-91k", []),
        ("onavg", []),
    ],
)
def test_volumes_of_every_kind_of_space_have_fmripreps_names(
    run: Runner, tmp_path: Path, bids: Path, asked: str, names: list[str]
) -> None:
    """Finished with exactly these files, and each of them is missed."""
    run("success")
    func = tmp_path / "out" / "sub-01" / "func"
    for path in sorted(func.glob("*_space-*")):
        for name in names:
            copy = func / path.name.replace("_space-MNI152NLin6Asym_res-2", name)
            if copy != path:
                shutil.copy(path, copy)
        if "_space-MNI152NLin6Asym_res-2" not in names:
            path.unlink()
    assert problems(tmp_path / "out", bids, target(asked)) == []
    volumes = sorted(func.glob("*run-1*_bold.nii.gz"))
    assert len(volumes) == len(names)
    for volume in volumes:
        volume.unlink()
        assert problems(tmp_path / "out", bids, target(asked)) != []
        shutil.copy(tmp_path / "images/preproc_bold.nii.gz", volume)


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
