"""The whole workflow on a small simulated cohort: what it leaves, and that it is finished then."""

from __future__ import annotations

import pandas as pd
import pytest
from semantoks.files import read_metadata, read_table
from small_study import copy_study, run

pytestmark = pytest.mark.slow


def test_every_output_is_there_and_says_what_made_it(finished_study):
    results = finished_study / "results"
    shard = next((results / "demo/shards").glob("*.parquet"))
    assert len(read_metadata(shard)["roi_names"]) == 457
    for path in [
        "report.html",
        "cost.tsv",
        "demo/qc/exclusions.tsv",
        "pretrain/tiny_seed-0/weights.safetensors",
        "demo/splits.parquet",
    ]:
        assert (results / path).stat().st_size > 0, path
    assert {path.suffix for path in (results / "tables").iterdir()} >= {".tsv", ".md", ".html", ".tex"}
    for path in results.rglob("*.parquet"):
        assert {"stage", "versions", "settings", "inputs"} <= read_metadata(path).keys(), path


def test_the_recording_that_must_be_excluded_is_and_says_why(finished_study):
    cohort = finished_study / "results/demo"
    exclusions = pd.read_csv(cohort / "qc/exclusions.tsv", sep="\t", dtype=str)
    excluded = exclusions[exclusions["exclude_reason"].notna()]
    assert len(excluded) == 1
    assert "displacement" in excluded["exclude_reason"].iloc[0]
    shards = [read_table(path, ["recording_id"]) for path in sorted((cohort / "shards").glob("*.parquet"))]
    packed = set(pd.concat(shards)["recording_id"])
    assert packed == set(exclusions["recording_id"]) - set(excluded["recording_id"])


def test_the_report_says_that_the_cohort_is_simulated_and_what_the_run_cost(finished_study):
    page = (finished_study / "results/report.html").read_text()
    assert "simulated" in page.lower()
    for stage in ("parcellate", "pretrain", "probe", "tables"):
        assert f"<tr><td>{stage}</td>" in page


def test_no_stage_warns_on_its_way(finished_study):
    logs = list((finished_study / "results/logs").rglob("*.log"))
    assert len(logs) > 20
    told = {path.name: line for path in logs for line in path.read_text().splitlines() if "Warning" in line}
    assert not told


def test_snakemakes_own_report_builds_with_captions(finished_study, tmp_path):
    study = copy_study(finished_study, tmp_path / "study")
    result = run(study, "--report", "snakemake-report.html")
    assert result.returncode == 0, result.stdout + result.stderr
    page = (study / "snakemake-report.html").read_text()
    assert "Teacher-guided Temporal Regularizer" in page
    assert "demo_probes_random.png" in page


def test_a_second_run_does_nothing(finished_study, tmp_path):
    result = run(copy_study(finished_study, tmp_path / "study"))
    assert "Nothing to be done" in result.stdout + result.stderr
