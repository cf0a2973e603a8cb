"""What only a GPU can show; skipped where there is none. Never run by CI: docs/pretraining.md says where it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from evaluation_cases import task
from fake_shards import write_shard
from semantoks import embed, pretrain
from semantoks.baselines.features import CropFeatures
from semantoks.baselines.network_training import TrainingSettings, fit_network
from semantoks.baselines.published_probe import predict_published
from semantoks.baselines.supervised_networks import BrainNetworkTransformer, FromNothing, Matrices
from semantoks.files import read_table
from semantoks.objectives.views import Views
from semantoks.pretrain import make_objective
from semantoks.training.batches import Batches
from semantoks.training.checkpoint import Checkpoints
from semantoks.training.corpus import load_corpus
from semantoks.training.device import compute_reproducibly
from semantoks.training.optimiser import make_optimiser, optimiser_step
from semantoks.training.sampling import Sampler
from semantoks.training.settings import OptimiserSettings, resolve_settings
from semantoks.training.step import forward_backward
from small_models import small_objective, small_views

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(autouse=True)
def reproducible():
    """As in a training; nothing compiled for another test counts towards the variants that torch allows."""
    compute_reproducibly(GPU)
    torch.compiler.reset()


FAST = TrainingSettings(epochs=4, batch=8, learning_rate=0.3)
TINY = {"preset": "tiny", "views": {"crop": 60}, "optimiser": {"epochs": 6, "batch": 6}}


def on(device: torch.device, views: Views) -> Views:
    return Views(*(None if value is None else value.to(device) for value in views))


def step(device: torch.device, views: Views, precision=torch.float32, compiled=False):
    """Losses, and gradients by name, of a masked step with TTR."""
    objective = small_objective().to(device)
    if compiled:
        for encoder in objective.encoders():
            encoder.compile_parts()
    result = forward_backward(objective, on(device, views), {"ttr": 0.4}, OptimiserSettings(), precision)
    gradients = {name: parameter.grad.cpu() for name, parameter in objective.student.named_parameters()}
    return [value.item() for value in result.losses], gradients


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("absent", [False, True])
def test_a_step_equals_that_of_the_cpu(absent, compiled):
    views = small_views(7)
    if absent:
        present = torch.ones(7, 3, 3, dtype=torch.bool)
        present[2, 1], present[5, :, 2] = False, False
        views = Views(views.bold, present, views.mask & present.repeat(2, 1, 1))
    losses, gradients = step(CPU, views)
    found, found_gradients = step(GPU, views, compiled=compiled)
    np.testing.assert_allclose(found, losses, rtol=1e-4, atol=1e-6)
    for name, gradient in gradients.items():
        difference = (found_gradients[name] - gradient).norm() / gradient.norm()
        assert difference < 1e-3, name


def test_bfloat16_is_close_to_float32():
    losses, gradients = step(GPU, small_views(7))
    found, found_gradients = step(GPU, small_views(7), torch.bfloat16, compiled=True)
    np.testing.assert_allclose(found, losses, rtol=0.02, atol=0.01)
    flat, found_flat = (torch.cat([g.flatten() for g in each.values()]) for each in (gradients, found_gradients))
    assert torch.nn.functional.cosine_similarity(flat, found_flat, dim=0) > 0.999


@pytest.mark.parametrize(
    ("place", "further"),
    [
        (CPU, {}),
        (GPU, {}),
        (GPU, {"masks": {"kind": "random"}, "optimiser": {"epochs": 6, "batch": 6, "micro_batches": 2}}),
        (GPU, {"model": {"tokenizer": "linear"}, "masks": {"canonical": True}}),
    ],
)
def test_a_step_does_not_wait_for_the_device(tmp_path, place, further):
    """Also with the corpus on the host; the first steps, which allocate, may. All operations are deterministic."""
    tokenizer = further.get("model", {}).get("tokenizer", "semantic")
    corpus = load_corpus([write_shard(tmp_path / "a.parquet", 12, 75)], tokenizer=tokenizer).to(place)
    settings = resolve_settings(TINY | further)
    objective = make_objective(settings, corpus, 0).to(GPU)
    optimiser = make_optimiser(objective.trained())
    sampler = Sampler(corpus.table, 6, 0, settings.masks.probability)
    try:
        for number, views in enumerate(Batches(corpus, sampler, settings, GPU)(0, 20)):
            if number == 10:
                torch.cuda.set_sync_debug_mode("error")
            forward_backward(objective, views, {"ttr": 0.5}, settings.optimiser, torch.bfloat16)
            optimiser_step(optimiser, 1e-3, 0.05, 1.0)
            objective.after_step(0.99)
        assert number == 19  # a step that waited would have raised
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_corpus_gives_the_same_views_wherever_it_lies(tmp_path):
    corpus = load_corpus([write_shard(tmp_path / "a.parquet", 12, 75)])
    settings = resolve_settings(TINY)
    sampler = Sampler(corpus.table, 6, 0, settings.masks.probability)
    here, there = (Batches(placed, sampler, settings, GPU)(0, 4) for placed in (corpus, corpus.to(GPU)))
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.bold, other.bold)
        assert one.mask is other.mask is None or torch.equal(one.mask, other.mask)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[list[Path], Path]:
    """Two shards, and the encoder of a training in bfloat16, compiled, on the GPU."""
    folder = tmp_path_factory.mktemp("trained")
    shards = [write_shard(folder / f"{name}.parquet", 20, 75, prefix=name, seed=ord(name)) for name in "ab"]
    run(shards, folder / "encoder")
    return shards, folder / "encoder"


def run(shards: list[Path], output: Path, *further: str) -> None:
    listed = ["--settings", json.dumps(TINY), "--shards", *map(str, shards), "--seed", "1", "--output", str(output)]
    pretrain.main([*listed, *further])


def test_same_seed_same_bytes(trained, tmp_path):
    shards, encoder = trained
    run(shards, tmp_path / "again")
    assert (tmp_path / "again" / "weights.safetensors").read_bytes() == (encoder / "weights.safetensors").read_bytes()
    assert json.loads((encoder / "config.json").read_text())["resolved"]["precision"] == "bfloat16"


def test_resumed_equals_uninterrupted(trained, tmp_path, monkeypatch):
    shards, encoder = trained
    monkeypatch.setattr(Checkpoints, "due", property(lambda self: True))
    saved, save = [], Checkpoints.save

    def stop_after_two(self, *arguments, **keywords):  # logged steps alone are saved: 1, 11, …
        save(self, *arguments, **keywords)
        saved.append(None)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", stop_after_two)
    where = ("--checkpoints", str(tmp_path / "checkpoints"))
    with pytest.raises(KeyboardInterrupt):
        run(shards, tmp_path / "resumed", *where)
    monkeypatch.undo()
    run(shards, tmp_path / "resumed", *where)
    found, expected = (
        safetensors.torch.load_file(path / "weights.safetensors") for path in (tmp_path / "resumed", encoder)
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_features_equal_those_of_the_cpu(trained, tmp_path):
    shards, encoder = trained
    tables = {}
    for device in ("cpu", "cuda"):
        output = tmp_path / f"{device}.parquet"
        listed = ["--settings", json.dumps({"device": device}), "--weights", str(encoder)]
        embed.main([*listed, "--input", *map(str, shards), "--output", str(output)])
        tables[device] = np.stack(read_table(output)["features"])
    np.testing.assert_allclose(tables["cuda"], tables["cpu"], rtol=1e-3, atol=1e-4)


def test_published_heads_equal_those_of_the_cpu():
    generator, example = np.random.default_rng(0), task()
    names = [f"{number:03d}" for number in range(40)]
    crops = generator.normal(size=(40, 4, 24)).astype(np.float32)
    features = CropFeatures("cls_avg", names, crops, np.ones((40, 4), bool), "tiny_seed-0")
    tasks, settings = [example], {"rates": [1e-2, 1e-3], "epochs": 5, "refit": False}
    made = {device: list(predict_published(features, tasks, settings, device)) for device in ("cpu", "cuda")}
    for (_, here), (_, there) in zip(made["cpu"], made["cuda"], strict=True):
        np.testing.assert_allclose(there.scores, here.scores, rtol=1e-3, atol=1e-4)


def test_a_supervised_network_is_trained_as_on_the_cpu():
    """Without dropout, whose draws depend on the device."""
    generator = np.random.default_rng(0)
    inputs, example = Matrices(generator.normal(size=(40, 12, 12)).astype(np.float32)), task()
    made = []
    for device in (CPU, GPU):
        network = FromNothing(BrainNetworkTransformer, 12, 2, 0)
        for layer in network.module.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
            if isinstance(layer, torch.nn.MultiheadAttention):
                layer.dropout = 0.0
        made.append(fit_network(network, inputs, example, FAST, device)[0])
    assert made[0].setting == made[1].setting
    np.testing.assert_allclose(made[1].scores, made[0].scores, rtol=1e-3, atol=1e-4)
