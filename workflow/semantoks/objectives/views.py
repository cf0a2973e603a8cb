"""Two random, augmented crops per scan, made on the device for a whole batch at once (METHOD §6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from semantoks.corpus import Corpus


@dataclass(frozen=True)
class ViewSettings:
    """Crops and their augmentation.

    Attributes
    ----------
    crop : samples per crop.
    zeroed_rois, zeroed_samples : largest share of ROIs, and of samples in one block, set to 0.
    scale : the crop is multiplied by U(1 − scale, 1 + scale).
    noise : sd of the Gaussian noise added everywhere.
    """

    crop: int = 100
    zeroed_rois: float = 0.1
    zeroed_samples: float = 0.3
    scale: float = 0.2
    noise: float = 0.1


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


def draw_crops(corpus: Corpus, scans: Tensor, settings: ViewSettings, generator: torch.Generator) -> Tensor:
    """Two crops per scan with i.i.d. uniform starts, augmented: [2·m, ROI, crop] float32.

    Parameters
    ----------
    scans : [m] indices into the corpus, on its device.
    """
    doubled = scans.repeat(2)
    n_starts = (corpus.lengths[doubled] - settings.crop + 1).clamp(min=1)
    uniform = torch.rand(len(doubled), generator=generator, device=scans.device, dtype=torch.float64)
    starts = (uniform * n_starts).long()
    return augment(corpus.crops(doubled, starts, settings.crop), settings, generator)


def augment(crops: Tensor, settings: ViewSettings, generator: torch.Generator) -> Tensor:
    """Zero some ROIs and one block of samples, scale, add noise; [B, ROI, T] → the same shape.

    max(1, ⌊ROI·u⌋) ROIs with u ~ U(0, zeroed_rois); a block of max(1, ⌊T·u⌋) samples with u ~ U(0, zeroed_samples);
    a setting of 0 switches its part off.
    """
    n_crops, n_rois, n_samples = crops.shape
    device = crops.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    factor = 1 + settings.scale * (2 * uniform(n_crops, 1, 1) - 1)
    if settings.zeroed_rois:
        count = (uniform(n_crops, 1) * settings.zeroed_rois * n_rois).floor().clamp(min=1)
        kept_rois = uniform(n_crops, n_rois).argsort(dim=1).argsort(dim=1) >= count
        factor = factor * kept_rois[:, :, None]
    if settings.zeroed_samples:
        length = (uniform(n_crops, 1) * settings.zeroed_samples * n_samples).floor().clamp(min=1)
        start = (uniform(n_crops, 1) * (n_samples - length + 1)).floor()
        sample = torch.arange(n_samples, device=device)
        kept_samples = (sample < start) | (sample >= start + length)
        factor = factor * kept_samples[:, None, :]
    crops = crops * factor
    if settings.noise:
        crops = crops + settings.noise * torch.randn(crops.shape, generator=generator, device=device)
    return crops
