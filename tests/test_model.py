"""Tokenizer, encoder and head against the float64 oracle, and the properties that METHOD states."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import oracle
import pytest
import torch
from fake_shards import interleaved
from semantoks.errors import UserError
from semantoks.model import tokenizer as tokenizer_module
from semantoks.model.encoder import Encoder, ModelSettings, attend, scan_features, temporal_positions
from semantoks.model.networks import NetworkTable
from small_models import SMALL, small_encoder, small_objective, small_views
from torch._dynamo.utils import counters
from torch.nn import functional as F

PUBLISHED_SIZES = (61, 77, 46, 47, 26, 52, 91, 50, 7)


def arrays(branch):
    return {name: value.double().numpy() for name, value in branch.state_dict().items()}


def relative_error(found, expected):
    found = found.detach().double().numpy() if isinstance(found, torch.Tensor) else found
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("sizes", [(5, 3, 9), (12,), (1, 1, 1, 1), (2, 20)])
def test_tokenizer_is_the_formula(sizes):
    encoder, views = small_encoder(sizes), small_views(1, sizes, n_patches=2)
    members = encoder.networks.members()
    weights = {f"encoder.{name}": value.double().numpy() for name, value in encoder.state_dict().items()}
    expected = oracle.tokenize(views.bold.double().numpy(), weights, members, SMALL.width - SMALL.dense_width)
    assert relative_error(encoder.tokenizer(views.bold), expected) < 1e-5


@pytest.mark.parametrize("masked", [False, True])
def test_encoder_and_head_are_the_formula(masked):
    objective, views = small_objective(), small_views(1)
    branch, mask = objective.student, views.mask if masked else None
    tokens = branch.encoder(views.bold, mask)
    tokenized = branch.encoder.tokenizer(views.bold).detach().double().numpy()
    expected = oracle.encode(tokenized, None if mask is None else mask.numpy(), arrays(branch), 2, SMALL.head_width)
    assert relative_error(tokens, expected) < 1e-5
    assert relative_error(branch.head(tokens), oracle.project(expected, arrays(branch))) < 1e-5


def test_both_ways_of_computing_the_tokenizer_agree(monkeypatch):
    """Networks in turn (CPU) and all at once (GPU, many networks): same tokens, same gradients."""
    encoder, views = small_encoder(), small_views()
    results = []
    for limit in (64, 0):
        monkeypatch.setattr(tokenizer_module, "_LOOP_LIMIT", limit)
        encoder.zero_grad()
        tokens = encoder.tokenizer(views.bold)
        tokens.square().mean().backward()
        results.append((tokens.detach(), [p.grad.clone() for p in encoder.tokenizer.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_padding_of_small_networks_stays_zero():
    """The parameters of absent ROIs never get a gradient, so no optimiser moves them from zero."""
    encoder, views = small_encoder(), small_views()
    encoder.tokenizer(views.bold).square().mean().backward()
    tokenizer = encoder.tokenizer
    for network, (size, heads) in enumerate(zip(tokenizer.networks.sizes, tokenizer.heads, strict=True)):
        for parameter, live in (
            (tokenizer.dense_weight, (slice(None), slice(size, None))),
            (tokenizer.long_kernels, (slice(size * heads, None),)),
            (tokenizer.long_skip, (slice(size * heads, None),)),
            (tokenizer.long_weight, (slice(None), slice(size * heads, None))),
        ):
            assert not parameter[network][live].any()
            assert not parameter.grad[network][live].any()


def test_an_roi_reaches_only_its_own_network():
    encoder, views = small_encoder(), small_views(1)
    changed = views.bold.clone()
    roi = int(encoder.networks.members()[1][0])
    changed[:, roi] += 1
    difference = (encoder.tokenizer(changed) - encoder.tokenizer(views.bold)).abs().amax(dim=(0, 2, 3))
    assert difference[1] > 1e-3
    assert difference[0] == difference[2] == 0


def test_patches_are_tokenised_independently():
    encoder, views = small_encoder(), small_views(1)
    changed = views.bold.clone()
    changed[:, :, 20:40] += 1
    difference = (encoder.tokenizer(changed) - encoder.tokenizer(views.bold)).abs().amax(dim=(0, 1, 3))
    assert difference[1] > 1e-3
    assert difference[0] == difference[2] == 0


def test_samples_after_the_last_whole_patch_are_not_read():
    encoder, views = small_encoder(), small_views(1)
    torch.testing.assert_close(encoder(views.bold), encoder(views.bold[..., :60]), rtol=0, atol=0)


def test_long_convolution_sees_eight_samples_ahead_and_seven_back():
    """With the dense branch and the skip off, an impulse at sample 10 reaches samples 2 … 17 only."""
    encoder = small_encoder((1, 1))
    tokenizer = encoder.tokenizer
    tokenizer.long_skip.data.zero_()
    matrix = tokenizer._toeplitz_matrices()[0]
    reached = matrix[:, 10].detach().abs() > 0
    assert reached.nonzero()[:, 0].tolist() == list(range(2, 18))
    np.testing.assert_allclose(matrix[2:18, 10].detach(), tokenizer.kernels()[0, 0].detach(), rtol=1e-6)


@pytest.mark.parametrize("n_queries", [46, 1])
def test_short_sequences_attend_as_the_fused_kernel_does(n_queries):
    """On a CPU plain products take its place; values and gradients are the same."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(3, 2, n, 8, generator=generator, dtype=torch.float64) for n in (n_queries, 46, 46)]
    found, expected = ([part.clone().requires_grad_() for part in parts] for _ in range(2))
    ours, fused = attend(*found), F.scaled_dot_product_attention(*expected)
    torch.testing.assert_close(ours, fused)
    for output in (ours, fused):
        output.square().sum().backward()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_kernel_norm_is_that_of_the_first_kernels_and_stays():
    encoder = small_encoder()
    torch.testing.assert_close(encoder.tokenizer.kernels()[0, 0].norm(), torch.tensor(1.0))
    before = encoder.tokenizer.kernel_norm.clone()
    encoder.tokenizer.long_kernels.data.mul_(3)
    encoder(small_views().bold)
    assert torch.equal(encoder.tokenizer.kernel_norm, before)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [64, 0])
