"""Fine-tuning without the defects of the original, and networks trained from nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_cases import cohort_settings, defaults, task
from fake_shards import write_shard
from semantoks import pretrain, probe, splits, supervised
from semantoks.baselines.finetuning import Crops, FineTuned, LoRA
from semantoks.baselines.network_training import TrainingSettings, batches, fit_network, outputs
from semantoks.baselines.supervised_networks import BrainNetworkTransformer, FromNothing, Matrices, WindowTransformer
from semantoks.errors import UserError
from semantoks.files import read_metadata, read_table, read_tables
from semantoks.model.encoder_folder import load_encoder
from semantoks.training.corpus import load_corpus
from semantoks.training.encoder_corpus import crop_starts
from small_models import small_encoder
from test_probe import COLUMNS

FAST = TrainingSettings(epochs=4, batch=8, learning_rate=0.3)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty participants, the first with two recordings of other lengths."""
    lengths = [90] + [100, 45] + [80] * 38
    path = tmp_path_factory.mktemp("shards") / "shard.parquet"
    write_shard(path, 41, lengths)
    table = read_table(path)
    table["participant_id"] = [f"{max(number - 1, 0):03d}" for number in range(41)]
    from semantoks.files import read_metadata, write_table

    write_table(path, table, read_metadata(path))
    return path


@pytest.fixture(scope="module")
def crops(shard: Path) -> Crops:
    return Crops(load_corpus([shard]), [f"{number:03d}" for number in range(40)], 60, 20, 8)


