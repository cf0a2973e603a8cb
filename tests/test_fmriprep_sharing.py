"""Two cohorts and one folder of derivatives: refused where one would overwrite or delete what is the other's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from bids_trees import derivative, raw
from semantoks.batches import update_batches
from semantoks.config_loading import load_settings
from semantoks.errors import UserError
from semantoks.fmriprep_sharing import check_sharing
from test_workflow import snakemake

ONE_FOLDER = r"cohorts rest and movie: .* twice .*derivatives\), found 2 in both \(sub-01, sub-02\); make one cohort"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two participants with two tasks, and another dataset whose participants are called the same."""
    for label in ("01", "02"):
        for task in ("rest", "movie"):
            raw(tmp_path / "raw", f"sub-{label}_task-{task}")
        raw(tmp_path / "other", f"sub-{label}_task-movie")
    return tmp_path


def configuration(folder: Path, movie: dict[str, Any], retention: str = "all") -> dict[str, Any]:
    """Cohort ``rest`` of raw data, and cohort ``movie`` with keys of its own."""
    cohorts = {"rest": {"source": bids(folder, "raw"), "tasks": ["rest"], "include": ["01", "02"]}, "movie": movie}
    for name, content in cohorts.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"tasks": [name], **content}))
    return {
        "cohorts": [str(folder / f"{name}.yaml") for name in cohorts],
        "atlas": {"name": "own", "labels": str(folder / "labels.tsv")},
        "results_dir": str(folder / "results"),
        "fmriprep": {"retention": retention},
    }


def bids(folder: Path, dataset: str, derivatives: str = "derivatives") -> dict[str, str]:
    return {"type": "bids", "path": str(folder / dataset), "derivatives": str(folder / derivatives)}


def check(config: dict[str, Any]) -> None:
    settings = load_settings(config)
    for cohort in settings.cohorts:
        update_batches({"name": cohort.name, **cohort.settings}, settings.results / cohort.name / "batches", 10)
    check_sharing(settings)


@pytest.mark.parametrize("dataset", ["raw", "other"])
@pytest.mark.parametrize("retention", ["all", "used"])
def test_nobody_is_preprocessed_twice_into_one_folder(folder: Path, dataset: str, retention: str) -> None:
    (folder / "link").symlink_to(folder)
    with pytest.raises(UserError, match=ONE_FOLDER):
        check(configuration(folder, {"source": bids(folder, dataset, "link/derivatives")}, retention))
    check(configuration(folder, {"source": bids(folder, dataset, "elsewhere")}, retention))


@pytest.mark.parametrize("retention", ["all", "used"])
def test_cohorts_of_different_people_may_share_a_folder(folder: Path, retention: str) -> None:
    raw(folder / "raw", "sub-03_task-movie")
    check(configuration(folder, {"source": bids(folder, "raw"), "include": ["03"]}, retention))


@pytest.mark.parametrize("path", ["derivatives", "derivatives/../derivatives", "."])
@pytest.mark.parametrize("retention", ["used", "none"])
def test_derivatives_that_another_cohort_reads_are_kept(folder: Path, path: str, retention: str) -> None:
    derivative(folder / "derivatives", "sub-01_task-movie")
    reader = {"source": {"type": "fmriprep", "path": str(folder / path)}}
    refused = configuration(folder, reader, retention)
    with pytest.raises(UserError, match=r"fmriprep.retention.*expected all, because cohort movie reads .* rest, found"):
        check_sharing(load_settings(refused))
    check_sharing(load_settings(configuration(folder, reader)))


def test_the_workflow_does_not_start(folder: Path) -> None:
    (folder / "labels.tsv").write_text("index\tname\tnetwork\n1\ta\tVis\n2\tb\tDefault\n")
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration(folder, {"source": bids(folder, "raw")})))
    ended = snakemake(folder, "--dry-run")
    assert ended.returncode == 2
    assert "error: cohorts rest and movie: expected other participants in each" in ended.stdout + ended.stderr
