"""fMRIPrep inside the workflow: a cohort of raw data through snakemake, Podman and an image that stands in for it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic_images as synthetic
import yaml
from bids_trees import raw, write_image
from container_engine import Engine
from fmriprep_cases import write_outputs
from semantoks.container_images import Image
from semantoks.files import read_table, read_tables
from semantoks.fmriprep_prepare import wanted_templates
from semantoks.label_images import write_label_image
from small_study import copy_repository

pytestmark = pytest.mark.slow
INDEX = "results/study/index.parquet"
BEHAVIOUR = {"01": "success", "02": "killed once", "03": "error", "04": "half", "05": "success"}
REASONS = {
    "03": "fMRIPrep failed: exit code 1: RuntimeError: command recon-all failed",
    "04": "fMRIPrep incomplete: fMRIPrep ended without error, but: no sub-04_task-rest_run-2_space-MNI152NLin6Asym",
}


def make_study(folder: Path, image: Image, runs: Mapping[str, Sequence[str]]) -> None:
    """Raw runs of participants, what their jobs need, and a repository whose lock file holds the stand-in's digest."""
    for participant, names in runs.items():
        for name in names:
            write_image(raw(folder / "raw", f"sub-{participant}_{name}"), n_frames=4)
    (folder / "raw/code").mkdir()
    (folder / "filter.json").write_text(json.dumps({"bold": {"run": [1, 2], "task": "rest"}}))
    (folder / "license.txt").write_text("name@place 1 a b")
    (folder / "templates").mkdir()
    for template in wanted_templates(["MNI152NLin6Asym:res-2"]):
        (folder / f"templates/.{template}.complete").touch()
    lock = copy_repository(folder / "repository") / "containers/images.lock"
    lock.write_text(lock.read_text().replace("unresolved\n", f"{image.digest}\n"))


@pytest.fixture
def study(tmp_path: Path, fmriprep_image: Image) -> Path:
    """Five participants, each with another fate."""
    both = ["task-rest_run-1", "task-rest_run-2"]
    make_study(tmp_path, fmriprep_image, dict.fromkeys(BEHAVIOUR, both) | {"05": [both[0], "task-other_run-1"]})
    for participant, behaviour in BEHAVIOUR.items():
        (tmp_path / f"raw/code/behaviour-{participant}").write_text(behaviour)
    write_outputs(tmp_path / "raw/code")
    write_config(tmp_path)
    return tmp_path


