"""Two processes train as one: same losses and weights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
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
        "run": {"precision": "float32", "corpus": "disk" if absent else "auto"},
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


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_with_a_checkpoint(tmp_path):
    """Schedulers signal processes steps apart: they agree, write one checkpoint, and go on from it to the same end."""
    shard = write_shard(tmp_path / "a.parquet", 24, 75)
    settings = {"preset": "tiny", "views": {"crop": 60}, "optimiser": {"epochs": 100, "batch": 12}}
    folder = tmp_path / "checkpoints"
    arguments = ["--settings", json.dumps(settings), "--shards", str(shard), "--seed", "1"]
    arguments += ["--checkpoints", str(folder), "--output", str(tmp_path / "out")]
    program = [sys.executable, "-m", "semantoks.pretrain", *arguments]
    common = os.environ | {"PYTHONPATH": str(WORKFLOW), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}

    def start(port: int) -> list[subprocess.Popen[str]]:
        common.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2")
        ranks = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        return [subprocess.Popen(program, env=each, stderr=subprocess.PIPE, text=True) for each in ranks]

    first = start(free_port())
    while not (logs := list(folder.glob("metrics-*.jsonl"))) or logs[0].read_text().count("\n") < 20:
        assert all(process.poll() is None for process in first)
        time.sleep(0.05)
    first[1].terminate()
    said = [process.communicate(timeout=120)[1] for process in first]
    assert [process.returncode for process in first] == [1, 1], said
    assert all("start again to go on" in text for text in said)
    assert len(list(folder.glob("checkpoint-*.pt"))) == 1
    second = start(free_port())
    assert [process.wait(timeout=300) for process in second] == [0, 0]
    assert (tmp_path / "out/weights.safetensors").is_file()
    steps = [json.loads(line)["step"] for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(200))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


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
