"""From BOLD patches to one token per network and patch (METHOD §2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from semantoks.model.networks import NetworkTable

LONG_TAPS = 16
"""Taps of the structured long convolution: 4 + 4 + 8."""
_LONG_SCALES = ((1, 4.0), (1, 2.0), (2, 1.0))
"""Upsampling and factor of its three kernels of 4 taps, nearest sample first."""
_LONG_CENTRE = 8
"""y[t] = sum_j k[j] x[t + 8 - j]."""


class SemanticTokenizer(nn.Module):
    """One token per network and patch, from a dense and a structured long convolution.

    All networks are computed in one batched product: their parameters are stored side by side, padded with
    zeros to the largest network. Padding meets zero input only, so its gradient and every update are zero.

    Parameters
    ----------
    networks : ROIs of each network.
    width : D, size of a token.
    dense_width : D1, output channels of the dense branch; the long branch has ``width - dense_width``.
    patch : samples per patch.
    """

    roi_slots: Tensor
    channel_rois: Tensor
    toeplitz_taps: Tensor
    kernel_norm: Tensor

    def __init__(self, networks: NetworkTable, width: int, dense_width: int, patch: int = 20) -> None:
        super().__init__()
        self.networks, self.patch = networks, patch
        self.long_width = width - dense_width
        n_networks, sizes = len(networks.names), networks.sizes
        self.heads = [math.ceil(self.long_width / size) for size in sizes]
        channels = [heads * size for heads, size in zip(self.heads, sizes, strict=True)]

        self.dense_weight = nn.Parameter(torch.zeros(n_networks, dense_width, max(sizes), 3))
        self.dense_bias = nn.Parameter(torch.zeros(n_networks, dense_width))
        self.long_kernels = nn.Parameter(torch.zeros(n_networks, max(channels), len(_LONG_SCALES), 4))
        self.long_skip = nn.Parameter(torch.zeros(n_networks, max(channels)))
        self.long_weight = nn.Parameter(torch.zeros(n_networks, self.long_width, max(channels)))
        self.long_bias = nn.Parameter(torch.zeros(n_networks, self.long_width))
        self.norm_weight = nn.Parameter(torch.ones(n_networks, width))
        self.norm_bias = nn.Parameter(torch.zeros(n_networks, width))
        self._initialise(sizes, channels)

        self.register_buffer("kernel_norm", torch.ones(n_networks, max(channels)))
        self.freeze_kernel_norm()
        padding = networks.n_rois
        roi_slots = torch.full((n_networks, max(sizes)), padding)
        channel_rois = torch.full((n_networks, max(channels)), padding)
        for index, (members, heads) in enumerate(zip(networks.members(), self.heads, strict=True)):
            rois = torch.from_numpy(members)
            roi_slots[index, : len(rois)] = rois
            channel_rois[index, : len(rois) * heads] = rois.repeat_interleave(heads)
        self.register_buffer("roi_slots", roi_slots.flatten(), persistent=False)
        self.register_buffer("channel_rois", channel_rois.flatten(), persistent=False)
        # tap of the long kernel that carries input sample s to output sample t; LONG_TAPS where none does
        samples = torch.arange(patch)
        taps = samples[None, :] + _LONG_CENTRE - samples[:, None]
        taps = torch.where((taps >= 0) & (taps < LONG_TAPS), taps, LONG_TAPS)
        self.register_buffer("toeplitz_taps", taps.flatten(), persistent=False)

    def _initialise(self, sizes: list[int], channels: list[int]) -> None:
        """Library defaults of Conv1d and Linear: uniform within ±1/sqrt(fan-in); kernels and skip N(0, 1)."""
        with torch.no_grad():
            for index, (size, n_channels) in enumerate(zip(sizes, channels, strict=True)):
                dense_bound, long_bound = 1 / math.sqrt(size * 3), 1 / math.sqrt(n_channels)
                self.dense_weight[index, :, :size].uniform_(-dense_bound, dense_bound)
                self.dense_bias[index].uniform_(-dense_bound, dense_bound)
                self.long_kernels[index, :n_channels].normal_()
                self.long_skip[index, :n_channels].normal_()
                self.long_weight[index, :, :n_channels].uniform_(-long_bound, long_bound)
                self.long_bias[index].uniform_(-long_bound, long_bound)

    def freeze_kernel_norm(self) -> None:
        """Set ``kernel_norm`` to the L2 norm of the kernels as they are now; done once, before any training."""
        norm = self._unscaled_kernels().detach().norm(dim=-1)
        self.kernel_norm.copy_(torch.where(norm > 0, norm, 1.0))

    def _unscaled_kernels(self) -> Tensor:
        """Kernels of 16 taps before division by their norm, [N, channel, 16]."""
        parts = [
            self.long_kernels[:, :, scale].repeat_interleave(repeats, dim=-1) * factor
            for scale, (repeats, factor) in enumerate(_LONG_SCALES)
        ]
        return torch.cat(parts, dim=-1)

    def kernels(self) -> Tensor:
        """Normalised kernels of the long convolution, [N, channel, 16]; channel = roi·heads + head."""
        return self._unscaled_kernels() / self.kernel_norm[..., None]

    def forward(self, bold: Tensor) -> Tensor:
        """Tokens [B, N, P, D] of BOLD [B, ROI, T], with P = ⌊T / patch⌋; left-over samples are not read."""
        n_scans, n_rois, n_samples = bold.shape
        n_patches = n_samples // self.patch
        rows = bold[..., : n_patches * self.patch].transpose(0, 1).reshape(n_rois, -1, self.patch)
        rows = F.pad(rows, (0, 0, 0, 0, 0, 1))  # one ROI of zeros, for padding
        features = torch.cat([self._dense(rows), self._long(rows)], dim=1)
        tokens = F.gelu(features).unflatten(-1, (n_scans, n_patches, self.patch)).mean(dim=-1)
        tokens = F.layer_norm(tokens.permute(2, 0, 3, 1), (tokens.shape[1],))
        return tokens * self.norm_weight[:, None, :] + self.norm_bias[:, None, :]

    def _dense(self, rows: Tensor) -> Tensor:
        """Convolution over all ROIs of a network, kernel 3: [ROI + 1, B·P, patch] → [N, D1, B·P·patch]."""
        padded = F.pad(rows, (1, 1))
        columns = torch.stack([padded[..., tap : tap + self.patch] for tap in range(3)], dim=1).flatten(2)
        columns = columns[self.roi_slots].view(len(self.networks.names), -1, columns.shape[-1])
        return torch.baddbmm(self.dense_bias[..., None], self.dense_weight.flatten(2), columns)

    def _long(self, rows: Tensor) -> Tensor:
        """Depthwise long convolution with skip, then projection: [ROI + 1, B·P, patch] → [N, D2, B·P·patch].

        Inside a patch the convolution of a channel is one product with a patch × patch Toeplitz matrix, and the
        skip is its diagonal.
        """
        kernels = F.pad(self.kernels(), (0, 1)).flatten(0, 1)
        matrices = kernels[:, self.toeplitz_taps].view(-1, self.patch, self.patch)
        matrices = matrices + torch.diag_embed(self.long_skip.flatten()[:, None].expand(-1, self.patch))
        channels = torch.bmm(rows[self.channel_rois], matrices.to(rows.dtype))
        channels = channels.view(len(self.networks.names), -1, rows.shape[1] * self.patch)
        return torch.baddbmm(self.long_bias[..., None], self.long_weight, channels)


class LinearTokenizer(nn.Module):
    """One token per ROI and patch by one shared linear map of the patch's samples (an ablation in the paper)."""

    def __init__(self, networks: NetworkTable, width: int, patch: int = 20) -> None:
        super().__init__()
        self.networks, self.patch = networks, patch
        self.projection = nn.Linear(patch, width)

    def forward(self, bold: Tensor) -> Tensor:
        """Tokens [B, ROI, P, D] of BOLD [B, ROI, T]."""
        n_patches = bold.shape[-1] // self.patch
        tokens: Tensor = self.projection(bold[..., : n_patches * self.patch].unflatten(-1, (n_patches, self.patch)))
        return tokens
