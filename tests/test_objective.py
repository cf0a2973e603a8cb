"""Losses against the float64 oracle, the collapse scale of METHOD §5, absent tokens, and the teacher."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from semantoks.objectives.losses import coding_rate_loss, collapsed_coding_rate, token_loss
from semantoks.objectives.views import Views
from semantoks.training.settings import PretrainSettings
from small_models import SMALL, small_objective, small_views
from torch.nn import functional as F


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


TTR, NO_TTR = {"ttr": 0.5}, {"ttr": 0.0}


def step(objective, views, ttr_weight=0.5):
    weights = {"ttr": ttr_weight}
    student, teacher = objective.predictions(views, weights), objective.targets(views, weights)
    return objective.losses(student, teacher, views, weights), student, teacher


@pytest.mark.parametrize(("m", "p"), [(10, 4), (3, 8), (1, 2)])
def test_coding_rate_loss_is_the_formula(m, p):
    student, teacher = unit(2, m, p), unit(2, m, p, seed=1)
    found = coding_rate_loss(student, teacher)
    assert float(found.loss) == pytest.approx(oracle.coding_rate_loss(student.numpy(), teacher.numpy()), rel=1e-12)
    assert float(found.loss) == pytest.approx(-float(found.similarity) - float(found.coding_rate), rel=1e-12)


def test_coding_rate_tells_collapse_from_spread():
    """γR for m = 512, p = 128: .038 when collapsed, 1.83 for random unit features, 1.90 at best."""
    collapsed = unit(1, 1, 128).expand(2, 512, 128)
    random = unit(2, 512, 128)
    best = torch.eye(128, dtype=torch.float64).repeat(1, 4, 1).expand(2, 512, 128)
    rates = [float(coding_rate_loss(features, features).coding_rate) for features in (collapsed, random, best)]
    assert rates == pytest.approx([0.038, 1.83, 1.90], abs=0.006)


def test_token_loss_is_the_formula():
    student, teacher = unit(2, 3, 5, 4), unit(2, 3, 5, 4, seed=1)
    masked = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    masked[1, 2] = False  # a crop without masked tokens adds nothing
    expected = oracle.token_loss(student.numpy(), teacher.numpy(), masked.numpy())
    assert float(token_loss(student, teacher, masked)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ttr_weight", [0.0, 0.3])
def test_a_whole_step_is_the_formula(masked, ttr_weight):
    """Tokens, masks, heads and all losses of both branches, computed apart in float64."""
    objective, views = small_objective(dtype=torch.float64), small_views(2, masked=masked, dtype=torch.float64)
    losses, _, _ = step(objective, views, ttr_weight)
    outputs = {}
    for role, branch, mask in (("student", objective.student, views.mask), ("teacher", objective.teacher, None)):
        weights = {name: value.double().numpy() for name, value in branch.state_dict().items()}
        tokens = oracle.tokenize(
            views.bold.numpy(), weights, branch.encoder.networks.members(), SMALL.width - SMALL.dense_width
        )
        encoded = oracle.encode(tokens, None if mask is None else mask.numpy(), weights, 2, SMALL.head_width)
        means = encoded[:, 1:].reshape(4, 3, 3, -1).mean(axis=2)
        outputs[role] = [oracle.project(x, weights) for x in (encoded[:, 0], encoded[:, 1:], means)]
    cls, tokens, networks = zip(outputs["student"], outputs["teacher"], strict=True)
    expected_cls = oracle.coding_rate_loss(*(x.reshape(2, 2, -1) for x in cls))
    expected_ttr = oracle.coding_rate_loss(*(x.reshape(2, 6, -1) for x in networks)) if ttr_weight else 0.0
    expected_token = 0.0
    if masked:
        expected_token = oracle.token_loss(*(x.reshape(2, 2, 9, -1) for x in tokens), views.mask.reshape(2, 2, 9))
    assert float(losses.cls) == pytest.approx(expected_cls, rel=1e-10)
    assert float(losses.ttr) == pytest.approx(expected_ttr, rel=1e-10)
    assert float(losses.token) == pytest.approx(expected_token, rel=1e-10)
    total = expected_cls + ttr_weight * expected_ttr + 0.5 * expected_token
    assert float(losses.total.detach()) == pytest.approx(total, rel=1e-10)


def test_no_gradient_reaches_the_teacher_or_an_unused_mask_embedding():
    objective = small_objective()
    step(objective, small_views(masked=False))[0].total.backward()
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())
    without = [name for name, parameter in objective.student.named_parameters() if parameter.grad is None]
    assert without == ["encoder.mask_embedding"]


def test_teacher_sees_the_unmasked_views_and_student_the_masked_ones():
    objective, masked = small_objective(), small_views()
    plain = masked._replace(mask=None)
    torch.testing.assert_close(objective.targets(masked, TTR).cls, objective.targets(plain, TTR).cls)
    difference = objective.predictions(masked, TTR).cls - objective.predictions(plain, TTR).cls
    assert difference.abs().max() > 1e-3


def test_steps_that_read_only_cls_give_the_same_cls():
    """Without mask and TTR the last block computes the CLS token alone."""
    objective, views = small_objective(), small_views(masked=False)
    short, full = objective.predictions(views, NO_TTR), objective.predictions(views, TTR)
    assert short.outputs.shape[2] == 1
    torch.testing.assert_close(short.cls, full.cls)


def views_with_absent_parts(n_patches=3):
    """Scan 0 lacks network 1, scan 1 its last patch; the absent input is large, to be noticed if it is read."""
    views = small_views(3, n_patches=n_patches)
    present = torch.ones(3, 3, n_patches, dtype=torch.bool)
    present[0, 1], present[1, :, -1] = False, False
    return Views(views.bold, present, views.mask & present.repeat(2, 1, 1))


def test_absent_parts_are_not_read_by_student_or_teacher():
    objective, views = small_objective(), views_with_absent_parts()
    losses, student, teacher = step(objective, views)
    networks = torch.tensor(objective.student.encoder.networks.of_roi)
    other = views.bold.clone()
    for view in range(2):
        other[3 * view, networks == 1] = 100.0
        other[3 * view + 1, :, 40:] = 100.0
    changed, changed_student, changed_teacher = step(objective, views._replace(bold=other))
    torch.testing.assert_close(changed.total, losses.total)
    torch.testing.assert_close(changed_student.cls, student.cls)
    torch.testing.assert_close(changed_teacher.tokens, teacher.tokens)


def test_absent_parts_are_left_out_of_the_losses():
    """TTR: rows of present networks only, each the mean of its present patches; token loss: masked and present."""
    objective, views = small_objective(dtype=torch.float64), views_with_absent_parts()
    views = views._replace(bold=views.bold.double())
    losses, student, teacher = step(objective, views)
    rows = [(s, n) for s in range(3) for n in range(3) if (s, n) != (0, 1)]

    def means(outputs):
        grid = outputs.flatten(0, 1)[:, 1:].unflatten(1, (3, 3))
        both = []
        for view in range(2):
            both.append(torch.stack([grid[3 * view + s, n, : 2 if s == 1 else 3].mean(0) for s, n in rows]))
        return torch.stack(both)

    projected = [
        branch.head(means(part.outputs)).detach().numpy()
        for branch, part in ((objective.student, student), (objective.teacher, teacher))
    ]
    assert float(losses.ttr) == pytest.approx(oracle.coding_rate_loss(*projected), rel=1e-10)
    masked = views.mask.reshape(2, 3, 9).numpy()
    expected = oracle.token_loss(student.tokens.detach().numpy(), teacher.tokens.numpy(), masked)
    assert float(losses.token) == pytest.approx(expected, rel=1e-10)


def test_teacher_moves_parameters_and_not_buffers():
    objective = small_objective()
    before = {name: value.clone() for name, value in objective.teacher.state_dict().items()}
    objective.student.encoder.tokenizer.kernel_norm.fill_(7.0)
    objective.after_step(0.9)
    student = objective.student.state_dict()
    for name, value in objective.teacher.state_dict().items():
        expected = before[name] if "kernel_norm" in name else 0.9 * before[name] + 0.1 * student[name]
        torch.testing.assert_close(value, expected)


def test_teacher_starts_as_a_copy():
    from semantoks.objectives.self_distillation import SelfDistillation

    objective = SelfDistillation(small_objective().student.encoder, small_objective().settings)
    teacher = objective.teacher.state_dict()
    for name, value in objective.student.state_dict().items():
        assert torch.equal(value, teacher[name])


def test_separate_heads_are_an_option():
    objective, views = small_objective(shared_head=False), small_views()
    step(objective, views)[0].total.backward()
    heads = [objective.student.head, objective.student.network_head, objective.student.token_head]
    assert all(head.output.weight.grad.abs().max() > 0 for head in heads)


def test_covariance_is_float32_under_autocast():
    """In bfloat16 the covariance of nearly collapsed features would lose what distinguishes them."""
    base = unit(1, 1, 16).float()
    features = F.normalize(base + 1e-3 * torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(3)), dim=-1)
    exact = coding_rate_loss(features, features)
    with torch.autocast("cpu", torch.bfloat16):
        under = coding_rate_loss(features, features)
    assert torch.equal(exact.loss, under.loss)


def test_projections_have_unit_norm_under_autocast():
    """Rounded to bfloat16 after normalising, norms would be off by half a percent."""
    objective, views = small_objective(), small_views(16)
    with torch.autocast("cpu", torch.bfloat16):
        projections = objective.predictions(views, TTR)
    for values in projections[:3]:
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.norm(dim=-1), torch.ones(values.shape[:-1]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("n_rows", "size"), [(512, 128), (64, 64), (64, 128), (8, 8)])
def test_coding_rate_of_identical_features_is_known(n_rows, size):
    """What the stop at collapse compares with, for every preset; random features are far above it."""
    same = unit(1, 1, size).expand(2, n_rows, size)
    collapsed = collapsed_coding_rate(n_rows, size)
    assert float(coding_rate_loss(same, same).coding_rate) == pytest.approx(collapsed, rel=1e-4)
    apart = unit(2, n_rows, size)
    factor = PretrainSettings().run.collapse_factor
    assert float(coding_rate_loss(apart, apart).coding_rate) > factor * collapsed
    if (n_rows, size) == (512, 128):
        assert collapsed == pytest.approx(0.038, abs=5e-4)


def test_failed_factorisation_gives_nan():
    features = torch.full((2, 4, 3), torch.nan)
    assert torch.isnan(coding_rate_loss(features, features).loss)
    infinite = torch.full((2, 4, 3), 1e30)
    assert not torch.isfinite(coding_rate_loss(infinite, infinite).loss)


def test_bfloat16_losses_follow_float32():
    objective, views = small_objective(), small_views(16)
    exact = step(objective, views)[0]
    with torch.autocast("cpu", torch.bfloat16):
        student, teacher = objective.predictions(views, TTR), objective.targets(views, TTR)
    rounded = objective.losses(student, teacher, views, TTR)
    assert np.abs(float(rounded.total.detach()) / float(exact.total.detach()) - 1) < 0.02
