"""Frames go where they fit; on disk they are the same, shared, and leave nothing behind."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_shards import write_shard
from semantoks.errors import UserError
from semantoks.training import frames
from semantoks.training.corpus import load_corpus
from semantoks.training.frames import choose_place, free_memory, make_frames

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("n_bytes", "processes", "expected"), [(40, 1, "device"), (50, 1, "device"), (51, 1, "disk"), (40, 2, "disk")]
)
def test_memory_takes_what_needs_at_most_half_of_it(monkeypatch, n_bytes, processes, expected):
    monkeypatch.setattr(frames, "free_memory", lambda: 100.0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert choose_place("auto", n_bytes, CPU) == expected
    assert choose_place("host", n_bytes, CPU) == "host"


@pytest.mark.parametrize(
    ("group", "slurm", "expected"),
    [
        (None, None, 8000 * 1024),
        (("3000000", "1000000"), None, 2e6),
        (("max", "5"), None, 8000 * 1024),
        (None, "4", 4 * 2**20),
    ],
)
def test_free_memory_is_the_least_of_machine_group_and_job(tmp_path, monkeypatch, group, slurm, expected):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/job\n")
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    if slurm:
        monkeypatch.setenv("SLURM_MEM_PER_NODE", slurm)
    if group:
        (tmp_path / "sys/fs/cgroup/job").mkdir(parents=True)
        for name, value in zip(("memory.max", "memory.current"), group, strict=True):
            (tmp_path / "sys/fs/cgroup/job" / name).write_text(value + "\n")
    assert free_memory(tmp_path) == expected


def test_free_memory_of_this_machine_is_positive():
    assert 0 < free_memory() < float("inf")


def test_a_corpus_on_disk_is_the_same_and_its_file_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    shard = write_shard(tmp_path / "a.parquet", 6, [60, 45, 80, 100, 75, 64])
    held, mapped = load_corpus([shard]), load_corpus([shard], on_disk=True)
    assert torch.equal(held.frames, mapped.frames)
    assert list((tmp_path / "temporary").iterdir()) == []
    regions = [line for line in Path("/proc/self/maps").read_text().splitlines() if "semantoks-corpus" in line]
    assert any(line.endswith("(deleted)") for line in regions)
    assert not mapped.to("cpu").on_disk


def test_no_room_is_said_with_advice(tmp_path, monkeypatch):
    """Before anything is written: a mapped file on a full disk would end in a bus error."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match=r"expected room for the corpus .* TMPDIR"):
            make_frames((1000, 1000), True, lambda target: np.zeros(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
