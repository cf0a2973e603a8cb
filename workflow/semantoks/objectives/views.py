"""Two random, augmented crops per scan, made on the device for a whole batch at once (METHOD §6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from semantoks.errors import UserError
from semantoks.objectives.masks import smallest


@dataclass(frozen=True)
class ViewSettings:
    """Crops and their augmentation.

    Attributes
    ----------
    crop : samples per crop.
    zeroed_rois, zeroed_samples : largest share of ROIs, and of samples in one block, set to 0; 0 switches it off.
    scale : the crop is multiplied by U(1 − scale, 1 + scale).
    noise : sd of the Gaussian noise added everywhere.
    """

    crop: int = 100
    zeroed_rois: float = 0.1
    zeroed_samples: float = 0.3
    scale: float = 0.2
    noise: float = 0.1

    def __post_init__(self) -> None:
        for name in ("zeroed_rois", "zeroed_samples", "scale"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"views.{name}: expected a value from 0 to 1, found {getattr(self, name)}")
        if self.noise < 0:
            raise UserError(f"views.noise: expected at least 0, found {self.noise}")


class Views(NamedTuple):
    """A batch as the objective reads it; the two views lie one after the other in the first dimension.

    Attributes
    ----------
    bold : [2·m, ROI, crop] float32; the first m crops are view 1 of the m scans, the others view 2.
    present : [m, N, P] bool, tokens with data, the same for both views; None when all have.
    mask : [2·m, N, P] bool, tokens hidden from the student; None in steps without masking.
    """

    bold: Tensor
    present: Tensor | None
    mask: Tensor | None

    def part(self, start: int, stop: int) -> Views:
        """Both views of the scans ``start`` … ``stop`` − 1."""

        def rows(values: Tensor) -> Tensor:
            both: Tensor = values.unflatten(0, (2, -1))[:, start:stop].flatten(0, 1)
            return both

        return Views(
            rows(self.bold),
            None if self.present is None else self.present[start:stop],
            None if self.mask is None else rows(self.mask),
        )


def augment(
    crops: Tensor,
    settings: ViewSettings,
    generator: torch.Generator,
    n_draws: int | None = None,
    part: Callable[[Tensor], Tensor] = lambda draws: draws,
) -> Tensor:
    """Zero some ROIs and one block of samples, scale, add noise: [B, ROI, T] → the same shape.

    max(1, ⌊ROI·u⌋) ROIs with u ~ U(0, zeroed_rois); a block of max(1, ⌊T·u⌋) samples with u ~ U(0, zeroed_samples)
    and a uniform start.

    Parameters
    ----------
    n_draws, part : with several processes, the crops of all of them, and which of so many draws are this one's.
    """
    n_rois, n_samples = crops.shape[1:]
    n_draws, device = n_draws or len(crops), crops.device

    def uniform(*shape: int) -> Tensor:
        return part(torch.rand(n_draws, *shape, generator=generator, device=device, dtype=torch.float64))

    factor = 1 + settings.scale * (2 * uniform(1, 1) - 1)
    if settings.zeroed_rois:
        count = (uniform() * settings.zeroed_rois * n_rois).floor().clamp(min=1).long()
        factor = factor * ~smallest(uniform(n_rois), count)[:, :, None]
    crops = crops * factor.to(crops.dtype)
    if settings.zeroed_samples:
        length = (uniform(1) * settings.zeroed_samples * n_samples).floor().clamp(min=1)
        start = (uniform(1) * (n_samples - length + 1)).floor()
        sample = torch.arange(n_samples, device=device)
        kept_samples = (sample < start) | (sample >= start + length)
        crops.mul_(kept_samples[:, None, :])
    if settings.noise:
        noise = part(torch.randn(n_draws, n_rois, n_samples, generator=generator, device=device))
        crops.add_(noise, alpha=settings.noise)
    return crops
