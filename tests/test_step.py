"""Gradients of a step: micro-batches against the whole batch, and what the optimiser does with them."""

from __future__ import annotations

import pytest
import torch
from semantoks.objectives.views import Views
from semantoks.training.optimiser import make_optimiser, optimiser_step
from semantoks.training.settings import OptimiserSettings
from semantoks.training.step import forward_backward
from small_models import small_objective, small_views


def gradients(views, ttr_weight=0.4, **options):
    objective = small_objective(dtype=torch.float64)
    result = forward_backward(objective, views, {"ttr": ttr_weight}, OptimiserSettings(**options), torch.float32)
    return result, {name: p.grad for name, p in objective.student.named_parameters()}


def views(masked, absent):
    made = small_views(7, masked=masked, dtype=torch.float64)
    if not absent:
        return made
    present = torch.ones(7, 3, 3, dtype=torch.bool)
    present[2, 1], present[5, :, 2] = False, False
    return Views(made.bold, present, made.mask & present.repeat(2, 1, 1) if masked else None)


@pytest.mark.parametrize("micro_batches", [2, 3, 7])
@pytest.mark.parametrize(
    ("masked", "absent", "ttr_weight"), [(True, True, 0.4), (False, False, 0.0), (True, False, 0.0)]
)
def test_exact_accumulation_equals_one_batch(micro_batches, masked, absent, ttr_weight):
    batch = views(masked, absent)
    whole, expected = gradients(batch, ttr_weight)
    parts, found = gradients(batch, ttr_weight, micro_batches=micro_batches)
    torch.testing.assert_close(parts.losses, whole.losses, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_separate_accumulation_is_the_mean_of_its_parts():
    """Documented difference: each part has its own covariance, with its own m."""
    batch = views(True, False)
    _, found = gradients(batch, micro_batches=2, accumulation="separate")
    first, second = (gradients(batch.part(*bounds))[1] for bounds in ((0, 4), (4, 7)))
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, 4 / 7 * first[name] + 3 / 7 * second[name])
    _, whole = gradients(batch)
    assert any((found[name] - whole[name]).norm() > 0.05 * whole[name].norm() for name in found)


def test_steps_without_masking_leave_the_mask_embedding_alone():
    """No decay, no moment update; its next step is a first step."""
    objective = small_objective()
    optimiser = make_optimiser(objective.student.named_parameters())
    embedding = objective.student.encoder.mask_embedding
    before = embedding.detach().clone()
    forward_backward(objective, small_views(masked=False), {"ttr": 0.0}, OptimiserSettings(), torch.float32)
    optimiser_step(optimiser, 1e-2, 0.3, 1.0)
    assert torch.equal(embedding, before)
    assert embedding not in optimiser.state
    forward_backward(objective, small_views(), {"ttr": 0.0}, OptimiserSettings(), torch.float32)
    optimiser_step(optimiser, 1e-2, 0.3, 1.0)
    assert optimiser.state[embedding]["step"] == 1


def test_optimiser_step_is_adamw_with_clipping():
    """One step written out: clip to norm 1, decay, then the bias-corrected update of size lr."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    weight.grad = torch.tensor([3.0, 4.0])
    norm = optimiser_step(make_optimiser([("weight", weight)]), learning_rate=0.1, weight_decay=0.5, max_norm=1.0)
    assert float(norm) == 5.0
    clipped = torch.tensor([0.6, 0.8])
    expected = torch.tensor([1.0, -2.0]) * (1 - 0.1 * 0.5) - 0.1 * clipped / (clipped + 1e-8)
    torch.testing.assert_close(weight.detach(), expected)
    assert weight.grad is None


@pytest.mark.parametrize("decay_all", [True, False])
def test_decay_of_biases_norms_and_scales_is_an_option(decay_all):
    """Without gradients a step multiplies by 1 − lr·decay what is decayed, in the encoder as it is."""
    branch = small_objective().student
    before = {name: value.detach().clone() for name, value in branch.named_parameters()}
    for value in branch.parameters():
        value.grad = torch.zeros_like(value)
    optimiser_step(make_optimiser(branch.named_parameters(), decay_all), 0.1, 0.5, 1.0)
    decayed = set()
    for name, value in branch.named_parameters():
        if torch.equal(value, before[name] * (1 - 0.1 * 0.5)) and before[name].any():
            decayed.add(name)
        else:
            assert torch.equal(value, before[name]), name
    matrices = {"encoder.tokenizer.dense_weight", "encoder.tokenizer.long_kernels", "encoder.tokenizer.long_weight"}
    matrices |= {f"head.{layer}.weight" for layer in ("hidden", "output")}
    blocks = ("attention.qkv", "attention.projection", "mlp_in", "mlp_out")
    matrices |= {f"encoder.blocks.{n}.{part}.weight" for n in range(len(branch.encoder.blocks)) for part in blocks}
    vectors = {"encoder.tokenizer.dense_bias", "encoder.tokenizer.norm_weight", "encoder.norm.weight"}
    assert matrices <= decayed
    assert decayed == matrices or (decay_all and vectors <= decayed)
