"""Which tokens the student does not see (METHOD §6), drawn for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from semantoks.errors import UserError


@dataclass(frozen=True)
class MaskSettings:
    """How tokens are masked.

    Attributes
    ----------
    kind : ``slice`` (per sample and view a coin: whole networks or contiguous patches), ``network`` or
        ``temporal`` only, or ``random`` tokens.
    probability : of masking the whole batch in a step.
    low, high : bounds of the nominal masked share.
    exact_ratio : round the nominal share to the nearest count; the reference rounds such that it masks
        about .63 where the nominal mean is .75.
    canonical : with tokens finer than networks, a network slice takes whole canonical networks: those of the ROIs
        (linear tokenizer), or the part of a network's name before its first underscore (``Default_2``).
    """

    kind: Literal["slice", "network", "temporal", "random"] = "slice"
    probability: float = 0.5
    low: float = 0.65
    high: float = 0.85
    exact_ratio: bool = False
    canonical: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(f"masks.probability: expected a value from 0 to 1, found {self.probability}")
        if not 0 < self.low <= self.high < 1:
            raise UserError(f"masks.low, masks.high: expected 0 < low ≤ high < 1, found {self.low} and {self.high}")


def draw_masks(
    present: Tensor, settings: MaskSettings, generator: torch.Generator, canonical: Tensor | None = None
) -> Tensor:
    """Draw one mask per crop.

    At least one present token is masked and one stays visible; a kind of slice that cannot do so for a crop
    (two networks, one patch) gives way to the other. A crop with a single present token is not masked.

    Parameters
    ----------
    present : [B, N, P] bool, tokens with data: a set of networks × a run of patches from the first on.
    generator : on the device of ``present``.
    canonical : for finer tokens, the canonical network of each of the N token rows, [N] int64 below N; network
        slices then take whole canonical networks.

    Returns
    -------
    [B, N, P] bool, True = masked; absent tokens are never part of it.
    """
    if settings.kind == "random":
        return _random(present, settings, generator)
    networks, network_possible = _networks(present.any(dim=2), settings, generator, canonical)
    patches, patch_possible = _patches(present.any(dim=1), settings, generator)
    if settings.kind == "slice":
        wanted = torch.rand(len(present), generator=generator, device=present.device) < 0.5
    else:
        wanted = torch.full((len(present),), settings.kind == "network", device=present.device)
    take_networks = (wanted & network_possible) | ~patch_possible
    mask = torch.where(take_networks[:, None, None], networks[:, :, None], patches[:, None, :])
    return mask & present


def _networks(
    present: Tensor, settings: MaskSettings, generator: torch.Generator, canonical: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Random networks [B, N], and whether the reference's range of counts [B] holds one.

    k of N networks, k uniform on ⌊low·N⌋ … ⌊high·N⌋−1 (exact: rN rounded, r uniform between the bounds), N counting
    present ones.
    """
    if canonical is None:
        group_present = present
    else:
        group_present = torch.zeros_like(present, dtype=torch.float32).index_add(1, canonical, present.float()) > 0
    n_present = group_present.sum(dim=1)
    draw = _uniform(present.shape[:1], generator)
    if settings.exact_ratio:
        count = ((settings.low + (settings.high - settings.low) * draw) * n_present).round().long().clamp(min=1)
        possible = n_present > 1
    else:
        low, high = _floor(settings.low, n_present).clamp(min=1), _floor(settings.high, n_present) - 1
        high = torch.minimum(high, n_present - 1)
        count = low + (draw * (high - low + 1).clamp(min=1)).long()
        possible = high >= low
    count = torch.minimum(count, (n_present - 1).clamp(min=0))
    draws = _uniform(group_present.shape, generator).masked_fill(~group_present, 2.0)
    chosen = smallest(draws, count)
    return chosen if canonical is None else chosen[:, canonical], possible


def _patches(present: Tensor, settings: MaskSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Contiguous patches [B, P] with a uniform start, and whether there are two patches to choose from [B].

    min(P, ⌈rP⌉) − 1 patches, r uniform between the bounds (exact: rP rounded), P counting present patches.
    """
    n_present = present.sum(dim=1)
    ratio = settings.low + (settings.high - settings.low) * _uniform(present.shape[:1], generator)
    if settings.exact_ratio:
        count = (ratio * n_present).round().long()
    else:
        count = torch.minimum((ratio * n_present).ceil().long(), n_present) - 1
    count = torch.minimum(count.clamp(min=1), (n_present - 1).clamp(min=0))
    start = (_uniform(present.shape[:1], generator) * (n_present - count + 1)).long()
    patch = torch.arange(present.shape[1], device=present.device)
    masked = (patch >= start[:, None]) & (patch < (start + count)[:, None])
    return masked, n_present > 1


def _random(present: Tensor, settings: MaskSettings, generator: torch.Generator) -> Tensor:
    """Present tokens anywhere, rounded rN·P of them: [B, N, P]."""
    flat = present.flatten(1)
    n_present = flat.sum(dim=1)
    ratio = settings.low + (settings.high - settings.low) * _uniform(flat.shape[:1], generator)
    count = torch.minimum((ratio * n_present).round().long().clamp(min=1), (n_present - 1).clamp(min=0))
    return smallest(_uniform(flat.shape, generator).masked_fill(~flat, 2.0), count).view_as(present)


def smallest(values: Tensor, count: Tensor) -> Tensor:
    """The ``count`` [B] smallest of each row of ``values`` [B, n] without ties: bool [B, n]."""
    ordered = F.pad(values.sort(dim=1).values, (0, 1), value=torch.inf)
    return values < ordered.gather(1, count[:, None])


def _uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """U(0, 1) in float64, so fine that ties do not occur."""
    return torch.rand(*shape, generator=generator, device=generator.device, dtype=torch.float64)


def _floor(share: float, count: Tensor) -> Tensor:
    return (share * count.double() + 1e-9).floor().long()
