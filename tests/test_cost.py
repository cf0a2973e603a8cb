"""What a run cost, and what more recordings would: planted benchmark files, known sums."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml
from bids_trees import derivative
from semantoks.cost import estimate, exceeded, measure
from semantoks.errors import UserError
from semantoks.plan import main as plan

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
SETTINGS = {
    "recordings": {"one": 100, "two": 300},
    "pretrain_cohorts": ["one"],
    "threads": {"pretrain": 4},
    "gpus": {"pretrain": 2},
}


def benchmark(results: Path, name: str, seconds: float, memory: str = "1024") -> None:
    path = results / "benchmarks" / f"{name}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + f"{seconds}\t0:00:01\t{memory}\t1\t1\t1\t-\t-\t50.0\t1.0\n")


@pytest.fixture
def results(tmp_path) -> Path:
    """Two batches of one cohort, one of the other, a training of half an hour on four cores and two GPUs."""
    results = tmp_path / "results"
    benchmark(results, "parcellate/one/part-0001", 1800)
    benchmark(results, "parcellate/one/part-0002", 900, memory="3072")
    benchmark(results, "parcellate/two/part-0001", 3600)
    benchmark(results, "pretrain/small_seed-0", 1800)
    benchmark(results, "figures/one_probes", 36, memory="-")
    benchmark(results, "atlas", 36)
    timeseries = results / "one/timeseries"
    timeseries.mkdir(parents=True)
    (timeseries / "part-0001.parquet").write_bytes(b"x" * 1_000_000)
    (timeseries / "part-0002.parquet").write_bytes(b"x" * 2_000_000)
    return results


def test_hours_memory_and_disk_by_stage_and_cohort(results):
    table = measure(results, SETTINGS).set_index(["stage", "cohort"])
    one = table.loc["parcellate", "one"]
    assert one[["jobs", "recordings", "core_hours", "memory_gb"]].tolist() == [2, 100, 0.75, 3.0]
    assert (one["disk_gb"], one["files"]) == (pytest.approx(0.003), 2)
    assert table.loc["parcellate", "two"]["core_hours"] == 1.0
    training = table.loc["pretrain", ""]
    assert training[["recordings", "core_hours", "gpu_hours"]].tolist() == [100, 2.0, 1.0]
    assert table.loc["atlas", ""]["core_hours"] == pytest.approx(0.01)


def test_estimates_follow_recordings_and_encoders(results):
    """Twice the recordings: twice parcellation; twice the scans and three encoders: six times training; one atlas."""
    measured = measure(results, SETTINGS)
    table = estimate(measured, {"one": 200, "two": 600}, in_training=200, encoders=3).set_index("stage")
    assert table.loc["parcellate", "core_hours"] == pytest.approx(2 * 1.75)
    assert table.loc["pretrain", "gpu_hours"] == pytest.approx(6 * 1.0)
    assert table.loc["atlas", "core_hours"] == pytest.approx(0.01)
    assert table.loc["parcellate", "memory_gb"] == 3.0


def test_only_quotas_that_are_set_and_exceeded_are_named(results):
    table = measure(results, SETTINGS)
    assert exceeded(table, {"core_hours": None, "gpu_hours": 5}) == []
    assert exceeded(table, {"gpu_hours": 0.5, "files": 0}) == [
        "gpu_hours: about 1.0 expected, quota.gpu_hours is 0.5",
        "files: about 2.0 expected, quota.files is 0",
    ]


def test_a_folder_without_benchmarks_is_named(tmp_path):
    with pytest.raises(UserError, match="expected benchmark files of a run, found none"):
        measure(tmp_path, SETTINGS)


@pytest.fixture
def configured(tmp_path, monkeypatch) -> Path:
    """A configuration of three recordings, with a measured table of ten beside it."""
    for number in range(3):
        derivative(tmp_path / "data", f"sub-{number:02d}_task-rest")
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump({"source": {"type": "fmriprep", "path": str(tmp_path / "data")}})
    )
    config = {"cohorts": [str(tmp_path / "study.yaml")], "atlas": {"name": "own"}, "quota": {"core_hours": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "results").mkdir()
    row = ["parcellate", "study", 1, 10, 5.0, 0.0, 0.1, 2, 1.5]
    columns = ["stage", "cohort", "jobs", "recordings", "core_hours", "gpu_hours", "disk_gb", "files", "memory_gb"]
    pd.DataFrame([row], columns=columns).to_csv(tmp_path / "results/cost.tsv", sep="\t", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_plan_counts_the_configured_recordings(configured, capsys):
    with pytest.raises(SystemExit) as exit_:
        plan(["--configfile", "config.yaml"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert "study: 3 recordings" in printed
    assert "1.500" in printed
    assert "within the quota" in printed
    assert "no quota is configured for gpu_hours, disk_gb, files" in printed


def test_a_plan_without_a_quota_claims_nothing_about_one(configured, capsys):
    config = yaml.safe_load((configured / "config.yaml").read_text())
    (configured / "config.yaml").write_text(yaml.safe_dump(config | {"quota": {}}))
    with pytest.raises(SystemExit) as exit_:
        plan(["--configfile", "config.yaml"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert "no quota is configured for core_hours, gpu_hours, disk_gb, files" in printed
    assert "within the quota" not in printed


def test_a_plan_beyond_the_quota_says_so_and_fails(configured, capsys):
    with pytest.raises(SystemExit) as exit_:
        plan(["--configfile", "config.yaml", "--recordings", "1000"])
    assert exit_.value.code == 1
    assert "exceeds the quota - core_hours: about 500.0 expected, quota.core_hours is 2" in capsys.readouterr().out


def test_a_plan_without_a_measured_run_says_what_to_do(configured):
    (configured / "results/cost.tsv").unlink()
    with pytest.raises(UserError, match=r"results/cost.tsv: expected the cost table of a run, found none; run .* few"):
        plan(["--configfile", "config.yaml"])