class Constant:
    """Inputs of features that hold the class, always the same."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = torch.as_tensor(values, dtype=torch.float32)

    def training(self, participants: np.ndarray, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        return (self.values[torch.from_numpy(participants)],)

    def testing(self, participants: np.ndarray) -> Any:
        yield participants, (self.values[torch.from_numpy(participants)],)


class Small:
    """A linear network whose states after every epoch are kept."""

    def __init__(self, width: int, n_outputs: int) -> None:
        torch.manual_seed(0)
        self.module = torch.nn.Linear(width, n_outputs)

    def groups(self, settings: TrainingSettings) -> list[dict[str, Any]]:
        return [{"params": list(self.module.parameters()), "lr": 1.0, "weight_decay": 0.0}]


class TestTraining:
    def test_the_best_epoch_is_really_restored(self) -> None:
        """Labels of the validation part are the opposite: the first epoch is the best and the last the worst."""
        one = task()
        values = one.target[:, None] * 2.0 - 1
        values[one.validation] *= -1
        network = Small(1, 2)
        network.module.weight.data[:] = torch.tensor([[2.0], [-2.0]])  # right for the validation part
        slow = TrainingSettings(epochs=30, batch=8, learning_rate=3.0)
        prediction, errors = fit_network(network, Constant(values), one, slow)
        assert min(errors) == errors[0] == -1
        assert errors[-1] == 0 or errors[-1] > errors[0]
        assert prediction.setting == "epoch 1 of 30"
        restored = outputs(network.module, Constant(values), one.validation)
        assert (restored.argmax(1).numpy() == one.target[one.validation]).all()

    def test_rates_are_those_of_the_batch_and_fall_as_a_cosine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []
        step = torch.optim.AdamW.step
        monkeypatch.setattr(
            torch.optim.AdamW, "step", lambda self, *a: (seen.append(self.param_groups[0]["lr"]), step(self, *a))[1]
        )
        one = task(64)
        fit_network(Small(1, 2), Constant(np.ones((64, 1))), one, TrainingSettings(epochs=3, batch=16))
        assert seen[0] == pytest.approx(6.25e-6)
        assert len(seen) == 6
        assert seen[3] == pytest.approx(6.25e-6 * 0.5)
        assert (np.diff(seen) < 0).all()

    def test_numbers_come_back_in_their_unit(self) -> None:
        one = task(n_classes=0)
        made, _ = fit_network(Small(1, 1), Constant(one.target[:, None] / 50), one, TrainingSettings(60, 8, 3.0))
        assert np.abs(made.scores[:, 0] - 50).max() < 20

    def test_no_batch_has_one_row(self) -> None:
        sizes = [len(part) for part in batches(33, 16, torch.Generator())]
        assert sizes == [16, 17]


class TestCrops:
    def test_test_crops_are_the_regular_ones_of_every_recording(self, crops: Crops) -> None:
        found = list(crops.testing(np.array([0, 5])))
        owner = np.concatenate([owner for owner, _ in found])
        assert (owner == 0).sum() == 8 + 8, "a recording of 90 and one of 100 frames"
        assert (owner == 5).sum() == 8
        last = found[-1][1][0][-1]
        start = crop_starts(80, 60, 8)[-1]
        torch.testing.assert_close(last, crops.corpus.crops(torch.tensor([6]), torch.tensor([start]), 60)[0])

    def test_test_crops_never_change_and_training_crops_do(self, crops: Crops) -> None:
        one, two = (next(crops.testing(np.array([3])))[1][0] for _ in range(2))
        torch.testing.assert_close(one, two, rtol=0, atol=0)
        generator = torch.Generator().manual_seed(0)
        first, second = (crops.training(np.array([3]), generator)[0] for _ in range(2))
        assert (first != second).any()

    def test_no_roi_is_zeroed(self, crops: Crops) -> None:
        bold = crops.training(np.arange(40), torch.Generator().manual_seed(0))[0]
        assert (bold.abs().sum(-1) > 0).all()

    def test_a_short_recording_is_padded_and_marked(self, shard: Path) -> None:
        short = Crops(load_corpus([shard]), ["001"], 60, 20, 8)
        ((_, (bold, absent)),) = list(short.testing(np.array([0])))
        assert len(bold) == 1
        assert absent[0, :, 2].all() or not absent[0, :, 2].any()


class TestFineTuning:
    @pytest.mark.parametrize("kind", ["full", "lora"])
    def test_pretrained_weights_are_untouched_and_every_split_starts_from_them(self, crops: Crops, kind: str) -> None:
        if kind == "lora":
            pytest.importorskip("peft")
        encoder = small_encoder((5, 3, 4)).eval().requires_grad_(False)
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        predictions = []
        for _ in range(2):
            torch.manual_seed(1)
            network = FineTuned(encoder, 2, 0.9) if kind == "full" else LoRA(encoder, 2, 4, 1)
            predictions.append(fit_network(network, crops, task(), FAST)[0].scores)
            for name, value in encoder.state_dict().items():
                assert torch.equal(value, before[name]), name
        np.testing.assert_array_equal(*predictions)
        assert not any(parameter.requires_grad for parameter in encoder.parameters())

    def test_tokenizer_and_embeddings_have_the_lowest_rate_and_the_head_the_highest(self) -> None:
        network = FineTuned(small_encoder(), 2, 0.9)
        rate = {id(p): group["lr"] for group in network.groups(TrainingSettings()) for p in group["params"]}
        by_name = {name: rate[id(parameter)] for name, parameter in network.module.named_parameters()}
        lowest = {name for name, value in by_name.items() if value == pytest.approx(0.9**3)}
        embeddings = {f"encoder.{name}" for name in ("cls_token", "mask_embedding", "network_embedding")}
        assert lowest == embeddings | {name for name in by_name if name.startswith("encoder.tokenizer")}
        assert by_name["encoder.blocks.0.mlp_in.weight"] == pytest.approx(0.9**2)
        assert by_name["encoder.blocks.1.mlp_in.weight"] == pytest.approx(0.9)
        assert by_name["head.linear.weight"] == by_name["encoder.norm.weight"] == 1
        assert max(by_name.values()) == 1

    def test_biases_norms_and_scales_do_not_decay(self) -> None:
        network = FineTuned(small_encoder(), 2, 0.9)
        spared = {id(p) for g in network.groups(TrainingSettings()) for p in g["params"] if g["weight_decay"] == 0}
        for name, parameter in network.module.named_parameters():
            if any(word in name for word in ("bias", "norm", "scale")):
                assert id(parameter) in spared, name
        by_name = dict(network.module.named_parameters())
        assert {
            name.removeprefix("encoder.") for name, parameter in by_name.items() if id(parameter) not in spared
        } == {
            *("tokenizer.dense_weight", "tokenizer.long_kernels", "tokenizer.long_weight", "head.linear.weight"),
            *(f"blocks.{block}.attention.{name}.weight" for block in (0, 1) for name in ("qkv", "projection")),
            *(f"blocks.{block}.{name}.weight" for block in (0, 1) for name in ("mlp_in", "mlp_out")),
        }

    def test_vectors_of_plain_networks_do_not_decay(self) -> None:
        network = FromNothing(WindowTransformer, 10, 2, 0)
        spared = {id(p) for g in network.groups(TrainingSettings()) for p in g["params"] if g["weight_decay"] == 0}
        for name, parameter in network.module.named_parameters():
            assert (id(parameter) in spared) == (parameter.ndim == 1 or name == "position_embedding"), name

    def test_lora_trains_adapters_and_head_alone(self, crops: Crops) -> None:
        pytest.importorskip("peft")
        network = LoRA(small_encoder((5, 3, 4)), 2, 4, 0)
        trained = {name for name, parameter in network.module.named_parameters() if parameter.requires_grad}
        assert all("lora_" in name or name.startswith("head.") for name in trained)
        assert sum("lora_A" in name for name in trained) == 2 * 4
        before = {name: value.clone() for name, value in network.module.state_dict().items()}
        fit_network(network, crops, task(), FAST)
        for name, value in network.module.state_dict().items():
            changed = not torch.equal(value, before[name])
            assert not changed or "lora_" in name or name.startswith("head."), name


class TestFromNothing:
    def test_bnt_learns_connectivity_and_windows_learn_time_series(self) -> None:
        generator = np.random.default_rng(0)
        target = np.arange(60) % 2
        edges = 0.2 * generator.normal(size=(60, 15)).astype(np.float32)
        edges[:, 3] += 1.5 * target
        one = task(60, 2, target)
        network = FromNothing(BrainNetworkTransformer, 6, 2, 0)
        made, _ = fit_network(network, Matrices.from_edges(edges, 6), one, TrainingSettings(30, 8, 0.1))
        assert (made.scores.argmax(1) == target[one.test]).mean() > 0.8
        bold = generator.normal(size=(60, 6, 60)) * np.where(target[:, None, None] * (np.arange(6) < 2)[:, None], 3, 1)
        network = FromNothing(WindowTransformer, 6, 2, 0)
        made, _ = fit_network(network, Constant(bold), one, TrainingSettings(20, 8, 0.1))
        assert (made.scores.argmax(1) == target[one.test]).mean() > 0.8

    def test_windows_take_any_length_and_see_the_order_of_frames(self) -> None:
        network = FromNothing(WindowTransformer, 6, 3, 0).module.eval()
        for n_frames in (7, 20, 33, 100):
            assert network(torch.randn(2, 6, n_frames)).shape == (2, 3)
        bold = torch.randn(1, 6, 60)
        assert (network(bold) - network(bold.flip(-1))).abs().max() > 1e-4

    def test_a_window_sees_its_fringe_and_not_beyond(self) -> None:
        network = FromNothing(WindowTransformer, 6, 1, 0).module.eval()
        frames = torch.arange(60.0)[None, :, None]
        windows = network._windows(frames, 10, 5)[0, :, :, 0]
        assert windows.shape == (5, 40)
        assert windows[1].tolist() == list(range(40))
        assert windows[0, :10].tolist() == [0] * 10
        torch.testing.assert_close(network._joined(network._windows(frames, 0, 5), 60), frames)

    def test_bnt_pools_nodes_whatever_their_order(self) -> None:
        matrix = Matrices.from_edges(np.full((1, 3), 0.5, np.float32), 3).matrices[0]
        np.testing.assert_allclose(matrix, np.tanh(0.5) * (1 - np.eye(3)) + np.eye(3), atol=1e-6)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A cohort of 40, splits, and a tiny encoder pretrained on half of it."""
    folder = tmp_path_factory.mktemp("supervised")
    write_shard(folder / "shard.parquet", 40, 80)
    write_shard(folder / "half.parquet", 20, 80)
    table = pd.DataFrame({"participant_id": [f"sub-{number:03d}" for number in range(40)]})
    table = table.assign(group=["a", "b"] * 20, score=np.arange(40).astype(str), site="one", age="30", sex="F")
    phenotypes = {"group": {"column": "group", "type": "classification", "stratify": ["group"]}}
    settings = cohort_settings(folder / "participants.tsv", table, phenotypes=phenotypes, site_column=None)
    settings["supervised"] = defaults("supervised") | {"epochs": 2, "batch": 8}
    options = ["--settings", json.dumps(settings), "--shards", str(folder / "shard.parquet")]
    splits.main([*options, "--output", str(folder / "splits.parquet")])
    encoder = ["--settings", json.dumps({"preset": "tiny", "views": {"crop": 60}}), "--seed", "0"]
    pretrain.main([*encoder, "--shards", str(folder / "half.parquet"), "--output", str(folder / "tiny_seed-0")])
    return {"folder": folder, "options": [*options, "--splits", str(folder / "splits.parquet")]}


