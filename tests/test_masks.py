"""Mask distributions over 10⁵ draws against METHOD §6, for every kind and number of networks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from semantoks.errors import UserError
from semantoks.objectives.masks import MaskSettings, draw_masks

DRAWS = 100_000
SIGMAS = 5.0
MANY = [pytest.param(n, marks=pytest.mark.slow) for n in (58, 457)]


def draw(n_networks, n_patches=5, n=DRAWS, seed=0, canonical=None, present=None, **options):
    generator = torch.Generator().manual_seed(seed)
    if present is None:
        present = torch.ones(1, n_networks, n_patches, dtype=torch.bool).expand(n, -1, -1)
    return draw_masks(present, MaskSettings(**options), generator, canonical)


def chunks(n_networks, n_patches=5, **options):
    """10⁵ masks in parts that fit memory."""
    part = max(1, min(DRAWS, 2_000_000 // (n_networks * n_patches)))
    for index in range(-(-DRAWS // part)):
        yield draw(n_networks, n_patches, n=min(part, DRAWS - index * part), seed=index, **options)


def count_slices(masks):
    """For each mask its numbers of wholly masked networks and patches, None when it is no such slice."""
    by_network, by_patch = masks.all(dim=2), masks.all(dim=1)
    network_slice = (masks == by_network[:, :, None]).all(dim=(1, 2)) & by_network.any(dim=1)
    patch_slice = (masks == by_patch[:, None, :]).all(dim=(1, 2)) & by_patch.any(dim=1)
    return network_slice, patch_slice, by_network.sum(dim=1), by_patch.sum(dim=1)


def assert_share(count, total, expected):
    sd = math.sqrt(max(expected * (1 - expected), 1e-12) / total)
    assert abs(count / total - expected) < SIGMAS * sd + 1e-12, (count / total, expected)


def expected_network_counts(n):
    """k uniform on ⌊.65N⌋ … ⌊.85N⌋−1, exact integer arithmetic."""
    return list(range(65 * n // 100, 85 * n // 100))


@pytest.mark.parametrize(
    ("n_networks", "kind"),
    [
        *[(9, "slice"), (9, "network")],
        *[pytest.param(n, kind, marks=pytest.mark.slow) for n in (58, 457) for kind in ("slice", "network")],
    ],
)
def test_network_slices(n_networks, kind):
    """Half of the crops (all with `network`): k of N networks, k uniform, each network equally often."""
    counts, hits, total, drawn = {}, torch.zeros(n_networks), 0, 0
    for masks in chunks(n_networks, kind=kind):
        network_slice, patch_slice, k, _ = count_slices(masks)
        assert (network_slice | patch_slice).all()
        for value, number in zip(*k[network_slice].unique(return_counts=True), strict=True):
            counts[int(value)] = counts.get(int(value), 0) + int(number)
        hits += masks[network_slice].all(dim=2).sum(dim=0)
        total, drawn = total + int(network_slice.sum()), drawn + len(masks)
    assert drawn == DRAWS
    assert_share(total, drawn, 0.5 if kind == "slice" else 1.0)
    expected = expected_network_counts(n_networks)
    assert sorted(counts) == expected
    for number in counts.values():
        assert_share(number, total, 1 / len(expected))
    mean_k = sum(expected) / len(expected)
    for number in hits:
        assert_share(float(number), total, mean_k / n_networks)


@pytest.mark.parametrize("n_networks", [1, 2, 9, *MANY])
def test_temporal_slices(n_networks):
    """P = 5: three contiguous patches with 75 %, four with 25 %, every start equally likely."""
    seen, total = {}, 0
    for masks in chunks(n_networks, kind="temporal"):
        patches = masks[:, 0]
        assert (masks == patches[:, None]).all()
        codes = (patches * 2 ** torch.arange(5)).sum(dim=1)
        for code, number in zip(*codes.unique(return_counts=True), strict=True):
            seen[int(code)] = seen.get(int(code), 0) + int(number)
        total += len(masks)
    expected = {0b00111: 0.25, 0b01110: 0.25, 0b11100: 0.25, 0b01111: 0.125, 0b11110: 0.125}
    assert set(seen) == set(expected)
    for code, share in expected.items():
        assert_share(seen[code], total, share)


@pytest.mark.parametrize("n_networks", [1, 2])
@pytest.mark.parametrize("kind", ["slice", "network"])
def test_too_few_networks_fall_back_to_temporal_slices(n_networks, kind):
    masks = draw(n_networks, kind=kind)
    _, patch_slice, _, n_patches = count_slices(masks)
    assert patch_slice.all()
    assert_share(int((n_patches == 3).sum()), DRAWS, 0.75)


@pytest.mark.parametrize("kind", ["slice", "temporal"])
def test_a_single_patch_falls_back_to_network_slices(kind):
    masks = draw(9, n_patches=1, kind=kind)
    k = masks.sum(dim=(1, 2))
    assert set(k.tolist()) == {5, 6}
    assert_share(int((k == 5).sum()), DRAWS, 0.5)


@pytest.mark.parametrize("n_networks", [1, 2, 9, *MANY])
def test_random_tokens(n_networks):
    """round(r·N·P) tokens, r ~ U(.65, .85), every token equally often."""
    hits, total, shares = torch.zeros(n_networks * 5), 0, 0.0
    for masks in chunks(n_networks, kind="random"):
        flat = masks.flatten(1)
        hits += flat.sum(dim=0)
        counts = flat.sum(dim=1)
        assert counts.min() >= max(1, round(0.65 * 5 * n_networks - 0.5))
        assert counts.max() <= min(5 * n_networks - 1, round(0.85 * 5 * n_networks + 0.5))
        shares, total = shares + float(counts.sum()), total + len(masks)
    mean = shares / total / (5 * n_networks)
    assert mean == pytest.approx(0.75, abs=0.005 if n_networks > 2 else 0.06)
    for number in hits:
        assert_share(float(number), total, mean)


def test_the_reference_masks_less_than_it_says():
    """Nominal mean .75, really about .63 for nine networks and five patches; exact_ratio repairs it."""
    assert draw(9).float().mean() == pytest.approx(0.63, abs=0.005)
    assert draw(9, exact_ratio=True).float().mean() == pytest.approx(0.75, abs=0.005)


@pytest.mark.parametrize("n_networks", [9, 19, 20])
@pytest.mark.parametrize("kind", ["slice", "network", "temporal"])
def test_exact_shares_are_those_asked_for(n_networks, kind):
    """Rounded to the nearest count the mean over U(.65, .85) is .75, where counts allow it as 20 patches do."""
    masked = draw(n_networks, n_patches=20, kind=kind, exact_ratio=True).float().mean()
    assert masked == pytest.approx(0.75, abs=0.005)


def test_canonical_networks_are_masked_whole():
    canonical = [0, 0, 1, 1, 1, 2, 3, 4, 4, 5, 6, 7, 8]
    masks = draw(len(canonical), kind="network", canonical=torch.tensor(canonical))
    for group in set(canonical):
        rows = [row for row, owner in enumerate(canonical) if owner == group]
        assert (masks[:, rows] == masks[:, rows[:1]]).all()
    firsts = [canonical.index(group) for group in range(9)]
    assert set(masks[:, firsts, 0].sum(dim=1).tolist()) == {5, 6}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 7),
    st.sampled_from(["slice", "network", "temporal", "random"]),
    st.booleans(),
    st.floats(0.05, 0.5),
    st.floats(0.5, 0.95),
    st.integers(0, 1000),
)
def test_one_token_is_masked_and_one_visible_whatever_is_present(n, p, kind, exact, low, high, seed):
    """Among present tokens, for any set of present networks and any length."""
    generator = torch.Generator().manual_seed(seed)
    networks = torch.rand(50, n, generator=generator) < 0.7
    patches = torch.arange(p) < torch.randint(1, p + 1, (50, 1), generator=generator)
    present = networks[:, :, None] & patches[:, None, :]
    masks = draw(n, p, present=present, seed=seed, kind=kind, exact_ratio=exact, low=low, high=high)
    assert not (masks & ~present).any()
    maskable = present.sum(dim=(1, 2)) > 1
    assert masks[maskable].any(dim=(1, 2)).all()
    assert (present & ~masks)[maskable].any(dim=(1, 2)).all()
    assert not masks[~maskable].any()


def test_wrong_bounds_are_named():
    with pytest.raises(UserError, match=r"masks\.low, masks\.high"):
        MaskSettings(low=0.9, high=0.5)
