"""The stage end to end: files of the contract, same seed same bytes, resume bit for bit, and clear stops."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from fake_shards import write_shard
from semantoks import pretrain
from semantoks.errors import UserError
from semantoks.files import read_json, sha256
from semantoks.training import checkpoint as checkpoint_module
from semantoks.training.checkpoint import Checkpoints, training_fingerprint
from semantoks.training.corpus import load_corpus
from semantoks.training.settings import resolve_settings

WORKFLOW = Path(__file__).resolve().parents[1] / "workflow"
TINY = {"preset": "tiny", "views": {"crop": 60}, "optimiser": {"epochs": 4, "batch": 6}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[Path]:
    """20 participants with two recordings each, one short, in two files."""
    folder = tmp_path_factory.mktemp("shards")
    first = write_shard(folder / "a.parquet", 20, [60] * 18 + [45, 75], recordings_per_participant=2)
    second = write_shard(folder / "b.parquet", 20, 60, recordings_per_participant=2, prefix="b", seed=1)
    return [first, second]


def arguments(shards, output, settings=TINY, seed=1, **further) -> list[str]:
    listed = ["--settings", json.dumps(settings), "--shards", *map(str, shards), "--seed", str(seed)]
    listed += ["--output", str(output)]
    for name, value in further.items():
        listed += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return listed


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("weights.safetensors", "config.json", "metrics.jsonl")}


@pytest.fixture(scope="module")
def uninterrupted(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    pretrain.main(arguments(shards, folder))
    return folder


def test_files_of_the_contract(uninterrupted):
    assert sorted(path.name for path in uninterrupted.iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "weights.safetensors",
    ]
    config = json.loads((uninterrupted / "config.json").read_text())
    assert config["kind"] == "pretrained"
    assert config["roi_names"] == [f"roi-{index}" for index in range(12)]
    assert config["networks"][:3] == ["A", "B", "C"]
    assert config["pretrain_recordings"] == [
        ["fake", name] for name in sorted([f"{i:03d}" for i in range(10)] + [f"b{i:03d}" for i in range(10)])
    ]
    assert config["settings"]["optimiser"]["epochs"] == 4
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(4 * (20 // 6)))
    wanted = "loss cls_loss ttr_loss token_loss coding_rate feature_sd effective_rank token_cosine similarity"
    wanted += " learning_rate gradient_norm ttr_weight masked"
    assert set(wanted.split()) <= set(lines[0])
    assert lines[0]["ttr_weight"] == 0.5
    assert lines[-1]["ttr_weight"] == 0.0
    parts = lines[0]["cls_loss"] + 0.5 * lines[0]["ttr_loss"] + 0.5 * lines[0]["token_loss"]
    assert lines[0]["loss"] == pytest.approx(parts, rel=1e-5)


def test_same_seed_same_bytes_and_another_seed_others(shards, uninterrupted, tmp_path):
    pretrain.main(arguments(reversed(shards), tmp_path / "again"))
    again = files(tmp_path / "again")
    reference = files(uninterrupted)
    assert again["weights.safetensors"] == reference["weights.safetensors"]
    assert again["metrics.jsonl"] == reference["metrics.jsonl"]
    pretrain.main(arguments(shards, tmp_path / "other", seed=2))
    assert files(tmp_path / "other")["weights.safetensors"] != reference["weights.safetensors"]


@pytest.mark.parametrize("place", ["host", "disk"])
def test_where_the_scans_lie_changes_no_bit(shards, uninterrupted, tmp_path, place):
    pretrain.main(arguments(shards, tmp_path, TINY | {"run": {"corpus": place}}))
    for name in ("weights.safetensors", "metrics.jsonl"):
        assert (tmp_path / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    assert read_json(tmp_path / "config.json")["resolved"]["corpus"] == place


def test_random_initialisation_is_where_training_starts(shards, tmp_path):
    """Same seed: the weights as initialised are those that a training with learning rate 0 ends with."""
    pretrain.main(arguments(shards, tmp_path / "random", random_initialisation=True))
    still = TINY | {
        "optimiser": {"epochs": 2, "batch": 20, "learning_rate": 1e-30, "weight_decay": 0.0, "final_weight_decay": 0.0}
    }
    pretrain.main(arguments(shards, tmp_path / "still", still))
    random, trained = (
        safetensors.torch.load_file(tmp_path / name / "weights.safetensors") for name in ("random", "still")
    )
    for name, value in random.items():
        torch.testing.assert_close(trained[name], value, rtol=1e-6, atol=1e-7)
    assert random["teacher.encoder.tokenizer.kernel_norm"].min() > 0
    assert (tmp_path / "random" / "metrics.jsonl").read_text() == ""
    config = json.loads((tmp_path / "random" / "config.json").read_text())
    assert (config["kind"], config["pretrain_recordings"]) == ("random", [])


class KilledError(Exception):
    pass


@pytest.mark.parametrize("killed_after", [1, 4, 5])
def test_killed_and_resumed_equals_uninterrupted(shards, uninterrupted, tmp_path, monkeypatch, killed_after):
    """KilledError in mid-epoch and at an end of one; a checkpoint after every step."""
    settings = TINY | {"run": {"checkpoint_minutes": 0}}
    save, count = checkpoint_module.Checkpoints.save, []

    def save_then_die(self, *positional, **named):
        save(self, *positional, **named)
        count.append(1)
        if len(count) == killed_after:
            raise KilledError

    monkeypatch.setattr(checkpoint_module.Checkpoints, "save", save_then_die)
    with pytest.raises(KilledError):
        pretrain.main(arguments(shards, tmp_path / "out", settings, checkpoints=tmp_path / "ck"))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(checkpoint_module.Checkpoints, "save", save)
    pretrain.main(arguments(shards, tmp_path / "out", settings, checkpoints=tmp_path / "ck"))
    resumed, reference = files(tmp_path / "out"), files(uninterrupted)
    assert resumed["weights.safetensors"] == reference["weights.safetensors"]
    assert resumed["metrics.jsonl"] == reference["metrics.jsonl"]
    assert not list((tmp_path / "ck").iterdir())


def test_killed_while_a_checkpoint_is_written(shards, uninterrupted, tmp_path, monkeypatch):
    """The half-written file never takes the place of the last whole one."""
    settings = TINY | {"run": {"checkpoint_minutes": 0}}
    save, count = torch.save, []

    def write_half(state, path):
        count.append(1)
        save(state, path)
        if len(count) == 3:
            content = Path(path).read_bytes()
            Path(path).write_bytes(content[: len(content) // 2])
            raise KilledError

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(KilledError):
        pretrain.main(arguments(shards, tmp_path / "out", settings, checkpoints=tmp_path / "ck"))
    monkeypatch.setattr(torch, "save", save)
    pretrain.main(arguments(shards, tmp_path / "out", settings, checkpoints=tmp_path / "ck"))
    assert files(tmp_path / "out")["weights.safetensors"] == files(uninterrupted)["weights.safetensors"]


def test_checkpoints_of_other_settings_are_left_alone(shards, tmp_path, monkeypatch):
    settings = TINY | {"run": {"checkpoint_minutes": 0}}
    monkeypatch.setattr(checkpoint_module.Checkpoints, "remove", lambda self: None)
    pretrain.main(arguments(shards, tmp_path / "a", settings, checkpoints=tmp_path / "ck"))
    pretrain.main(arguments(shards, tmp_path / "b", settings, seed=2, checkpoints=tmp_path / "ck"))
    assert len(list((tmp_path / "ck").glob("checkpoint-*.pt"))) == 2


def test_damaged_checkpoint_is_named(shards, tmp_path, monkeypatch):
    settings = TINY | {"run": {"checkpoint_minutes": 0}}
    monkeypatch.setattr(checkpoint_module.Checkpoints, "remove", lambda self: None)
    pretrain.main(arguments(shards, tmp_path / "a", settings, checkpoints=tmp_path / "ck"))
    next((tmp_path / "ck").glob("checkpoint-*.pt")).write_bytes(b"broken")
    with pytest.raises(UserError, match=r"expected a checkpoint.*delete it"):
        pretrain.main(arguments(shards, tmp_path / "a", settings, checkpoints=tmp_path / "ck"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals(shards, uninterrupted, tmp_path, monkeypatch, number):
    """SIGTERM saves and stops, SIGUSR1 saves and goes on; the final weights are the same either way."""
    advance, count = pretrain.Monitor.advance, []

    def advance_and_signal(self):
        advance(self)
        count.append(1)
        if len(count) == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(pretrain.Monitor, "advance", advance_and_signal)
    run = arguments(shards, tmp_path / "out", checkpoints=tmp_path / "ck")
    if number == signal.SIGTERM:
        with pytest.raises(pretrain.Preempted, match="stopped after step 1 of 12"):
            pretrain.main(run)
        assert len(list((tmp_path / "ck").glob("checkpoint-*.pt"))) == 1
    pretrain.main(run)
    assert len(count) == 12
    assert files(tmp_path / "out")["weights.safetensors"] == files(uninterrupted)["weights.safetensors"]


@pytest.mark.slow
def test_a_real_process_stopped_and_started_again(shards, uninterrupted, tmp_path):
    settings = TINY | {"optimiser": {"epochs": 60, "batch": 6}}
    environment = os.environ | {"PYTHONPATH": str(WORKFLOW)}
    command = [sys.executable, "-m", "semantoks.pretrain"]
    run = [*command, *arguments(shards, tmp_path / "out", settings, checkpoints=tmp_path / "ck")]
    process = subprocess.Popen(run, env=environment, stderr=subprocess.PIPE, text=True)
    while not (metrics := list((tmp_path / "ck").glob("metrics-*.jsonl"))) or metrics[0].read_text().count("\n") < 20:
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "start again to go on" in said
    assert subprocess.run(run, env=environment, capture_output=True).returncode == 0
    assert (
        subprocess.run(
            [*command, *arguments(shards, tmp_path / "whole", settings)], env=environment, capture_output=True
        ).returncode
        == 0
    )
    assert files(tmp_path / "out")["weights.safetensors"] == files(tmp_path / "whole")["weights.safetensors"]


def test_other_data_under_the_same_names_start_over(tmp_path):
    """Denoised anew, a recording has its old name: the checkpoint of the old data is not taken up."""
    settings = resolve_settings(TINY)
    prints = []
    for seed in (0, 1):
        shard = write_shard(tmp_path / f"{seed}.parquet", 6, seed=seed)
        corpus = load_corpus([shard])
        prints.append(training_fingerprint(settings, corpus, 1, torch.float32, [sha256(shard)]))
    assert prints[0] != prints[1]
    assert training_fingerprint(settings, corpus, 1, torch.bfloat16, [sha256(shard)]) not in prints


def test_what_a_killed_writer_left_is_removed(tmp_path):
    left, other = tmp_path / ".checkpoint-abc.pt.x7.pt", tmp_path / ".checkpoint-def.pt.x7.pt"
    for path in (left, other):
        path.write_text("half")
    with Checkpoints(tmp_path, "abc", 10).alone(torch.device("cpu")) as finished:
        assert not finished
    assert not left.exists()
    assert other.exists()


def test_a_run_that_a_killed_workflow_left_behind_is_waited_for(shards, tmp_path):
    """Both would write the same metrics; whoever comes second takes what the first made."""
    settings = TINY | {"optimiser": {"epochs": 30, "batch": 6}}
    environment = os.environ | {"PYTHONPATH": str(WORKFLOW)}
    run = [sys.executable, "-m", "semantoks.pretrain"]
    run += arguments(shards, tmp_path / "out", settings, checkpoints=tmp_path / "ck")
    first = subprocess.Popen(run, env=environment, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "ck").glob("metrics-*.jsonl")):
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)  # however long the second takes to start
    said = tmp_path / "said.txt"
    with said.open("w") as log:
        second = subprocess.Popen(run, env=environment, stderr=log)
    while "waiting for another run of this training" not in said.read_text():
        assert second.poll() is None, said.read_text()
        time.sleep(0.05)
    first.send_signal(signal.SIGCONT)
    assert [first.wait(), second.wait()] == [0, 0]
    assert "another run of this training has finished it meanwhile" in said.read_text()
    steps = [json.loads(line)["step"] for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(90))
    assert not list((tmp_path / "ck").iterdir())


@pytest.mark.parametrize("finished", [False, True])
def test_who_waited_knows_whether_the_other_run_was_killed(tmp_path, finished):
    """Killed before its first checkpoint, it has finished nothing: what lies in the output folder is older."""
    checkpoints = Checkpoints(tmp_path, "abc", 0)
    with (tmp_path / "checkpoint-abc.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def end():
            if finished:
                Checkpoints(tmp_path, "abc", 0).remove()
            held.close()

        threading.Timer(0.2, end).start()
        with checkpoints.alone(torch.device("cpu")) as taken:
            assert taken == finished


def test_config_says_what_auto_came_to(shards, tmp_path):
    pretrain.main(arguments(shards, tmp_path / "out", TINY | {"optimiser": {"epochs": 2, "batch": 512}}))
    resolved = json.loads((tmp_path / "out/config.json").read_text())["resolved"]
    assert resolved["precision"] in ("float32", "bfloat16")
    assert resolved["batch"] == resolved["participants"] < 512
    assert resolved["steps"] == 2
    assert resolved["processes"] == 1


def test_canonical_masks_need_names_that_belong_together(tmp_path):
    shard = write_shard(tmp_path / "a.parquet", 6)
    with pytest.raises(UserError, match=r"masks\.canonical: expected networks whose names share"):
        pretrain.main(arguments([shard], tmp_path / "out", TINY | {"masks": {"canonical": True}}))


def test_a_small_corpus_is_used_whole_and_said_so(tmp_path, capsys):
    shard = write_shard(tmp_path / "a.parquet", 3)
    pretrain.main(arguments([shard], tmp_path / "out", TINY | {"optimiser": {"epochs": 2, "batch": 512}}))
    assert "3 participants, fewer than optimiser.batch (512)" in capsys.readouterr().err


def test_one_scan_is_an_error(tmp_path):
    shard = write_shard(tmp_path / "a.parquet", 1)
    with pytest.raises(UserError, match="at least two participants"):
        pretrain.main(arguments([shard], tmp_path / "out"))


def test_exploding_training_stops_with_advice(shards, tmp_path):
    settings = TINY | {"optimiser": {"epochs": 4, "batch": 6, "learning_rate": 1e30, "warmup_epochs": 0}}
    with pytest.raises(UserError, match=r"expected a finite loss.*lower optimiser\.learning_rate"):
        pretrain.main(arguments(shards, tmp_path / "out", settings))
    assert not (tmp_path / "out" / "weights.safetensors").exists()


def test_collapse_stops_with_advice(shards, tmp_path):
    settings = TINY | {"run": {"collapse_factor": 100.0, "patience": 3}}
    with pytest.raises(UserError, match=r"step 2: expected a coding rate.*larger optimiser\.batch"):
        pretrain.main(arguments(shards, tmp_path / "out", settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"model": {"tokenizer": "linear"}, "masks": {"canonical": True}},
        {"masks": {"kind": "random", "exact_ratio": True}, "objective": {"shared_head": False}},
        {"optimiser": {"micro_batches": 2, "batch": 6, "decay_all": False}, "views": {"noise": 0.0, "crop": 40}},
        {"run": {"precision": "bf16", "tensorboard": True, "corpus": "host"}},
    ],
)
def test_options_run(shards, tmp_path, settings):
    merged = TINY | {key: TINY.get(key, {}) | value for key, value in settings.items()}
    pretrain.main(arguments(shards, tmp_path / "out", merged, checkpoints=tmp_path / "ck"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert all(abs(line["loss"]) < 10 for line in lines)
    if settings.get("run", {}).get("tensorboard"):
        assert list((tmp_path / "ck" / "tensorboard").glob("events*"))


def test_single_network_trains(tmp_path):
    shard = write_shard(tmp_path / "a.parquet", 6, sizes=(7,))
    pretrain.main(arguments([shard], tmp_path / "out"))
    assert (tmp_path / "out" / "weights.safetensors").is_file()


def test_masking_a_single_token_is_impossible_and_does_nothing(tmp_path):
    """One network, one patch per crop: nothing can be masked and seen; the CLS loss still trains."""
    shard = write_shard(tmp_path / "a.parquet", 6, sizes=(7,))
    pretrain.main(arguments([shard], tmp_path / "out", TINY | {"views": {"crop": 20}}))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert {line["token_loss"] for line in lines} == {0.0}