def test_encoder_compiles_as_one_graph(monkeypatch, limit):
    """No break of the graph, on either way of computing the tokenizer; gradients included."""
    monkeypatch.setattr(tokenizer_module, "_LOOP_LIMIT", limit)
    encoder, views = small_encoder(), small_views()
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
    for mask, only_cls in ((views.mask, False), (None, True)):
        found, expected = (e(views.bold, mask, only_cls) for e in (compiled, encoder))
        torch.testing.assert_close(found, expected)
    found.sum().backward()


def test_blocks_share_what_is_compiled(monkeypatch):
    """One graph for all blocks of an encoder and of its copy, so that compiling takes as long however deep they are."""
    compiled, counts = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda part, **_: compiled(part, backend="aot_eager", dynamic=False))
    for depth in (2, 4):
        torch.compiler.reset()
        counters.clear()
        encoder, views = small_encoder(settings=dataclasses.replace(SMALL, depth=depth)), small_views()
        twin = copy.deepcopy(encoder)
        expected = encoder(views.bold, views.mask)
        for each in (encoder, twin):
            each.compile_parts()
            torch.testing.assert_close(each(views.bold, views.mask), expected)
        twin = copy.deepcopy(encoder)
        for parameter in encoder.parameters():
            parameter.data.zero_()
        torch.testing.assert_close(twin(views.bold, views.mask), expected)  # a copy has its own weights
        counts.append(counters["stats"]["unique_graphs"])
    assert counts == [3, 3]  # tokenizer, sequence, block


def test_compiler_options_exist():
    """An option that torch does not know is an error, and only where something is compiled."""
    assert hasattr(torch._inductor.config, "unroll_reductions_threshold")


