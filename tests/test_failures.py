"""Full and read-only disks, wrong clocks, moved folders and a second run in one folder: clear words, nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from small_study import command, copy_study, different_files, environment, planned, run, same_bytes

pytestmark = pytest.mark.slow

SERIES = "results/demo/timeseries/part-0002.parquet"
SHARD = "results/demo/shards/part-0002.parquet"


@pytest.fixture
def study(finished_study, tmp_path) -> Path:
    return copy_study(finished_study, tmp_path / "study")


@pytest.fixture
def small_disk(study) -> Iterator[Path]:
    """The results on a disk of their own, with hardly any space left."""
    size = sum(path.stat().st_size for path in (study / "results").rglob("*") if path.is_file())
    mount(study / "results", study / "results", f"size={size + 2_000_000}")
    try:
        yield study
    finally:
        subprocess.run(["umount", study / "results"], check=True)


def mount(content: Path, where: Path, options: str) -> None:
    """A disk in memory with that content."""
    kept = where.with_name("kept")
    shutil.copytree(content, kept)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", where], capture_output=True).returncode:
        pytest.skip("a disk for tests needs root and the right to mount it")
    shutil.copytree(kept, where, dirs_exist_ok=True)
    shutil.rmtree(kept)


def messages(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.strip() for line in (result.stdout + result.stderr).splitlines() if "error: " in line]


def test_a_full_disk_is_named_and_with_space_the_same_command_goes_on(small_disk, finished_study):
    (small_disk / SERIES).unlink()
    filler = small_disk / "results/filler"
    room = 1_000_000  # for logs, not for time series
    filler.write_bytes(b"x" * (shutil.disk_usage(small_disk / "results").free - room))
    full = run(small_disk, "--cores", "1", "--", SERIES)
    assert full.returncode != 0
    (message,) = set(messages(full))
    assert f"{SERIES}: expected to write it, found No space left on device; free some space" in message
    assert "Traceback" not in full.stdout + full.stderr
    assert [path.name for path in (small_disk / SERIES).parent.iterdir()] == ["part-0001.parquet"]
    filler.unlink()
    again = run(small_disk, "--cores", "1", "--", SERIES)
    assert again.returncode == 0, again.stderr
    assert same_bytes(small_disk / SERIES, finished_study / SERIES)


def test_a_read_only_results_folder_is_one_message(small_disk):
    cohort = small_disk / "data/demo/bids/participants.tsv"
    (small_disk / "results/demo/batches/part-0002.tsv").unlink()
    subprocess.run(["mount", "-o", "remount,ro", small_disk / "results"], check=True)
    result = run(small_disk, "--cores", "1")
    assert result.returncode == 2
    (message,) = messages(result)
    assert "results/demo/batches" in message
    assert "mounted read-only; choose another folder (`results_dir`)" in message
    assert cohort.is_file()


def test_finished_results_that_are_read_only_can_be_looked_at_and_not_added_to(small_disk):
    remount = ["mount", small_disk / "results", "-o"]
    subprocess.run([*remount, "remount,ro"], check=True)
    assert planned(small_disk) == {}
    subprocess.run([*remount, "remount,rw"], check=True)
    (small_disk / SHARD).unlink()
    subprocess.run([*remount, "remount,ro"], check=True)
    result = run(small_disk, "--cores", "1")
    assert result.returncode != 0
    assert "warning: results: this folder cannot be written (a read-only disk, or permissions)" in result.stderr
    assert "Write-protected output files" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


CLOCK_AHEAD = """\
#!/bin/sh
# what a node does whose clock is an hour ahead
{python} "$@" || exit
while [ $# -gt 0 ]; do [ "$1" = --output ] && touch --date "1 hour" "$2"; shift; done
"""


def test_files_of_a_node_whose_clock_is_wrong_are_neither_refused_nor_made_again(study, finished_study, tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "python").write_text(CLOCK_AHEAD.format(python=sys.executable))
    (programs / "python").chmod(0o755)
    for path in (SERIES, SHARD):
        (study / path).unlink()
    variables = environment(study)
    variables["PATH"] = f"{programs}:{variables['PATH']}"
    words = command(study, "--cores", "1", "--", SHARD)
    result = subprocess.run(words, cwd=REPOSITORY, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert different_files(study, finished_study) == []
    assert planned(study) == {}


def test_an_input_from_the_future_is_named_and_touching_it_helps(study):
    (study / SHARD).unlink()
    os.utime(study / SERIES, (time.time() + 3600, time.time() + 3600))
    refused = run(study, "--cores", "1", "--", SHARD)
    assert refused.returncode != 0
    assert f"than input {SERIES}" in refused.stderr
    assert "clock skew" in refused.stderr
    (study / SERIES).touch()
    assert run(study, "--cores", "1", "--", SHARD).returncode == 0
    assert planned(study) == {}


def test_a_study_that_was_moved_is_still_finished(study, tmp_path):
    moved = study.rename(tmp_path / "elsewhere")
    assert planned(moved) == {}


def test_results_that_were_moved_are_still_finished_and_their_records_can_be_made_anew(study):
    """Snakemake says that it has no records for the new paths; made anew, they let it notice a changed setting."""
    (study / "results").rename(study / "results-of-may")
    config = yaml.safe_load((study / "config.yaml").read_text()) | {"results_dir": "results-of-may"}
    (study / "config.yaml").write_text(yaml.safe_dump(config))
    dry = run(study, "--cores", "1", "--dry-run")
    assert "Nothing to be done" in dry.stdout + dry.stderr
    assert "missing provenance/metadata" in dry.stdout + dry.stderr
    assert run(study, "--cores", "1", "--touch", "--forceall").returncode == 0
    assert planned(study) == {}
    (study / "config.yaml").write_text(yaml.safe_dump(config | {"tables": {"confidence": 0.9}}))
    assert planned(study) == {"tables": 1, "figures_of_probes": 1, "cost": 1, "report": 1}


def test_a_second_run_in_the_same_folder_is_refused(study):
    with open(study / "first.out", "wb") as log:
        words = command(study, "--cores", "1", "--forcerun", "pretrain", "--", "results/demo/splits.parquet")
        words += ["results/pretrain/tiny_seed-0/weights.safetensors"]
        first = subprocess.Popen(words, cwd=REPOSITORY, env=environment(study), stdout=log, stderr=log)
    try:
        locks = study / ".snakemake/locks"
        while not (locks.is_dir() and any(locks.iterdir())):
            assert first.poll() is None, (study / "first.out").read_text()
            time.sleep(0.1)
        second = run(study)
        assert second.returncode != 0
        assert "Directory cannot be locked" in second.stderr
        assert "no other Snakemake process" in second.stderr
    finally:
        first.terminate()
        first.wait()
