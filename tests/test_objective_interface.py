"""Another objective on the same encoder: what a masked autoencoder has to write, and that training takes it."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
import torch
from fake_shards import write_shard
from semantoks.model.encoder import Encoder
from semantoks.model.encoder_folder import load_encoder, save_weights
from semantoks.objectives.objective import Objective
from semantoks.pretrain import make_config, train
from semantoks.training.checkpoint import Checkpoints
from semantoks.training.corpus import load_corpus
from semantoks.training.settings import OptimiserSettings, resolve_settings
from semantoks.training.step import forward_backward
from small_models import small_encoder, small_views
from torch import nn

CPU = torch.device("cpu")


class Patches(NamedTuple):
    networks: torch.Tensor  # [2, m, N, P, patch]


class Reconstruction(NamedTuple):
    total: torch.Tensor


class MaskedAutoencoder(Objective):
    """Mean BOLD of each network and patch, from the tokens of the masked view: squared error on what was masked."""

    features = "encoder"

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = nn.Linear(encoder.settings.width, encoder.settings.patch)

    def trained(self):
        return self.named_parameters()

    def encoders(self):
        return [self.encoder]

    def predictions(self, views, weights):
        tokens = self.encoder(views.bold, views.mask)[:, 1:]
        return Patches(self.decoder(tokens).unflatten(1, (self.encoder.n_networks, -1)).unflatten(0, (2, -1)))

    @torch.no_grad()
    def targets(self, views, weights):
        means = torch.stack([views.bold[:, rois].mean(1) for rois in self.encoder.networks.members()], dim=1)
        patch = self.encoder.settings.patch
        whole = means[..., : means.shape[-1] // patch * patch]
        return Patches(whole.unflatten(-1, (-1, patch)).unflatten(0, (2, -1)))

    def losses(self, predictions, targets, views, weights, n_scans=None):
        error = (predictions.networks - targets.networks).square().mean(dim=-1).flatten(0, 1)
        counted = torch.ones_like(error) if views.mask is None else views.mask.to(error.dtype)
        share = (error * counted).sum(dim=(1, 2)) / counted.sum(dim=(1, 2))
        return Reconstruction(share.sum() / (2 * (n_scans or len(views.bold) // 2)))

    def metrics(self, losses, predictions, targets):
        return {"loss": losses.total.detach()}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("accumulation", ["exact", "separate"])
def test_accumulation_equals_one_batch(masked, accumulation):
    """Its loss is a mean over scans, so that both kinds give the gradients of the whole batch."""
    found = []
    for micro_batches in (1, 3):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            objective = MaskedAutoencoder(small_encoder())
        settings = OptimiserSettings(micro_batches=micro_batches, accumulation=accumulation)
        forward_backward(objective, small_views(3, masked=masked), {"ttr": 0.0}, settings)
        found.append({name: p.grad for name, p in objective.trained() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_it_trains_is_resumed_saved_and_loaded(tmp_path):
    """The loss falls; stopped half-way and started again it ends with the same bits; its encoder can be used."""
    settings = resolve_settings(
        {"preset": "tiny", "views": {"crop": 60}, "optimiser": {"epochs": 40, "learning_rate": 0.1}}
    )
    corpus = load_corpus([write_shard(tmp_path / "a.parquet", 24, 75)])

    def run(name, stop_after=None):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            objective = MaskedAutoencoder(Encoder(settings.model, corpus.networks))
        checkpoints = Checkpoints(tmp_path / "checkpoints", name[:3], minutes=0)
        metrics = tmp_path / f"{name[:3]}.jsonl"
        if stop_after:
            steps = iter(range(stop_after))
            objective.after_step = lambda momentum: next(steps)
        train(objective, corpus, settings, 0, metrics, checkpoints, CPU)
        return objective, [json.loads(line) for line in metrics.read_text().splitlines()]

    whole, lines = run("whole")
    assert sum(line["loss"] for line in lines[-6:]) < 0.9 * sum(line["loss"] for line in lines[:6])
    with pytest.raises(StopIteration):
        run("resumed", stop_after=25)
    resumed, again = run("resumed")
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]
    config = make_config(settings, corpus, 0, "pretrained") | {"encoder": MaskedAutoencoder.features}
    save_weights(tmp_path / "encoder", resumed.state_dict(), config)
    loaded = load_encoder(tmp_path / "encoder")
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(loaded.encoder.state_dict()[name], value), name