def copied_encoder(study: dict[str, Any], folder: Path, pretrained: list[list[str]] | None) -> Path:
    """A copy of the encoder that says it was pretrained on other participants."""
    copy = folder / "tiny_seed-0"
    copy.mkdir()
    for name in ("weights.safetensors", "config.json"):
        (copy / name).write_bytes((study["folder"] / "tiny_seed-0" / name).read_bytes())
    config = json.loads((copy / "config.json").read_text()) | {"pretrain_recordings": pretrained}
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.fixture
def every_warning() -> Iterator[None]:
    """torch tells most things once per process only."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


class TestStage:
    @pytest.mark.usefixtures("every_warning")
    @pytest.mark.filterwarnings("error:The given NumPy array is not writable")  # row numbers of a task are not
    @pytest.mark.parametrize("model", ["finetuned", "lora", "bnt", "windows"])
    def test_rows_are_those_of_the_probe(self, study: dict[str, Any], model: str) -> None:
        if model == "lora":
            pytest.importorskip("peft")
        folder, output = study["folder"], study["folder"] / f"{model}.parquet"
        weights = ["--weights", str(folder / "tiny_seed-0")] if model in ("finetuned", "lora") else []
        before = (folder / "tiny_seed-0" / "weights.safetensors").read_bytes()
        supervised.main([*study["options"], "--model", model, *weights, "--output", str(output)])
        rows = read_table(output)
        probe.main([*study["options"], "--row", "majority", "--output", str(folder / "majority.parquet")])
        majority = read_table(folder / "majority.parquet")
        assert list(rows.columns) == list(majority.columns)
        assert set(COLUMNS) <= set(rows.columns)
        key = ["repetition", "fold", "participant_id", "y_true", "split_checksum"]
        pd.testing.assert_frame_equal(rows[key], majority[key])
        assert set(rows["row"]) == {f"tiny-{model}" if weights else model}
        assert rows["transductive"].any() == bool(weights)
        assert rows["n_train"].eq(24).all()
        assert (folder / "tiny_seed-0" / "weights.safetensors").read_bytes() == before

    @pytest.mark.parametrize("model", ["finetuned", "lora"])
    def test_pretraining_saw_the_same_content(
        self, study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture, model: str
    ) -> None:
        """The ids of pretraining and of the cohort agree nowhere, the recordings of half of it do."""
        if model == "lora":
            pytest.importorskip("peft")
        weights = copied_encoder(study, tmp_path, [["fake", f"x{number:03d}"] for number in range(20)])
        foreign = write_shard(tmp_path / "foreign.parquet", 20, 80, prefix="x")
        options = [*study["options"], "--model", model, "--weights", str(weights), "--pretrain-shards", str(foreign)]
        supervised.main([*options, "--output", str(tmp_path / "rows.parquet")])
        rows = read_table(tmp_path / "rows.parquet")
        assert (rows["transductive"] == (rows["participant_id"].astype(int) < 20)).all()
        assert rows["transductive"].any()
        assert "pretraining of tiny_seed-0 saw the same content as sub-x0" in capsys.readouterr().err

    def test_pretraining_of_unknown_participants(self, study: dict[str, Any], tmp_path: Path) -> None:
        weights = copied_encoder(study, tmp_path, None)
        options = [*study["options"], "--model", "finetuned", "--weights", str(weights)]
        supervised.main([*options, "--output", str(tmp_path / "rows.parquet")])
        assert read_table(tmp_path / "rows.parquet")["transductive"].isna().all()

    def test_a_cohort_without_such_splits_has_no_rows(
        self, study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        """Other cohorts of the study may have them; all rows together are one table all the same."""
        options = [*study["options"], "--model", "bnt"]
        settings = json.loads(options[1])
        settings["supervised"]["protocols"] = ["leave-site-out"]
        options[1] = json.dumps(settings)
        supervised.main([*options, "--output", str(tmp_path / "bnt.parquet")])
        assert "['leave-site-out'], the splits are random: nothing to train" in capsys.readouterr().err
        probe.main([*study["options"], "--row", "majority", "--output", str(tmp_path / "majority.parquet")])
        majority = read_table(tmp_path / "majority.parquet")
        both = read_tables([tmp_path / "bnt.parquet", tmp_path / "majority.parquet"])
        pd.testing.assert_frame_equal(both, majority)
        assert read_metadata(tmp_path / "bnt.parquet")["cohort"] == majority["cohort"].iloc[0]

    def test_an_encoder_is_needed(self, study: dict[str, Any]) -> None:
        with pytest.raises(UserError, match="--model lora needs --weights"):
            supervised.main([*study["options"], "--model", "lora", "--output", "x"])

    def test_the_tiny_encoder_loads(self, study: dict[str, Any]) -> None:
        assert load_encoder(study["folder"] / "tiny_seed-0").config["crop"] == 60
