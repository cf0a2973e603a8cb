"""Small models and batches for tests."""

from __future__ import annotations

import torch
from fake_shards import interleaved
from semantoks.model.encoder import Encoder, ModelSettings
from semantoks.model.networks import NetworkTable
from semantoks.objectives.self_distillation import ObjectiveSettings, SelfDistillation
from semantoks.objectives.views import Views

SMALL = ModelSettings(
    width=16, dense_width=7, depth=2, head_width=8, mlp_width=24, patch=20, projection_hidden=12, projection_width=6
)


def small_encoder(sizes=(5, 3, 9), settings=SMALL, seed=0) -> Encoder:
    """An encoder whose parameters, norms and scales included, are all random."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = Encoder(settings, NetworkTable.from_labels(interleaved(sizes)))
        for parameter in encoder.parameters():
            if parameter.ndim <= 2 and not parameter.any():
                parameter.data.normal_(std=0.1)
        return encoder


def small_objective(sizes=(5, 3, 9), settings=SMALL, seed=0, dtype=torch.float32, **options) -> SelfDistillation:
    """Student and teacher that differ, with live biases and scales."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        objective = SelfDistillation(small_encoder(sizes, settings, seed), ObjectiveSettings(**options)).to(dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    for branch in (objective.student, objective.teacher):
        for name, parameter in branch.named_parameters():
            if "tokenizer" not in name:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data.add_(0.1 * noise.to(dtype))
    return objective


def small_views(n_scans=4, sizes=(5, 3, 9), n_patches=3, masked=True, seed=2, dtype=torch.float32) -> Views:
    """Random crops with random masks."""
    generator = torch.Generator().manual_seed(seed)
    bold = torch.randn(2 * n_scans, sum(sizes), 20 * n_patches + 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(2 * n_scans, len(sizes), n_patches, generator=generator) < 0.6
    mask[:, 0, 0], mask[:, -1, -1] = True, False
    return Views(bold.to(dtype), None, mask if masked else None)
