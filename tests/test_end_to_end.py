"""The whole workflow on a small simulated cohort, and what reruns when something changes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY
from semantoks.files import read_metadata, read_table
from semantoks.simulate import main as simulate
from test_workflow import snakemake

pytestmark = pytest.mark.slow

AFTER_PROBES = {"tables", "figures_of_probes", "cost", "report", "all"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with 24 simulated participants, the demo's settings with a tiny encoder, and finished results."""
    folder = tmp_path_factory.mktemp("demo")
    simulate(["--output", str(folder / "data/demo"), "--participants", "24", "--workers", "2"])
    shutil.copytree(REPOSITORY / "config", folder / "config")
    config = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())
    encoder = {"preset": "tiny", "optimiser": {"epochs": 4}, "seeds": [0], "random_seeds": [0]}
    config["pretrain"] = {"encoders": {"tiny": encoder}}
    config["probe"] |= {
        "repetitions": 3,
        "solved_repetitions": 3,
        "epochs": 5,
        "heads": ["published", "logistic", "ridge"],
    }
    config["batch_size"] = 20
    cohort = folder / "config/cohorts/demo.yaml"
    described = yaml.safe_load(cohort.read_text())
    described["phenotypes"] = {name: described["phenotypes"][name] for name in ("diagnosis", "age", "null_01")}
    cohort.write_text(yaml.safe_dump(described))
    write(folder, config)
    result = snakemake(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def write(folder: Path, config: dict) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def read(folder: Path) -> dict:
    return yaml.safe_load((folder / "config.yaml").read_text())


def rerun(folder: Path) -> set[str]:
    """Rules that would run now."""
    result = snakemake(folder, "--dry-run")
    assert result.returncode == 0, result.stdout + result.stderr
    return {rule for rule, _ in re.findall(r"^(\w+) +(\d+)$", result.stdout + result.stderr, re.MULTILINE)} - {"total"}


def test_every_output_is_there_and_says_what_made_it(folder):
    results = folder / "results"
    shard = next((results / "demo/shards").glob("*.parquet"))
    assert len(read_metadata(shard)["roi_names"]) == 457
    for path in [
        "report.html",
        "demo/qc/exclusions.tsv",
        "pretrain/tiny_seed-0/weights.safetensors",
        "demo/splits.parquet",
    ]:
        assert (results / path).stat().st_size > 0, path
    assert {path.suffix for path in (results / "tables").iterdir()} >= {".tsv", ".md", ".html", ".tex"}
    for path in results.rglob("*.parquet"):
        assert {"stage", "versions", "settings", "inputs"} <= read_metadata(path).keys(), path


def test_the_recording_that_must_be_excluded_is_and_says_why(folder):
    exclusions = pd.read_csv(folder / "results/demo/qc/exclusions.tsv", sep="\t", dtype=str)
    excluded = exclusions[exclusions["exclude_reason"].notna()]
    assert len(excluded) == 1
    assert "displacement" in excluded["exclude_reason"].iloc[0]
    shards = [read_table(path, ["recording_id"]) for path in sorted((folder / "results/demo/shards").glob("*.parquet"))]
    packed = set(pd.concat(shards)["recording_id"])
    assert packed == set(exclusions["recording_id"]) - set(excluded["recording_id"])


def test_the_report_says_that_the_cohort_is_simulated(folder):
    assert "simulated" in (folder / "results/report.html").read_text().lower()


def test_snakemakes_own_report_builds_with_captions(folder):
    result = snakemake(folder, "--report", "snakemake-report.html")
    assert result.returncode == 0, result.stdout + result.stderr
    page = (folder / "snakemake-report.html").read_text()
    assert "Teacher-guided Temporal Regularizer" in page
    assert "demo_probes_random.png" in page


def test_a_second_run_does_nothing(folder):
    result = snakemake(folder)
    assert "Nothing to be done" in result.stdout + result.stderr


def test_touching_files_reruns_nothing(folder):
    (folder / "data/demo/bids/participants.tsv").touch()
    (folder / "results/atlas/labels.tsv").touch()
    assert rerun(folder) == set()


CHANGES = {
    "a probe setting": (
        lambda config: config["probe"].update(penalties=[0.1, 0.01]),
        {"splits", "probe"} | AFTER_PROBES,
    ),
    "a training setting": (
        lambda config: config["pretrain"]["encoders"]["tiny"]["optimiser"].update(epochs=5),
        {"pretrain", "figures_of_encoder", "embed", "probe"} | AFTER_PROBES,
    ),
    "the sampling interval": (
        lambda config: config.update(shards={"tr": 2.5}),
        {"shards", "splits", "pretrain", "figures_of_encoder", "embed", "probe"} | AFTER_PROBES,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_value_reruns_what_depends_on_it(folder, change):
    config = read(folder)
    alter, expected = CHANGES[change]
    changed = read(folder)
    alter(changed)
    write(folder, changed)
    try:
        assert rerun(folder) == expected
    finally:
        write(folder, config)
    assert rerun(folder) == set()


def test_a_changed_label_reruns_probes_only(folder):
    table = folder / "data/demo/bids/participants.tsv"
    original = table.read_bytes()
    table.write_bytes(original.replace(b"patient", b"control", 1))
    try:
        assert rerun(folder) == {"splits", "probe"} | AFTER_PROBES
    finally:
        table.write_bytes(original)


def test_a_changed_recording_reruns_its_batch_and_what_aggregates(folder):
    path = next((folder / "data/demo/derivatives/fmriprep").rglob("*desc-confounds_timeseries.tsv"))
    original = path.read_bytes()
    path.write_bytes(original + b"\n")
    try:
        result = snakemake(folder, "--dry-run")
        counts = dict(re.findall(r"^(\w+) +(\d+)$", result.stdout + result.stderr, re.MULTILINE))
        assert counts["parcellate"] == counts["qc"] == counts["shards"] == "1"
    finally:
        path.write_bytes(original)