def write_config(folder: Path, further: Mapping[str, Any] = MappingProxyType({}), **fmriprep: Any) -> None:
    """The configuration; ``further`` keys replace whole sections, the others are of the section ``fmriprep``."""
    source = {"type": "bids", "path": str(folder / "raw"), "derivatives": str(folder / "derivatives")}
    (folder / "study.yaml").write_text(yaml.safe_dump({"source": source, "tasks": ["rest"]}))
    (folder / "labels.tsv").write_text("index\tname\tnetwork\n1\ta\tVis\n2\tb\tDefault\n")
    options = {"engine": "podman", "engine_arguments": ["--network=none"], "licence": str(folder / "license.txt")}
    options |= {"templateflow": str(folder / "templates"), "bids_filter_file": str(folder / "filter.json")}
    options |= {"work_folder": str(folder / "scratch")}
    options["before_command"] = f'echo "before $PARTICIPANT" >> {folder}/trace'
    options["after_command"] = f'echo "after $PARTICIPANT" >> {folder}/trace'
    config = {
        "cohorts": [str(folder / "study.yaml")],
        "atlas": {"name": "own", "labels": str(folder / "labels.tsv")},
        "fmriprep": options | fmriprep,
        **further,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def run(
    folder: Path, engine: Engine, *arguments: str, until: Sequence[str] = (INDEX,)
) -> subprocess.CompletedProcess[str]:
    """Snakemake in the copy of the repository, until the index of the cohort or other files."""
    words = [sys.executable, "-m", "snakemake", *until, "--directory", str(folder)]
    words += ["--configfile", str(folder / "config.yaml"), "--cores", "2", "--retries", "1", *arguments]
    variables = engine.variables
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    environment = os.environ | variables | {"XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(words, cwd=folder / "repository", env=environment, capture_output=True, text=True)


def statuses(folder: Path) -> dict[str, str]:
    files = (folder / "results/study/fmriprep").glob("sub-*.json")
    return {path.stem.removeprefix("sub-"): json.loads(path.read_text())["status"] for path in files}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_cohort_goes_from_raw_data_to_its_index(study: Path, engine: Engine) -> None:
    """Who is finished counts, who failed is a row with the reason; a failing rule deletes nothing; a rerun adds up."""
    first = run(study, engine)
    assert first.returncode == 0, first.stdout + first.stderr
    assert statuses(study) == {"01": "done", "02": "done", "03": "failed", "04": "incomplete", "05": "done"}
    index = read_table(study / "results/study/index.parquet")
    reasons = index.groupby("participant_id")["exclude_reason"].first()
    for participant in ("01", "02", "05"):
        assert reasons[participant] is None
    for participant, reason in REASONS.items():
        assert reasons[participant].startswith(reason)
    assert len(index) == 9, "the filter and the cohort leave one run of participant 05"
    kept = sorted(path.name for path in (study / "scratch/study").iterdir())
    assert kept == ["sub-03", "sub-04"], "kept for the next try"
    assert (study / "derivatives/sourcedata/freesurfer/fsaverage/surf/lh.white").is_file()
    trace = (study / "trace").read_text().splitlines()
    assert trace.count("before 02") == 2, "a killed participant had a second attempt"
    assert trace.count("after 02") == 1

    # the licence is gone: the rule fails for those who must run again, and Snakemake deletes its outputs
    made = times(study / "derivatives")
    (study / "license.txt").rename(study / "elsewhere.txt")
    for participant in BEHAVIOUR:
        (study / f"raw/code/behaviour-{participant}").write_text("success")
    failed = run(study, engine, "--forcerun", "fmriprep")
    assert failed.returncode == 1
    assert "expected FreeSurfer's licence file, found none" in failed.stdout + failed.stderr
    assert times(study / "derivatives") == made, "neither finished nor half-finished work is touched"
    assert statuses(study) == {"01": "done", "02": "done", "05": "done"}

    write_config(study, licence=str(study / "elsewhere.txt"))
    again = [f"results/study/fmriprep/sub-{participant}.json" for participant in ("03", "04")]
    second = run(study, engine, "--forcerun", *again)
    assert second.returncode == 0, second.stdout + second.stderr
    assert set(statuses(study).values()) == {"done"}
    assert read_table(study / "results/study/index.parquet")["exclude_reason"].isna().all()
    now = times(study / "derivatives")
    unchanged = [path for path in made if {"sub-01", "sub-02", "sub-05"} & {*path.parts}]
    assert unchanged
    assert all(now[path] == made[path] for path in unchanged), "finished participants are not run again"
    assert not list((study / "scratch/study").iterdir())


@pytest.fixture
def thrifty(tmp_path: Path, fmriprep_image: Image) -> Path:
    """Images that can be parcellated and are not kept; participant 02 has recordings in both batches."""
    both = ["task-rest_run-1", "task-rest_run-2"]
    make_study(tmp_path, fmriprep_image, {"01": both, "02": both, "03": both[:1]})
    random = np.random.default_rng(1)
    image = synthetic.bold_image(synthetic.planted_series(random), random, noise=5)
    made = synthetic.write_recording(tmp_path, "made", image, synthetic.confounds_table(random))
    for key, name in (("bold", "preproc_bold.nii.gz"), ("mask", "brain_mask.nii.gz"), ("confounds", "confounds.tsv")):
        Path(made[f"{key}_path"]).rename(tmp_path / "raw/code" / name)
    (tmp_path / "raw/code/preproc_bold.json").write_text(json.dumps({"RepetitionTime": synthetic.TR}))
    write_label_image(tmp_path / "boxes.nii.gz", synthetic.atlas_labels(), synthetic.affine())
    table = pd.DataFrame({"index": synthetic.INDEX, "name": synthetic.NAMES})
    table.to_csv(tmp_path / "boxes.tsv", sep="\t", index=False)
    write_config(tmp_path, thrift(tmp_path), retention="none")
    return tmp_path


def thrift(folder: Path, denoising: str = "24P+acompcor") -> dict[str, Any]:
    """Sections of the configuration beside fMRIPrep's."""
    atlas = {"name": "boxes", "image": str(folder / "boxes.nii.gz"), "labels": str(folder / "boxes.tsv")}
    return {"batch_size": 3, "atlas": atlas, "parcellate": {"denoising": denoising}}


def planned(folder: Path, engine: Engine) -> dict[str, int]:
    """Jobs of each rule that would run now to have the images deleted again."""
    dry = run(folder, engine, "--dry-run", until=DELETED)
    assert dry.returncode == 0, dry.stdout + dry.stderr
    counts = re.findall(r"^(\w+) +(\d+)$", dry.stdout + dry.stderr, flags=re.MULTILINE)
    return {rule: int(count) for rule, count in counts if rule != "total"}


DELETED = [f"results/study/fmriprep/deleted/part-000{number}.json" for number in (1, 2)]


def test_images_that_are_not_kept_go_and_come_back_when_they_are_needed(thrifty: Path, engine: Engine) -> None:
    for denoising in ("24P+acompcor", "36P"):
        write_config(thrifty, thrift(thrifty, denoising), retention="none")
        ended = run(thrifty, engine, until=DELETED)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        series = read_tables(sorted((thrifty / "results/study/timeseries").glob("part-*.parquet")))
        assert series["exclude_reason"].isna().all()
        assert set(series["denoising"]) == {denoising}
        assert len(series) == 5
        assert not list((thrifty / "derivatives").rglob("*_bold.nii.gz"))
        assert not list((thrifty / "results/study/fmriprep").glob("sub-*"))
    write_config(thrifty, thrift(thrifty, "36P"), retention="none", work_folder=str(thrifty / "other scratch"))
    assert planned(thrifty, engine) == {}, "what is deleted is not missed; where fMRIPrep runs decides about no result"
    write_config(thrifty, thrift(thrifty, "24P"), retention="none")
    jobs = planned(thrifty, engine)
    assert (jobs["fmriprep"], jobs["parcellate"], jobs["fmriprep_retention"]) == (3, 2, 2)
