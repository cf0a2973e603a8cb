"""Two processes train as one: same losses and weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from fake_shards import interleaved, write_shard
from semantoks import pretrain

WORKFLOW = Path(__file__).resolve().parents[1] / "workflow"


@pytest.mark.slow
@pytest.mark.parametrize("absent", [False, True])
def test_two_processes_reproduce_one(tmp_path, absent):
    """20 steps with masks and TTR, the same global batch: losses and weights equal to 1e-5."""
    valid = np.ones((24, 12), dtype=bool)
    if absent:
        valid[::3, [label == "B" for label in interleaved((5, 3, 4))]] = False
    shard = write_shard(tmp_path / "a.parquet", 24, 75, valid=valid)
    settings = {
        "preset": "tiny",
        "views": {"crop": 60},
        "optimiser": {"epochs": 10, "batch": 12, "micro_batches": 2},
        "objective": {"ttr_share": 0.5},
    }
    arguments = ["--settings", json.dumps(settings), "--shards", str(shard), "--seed", "1", "--output"]
    pretrain.main([*arguments, str(tmp_path / "one")])
    environment = os.environ | {"PYTHONPATH": str(WORKFLOW), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "semantoks.pretrain", *arguments, str(tmp_path / "two")]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two) == 20
    for name in ("loss", "cls_loss", "ttr_loss", "token_loss", "similarity", "coding_rate", "gradient_norm"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=1e-5, abs=1e-6), name
    first, second = (safetensors.torch.load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, value in first.items():
        scale = value.abs().max().clamp(min=1e-3)
        assert (second[name] - value).abs().max() <= 1e-5 * scale, name


def test_batch_must_divide_among_processes(tmp_path, monkeypatch):
    from semantoks.errors import UserError
    from semantoks.training import batches

    monkeypatch.setattr(batches, "world_size", lambda: 4)
    shard = write_shard(tmp_path / "a.parquet", 8)
    settings = {"preset": "tiny", "views": {"crop": 60}, "optimiser": {"batch": 6}}
    with pytest.raises(UserError, match=r"optimiser\.batch: expected a multiple of the 4 processes, found 6"):
        pretrain.main(
            ["--settings", json.dumps(settings), "--shards", str(shard), "--seed", "1", "--output", str(tmp_path)]
        )