def test_positions():
    positions = temporal_positions(3, 8)
    for p in range(3):
        expected = [math.sin(p * 10000 ** (-i / 4)) for i in range(4)] + [
            math.cos(p * 10000 ** (-i / 4)) for i in range(4)
        ]
        np.testing.assert_allclose(positions[p], expected, atol=1e-12)


def test_only_cls_is_the_first_token():
    encoder, views = small_encoder(), small_views()
    torch.testing.assert_close(encoder(views.bold, only_cls=True)[:, 0], encoder(views.bold)[:, 0])


def test_mask_none_leaves_the_mask_embedding_without_gradient():
    encoder, views = small_encoder(), small_views()
    encoder(views.bold).sum().backward()
    assert encoder.mask_embedding.grad is None


def test_scan_features_are_mean_then_cls():
    tokens = torch.randn(2, 1 + 6, 4)
    present = torch.tensor([[[True, True], [False, False], [True, False]]]).expand(2, 3, 2)
    torch.testing.assert_close(scan_features(tokens), torch.cat([tokens[:, 1:].mean(1), tokens[:, 0]], dim=1))
    expected = torch.cat([tokens[:, [1, 2, 5]].mean(1), tokens[:, 0]], dim=1)
    torch.testing.assert_close(scan_features(tokens, present), expected)


def test_published_size():
    """58,720,931 live encoder parameters, padding not counted (METHOD §3)."""
    encoder = Encoder(ModelSettings(), NetworkTable.from_labels(interleaved(PUBLISHED_SIZES)))
    live = sum(parameter.numel() for name, parameter in encoder.named_parameters() if "tokenizer" not in name)
    assert live + encoder.tokenizer.n_live_parameters == 58_720_931


def test_initialisation_is_the_library_default():
    """Conv1d and Linear: uniform within ±1/sqrt(fan-in); kernels and skip N(0, 1); embeddings N(0, .02)."""
    encoder = Encoder(dataclasses.replace(SMALL, width=512, dense_width=256), NetworkTable.from_labels(["a"] * 100))
    reference = torch.nn.Conv1d(100, 256, 3)
    for found, expected in (
        (encoder.tokenizer.dense_weight, reference.weight),
        (encoder.tokenizer.long_weight, torch.nn.Linear(300, 256).weight),
        (encoder.network_embedding, 0.02 * torch.randn(1, 512)),
        (encoder.tokenizer.long_kernels, torch.randn(1000)),
        (encoder.tokenizer.long_skip, torch.randn(1000)),
    ):
        tolerance = 5 / math.sqrt(min(found.numel(), expected.numel()))
        assert abs(found.std() / expected.std() - 1) < tolerance
    assert encoder.tokenizer.dense_weight.abs().max() <= 1 / math.sqrt(300)
    assert encoder.blocks[0].attention_scale.eq(0.1).all()


def test_linear_tokenizer_makes_one_token_per_roi():
    encoder = small_encoder((2, 3), dataclasses.replace(SMALL, tokenizer="linear"))
    views = small_views(1, (2, 3))
    tokens = encoder.tokenizer(views.bold)
    assert tokens.shape == (2, 5, 3, SMALL.width)
    layer = encoder.tokenizer.projection
    torch.testing.assert_close(tokens[1, 4, 2], layer.weight @ views.bold[1, 4, 40:60] + layer.bias)
    assert encoder(views.bold).shape == (2, 16, SMALL.width)


def test_network_table_orders_by_first_appearance_and_names_empty_networks():
    table = NetworkTable.from_labels(["b", "a", "b"])
    assert table.names == ("b", "a")
    assert [rois.tolist() for rois in table.members()] == [[0, 2], [1]]
    assert table.labels == ["b", "a", "b"]
    with pytest.raises(UserError, match="none in \\['c'\\]"):
        NetworkTable.from_labels(["a"], ["a", "c"])
    with pytest.raises(UserError, match="found also \\['z'\\]"):
        NetworkTable.from_labels(["z"], ["a"])
    with pytest.raises(UserError, match="at least one ROI"):
        NetworkTable.from_labels([])
