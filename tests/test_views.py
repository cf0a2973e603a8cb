"""Augmentation over 10⁵ draws against METHOD §6."""

from __future__ import annotations

import math

import pytest
import torch
from semantoks.objectives.views import Views, ViewSettings, augment

OFF = {"zeroed_rois": 0.0, "zeroed_samples": 0.0, "scale": 0.0, "noise": 0.0}
DRAWS = 100_000


def run(crops, seed=0, **options):
    return augment(crops, ViewSettings(**(OFF | options)), torch.Generator().manual_seed(seed))


def assert_mean(values, expected, sd):
    assert abs(float(values.double().mean()) - expected) < 5 * sd / math.sqrt(values.numel())


def test_all_off_changes_nothing():
    crops = torch.randn(3, 4, 10)
    assert torch.equal(run(crops), crops)


@pytest.mark.parametrize("n_rois", [1, 20, pytest.param(457, marks=pytest.mark.slow)])
def test_zeroed_rois(n_rois):
    """max(1, ⌊ROI·u⌋) ROIs with u ~ U(0, .1), each equally often."""
    part = min(DRAWS, 4_000_000 // n_rois)
    kept = torch.cat(
        [run(torch.ones(part, n_rois, 1), seed, zeroed_rois=0.1)[..., 0] for seed in range(-(-DRAWS // part))]
    )
    zeroed = (kept == 0).sum(dim=1)
    expected = [max(1, math.floor(n_rois * (i + 0.5) / 1e5 * 0.1)) for i in range(100_000)]
    assert int(zeroed.min()) == min(expected)
    assert int(zeroed.max()) == max(expected)
    mean = sum(expected) / len(expected)
    assert_mean(zeroed, mean, max(0.1 * n_rois / math.sqrt(12), 1e-6))
    per_roi = (kept == 0).double().mean(dim=0)
    assert (per_roi - mean / n_rois).abs().max() < 6 * math.sqrt(mean / n_rois / len(kept)) + 1e-12


def test_zeroed_block_of_samples():
    """One block of max(1, ⌊100·u⌋) samples, u ~ U(0, .3), wherever it fits."""
    kept = run(torch.ones(DRAWS, 1, 100), zeroed_samples=0.3)[:, 0]
    zero = kept == 0
    length = zero.sum(dim=1)
    assert (int(length.min()), int(length.max())) == (1, 29)
    assert_mean(length, (1 + sum(range(1, 30))) / 30, 30 / math.sqrt(12))
    first = zero.int().argmax(dim=1)
    last = 99 - zero.flip(1).int().argmax(dim=1)
    assert torch.equal(last - first + 1, length)
    relative = first / (100 - length + 1)
    assert_mean(relative, float(((100 - length) / 2 / (100 - length + 1)).mean()), 1 / math.sqrt(12))
    assert int(first.min()) == 0
    assert int(last.max()) == 99


def test_scale_is_one_factor_per_crop():
    scaled = run(torch.ones(DRAWS, 2, 3), scale=0.2)
    assert (scaled == scaled[:, :1, :1]).all()
    factors = scaled[:, 0, 0]
    assert factors.min() >= 0.8
    assert factors.max() <= 1.2
    assert_mean(factors, 1.0, 0.4 / math.sqrt(12))
    assert float(factors.std()) == pytest.approx(0.4 / math.sqrt(12), rel=0.02)


def test_noise_is_added_everywhere_zeroed_values_included():
    noisy = run(torch.zeros(100, 20, 50), noise=0.1)
    assert_mean(noisy, 0.0, 0.1)
    assert float(noisy.std()) == pytest.approx(0.1, rel=0.02)
    both = run(torch.ones(100, 20, 50), noise=0.1, zeroed_rois=0.1)
    assert not (both == 0).any()


def test_the_same_seed_gives_the_same_views_and_parts_of_a_batch_are_parts_of_them():
    """A process that keeps part of the draws gets what one process gets for those scans."""
    crops = torch.randn(8, 5, 20)
    whole = augment(crops, ViewSettings(), torch.Generator().manual_seed(4))
    assert torch.equal(whole, augment(crops, ViewSettings(), torch.Generator().manual_seed(4)))

    def part(draws):
        return draws[2:5]

    kept = augment(crops[2:5], ViewSettings(), torch.Generator().manual_seed(4), n_draws=8, part=part)
    assert torch.equal(kept, whole[2:5])


def test_part_of_views_keeps_both_views():
    bold = torch.arange(8.0)[:, None, None]
    mask = torch.arange(8)[:, None, None] % 2 == 0
    part = Views(bold, mask[:4], mask).part(1, 3)
    assert part.bold.flatten().tolist() == [1, 2, 5, 6]
    assert part.mask.flatten().tolist() == [False, True, False, True]
    assert part.present.flatten().tolist() == [False, True]
