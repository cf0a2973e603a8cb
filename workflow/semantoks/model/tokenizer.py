"""From BOLD patches to one token per network and patch (METHOD §2)."""

from __future__ import annotations

import math
from collections.abc import Iterator

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
_LOOP_LIMIT = 64
"""Up to so many networks a CPU takes them in turn."""


class SemanticTokenizer(nn.Module):
    """One token per network and patch, from a dense and a structured long convolution.

    Parameters of all networks are stored side by side, padded with zeros to the largest network, so that batched
    products can take all networks at once. Padding meets zero input only: its gradient and every update are zero.

    Parameters
    ----------
    networks : ROIs of each network.
    width : D, size of a token.
    dense_width : D1, output channels of the dense branch; the long branch has ``width - dense_width``.
    patch : samples per patch.
    """

    roi_order: Tensor
    channel_rows: Tensor
    roi_slots: Tensor
    channel_slots: Tensor
    live_channels: Tensor
    toeplitz: Tensor
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
        self._freeze_kernel_norm()
        self._register_layout(sizes, channels)
        # 1 where a tap of the long kernel carries input sample s to output sample t, [tap, t·patch + s]; a product with
        # it, other than picking taps, has its gradient summed in the same order on every device
        samples = torch.arange(patch)
        tap_of = (samples[:, None] + _LONG_CENTRE - samples[None, :]).flatten()
        self.register_buffer("toeplitz", (torch.arange(LONG_TAPS)[:, None] == tap_of).float(), persistent=False)

    def _register_layout(self, sizes: list[int], channels: list[int]) -> None:
        """Where the ROIs and channels of each network lie: one after another, and side by side with padding."""
        members = [torch.from_numpy(rois) for rois in self.networks.members()]
        self._sizes, self._channels = sizes, channels
        self.register_buffer("roi_order", torch.cat(members), persistent=False)
        heads_of_row = torch.tensor(self.heads).repeat_interleave(torch.tensor(sizes))
        rows = torch.arange(self.networks.n_rois)
        self.register_buffer("channel_rows", rows.repeat_interleave(heads_of_row), persistent=False)
        self.register_buffer("roi_slots", _padded_slots(sizes), persistent=False)
        self.register_buffer("channel_slots", _padded_slots(channels), persistent=False)
        self.register_buffer("live_channels", (self.channel_slots < sum(channels)).nonzero()[:, 0], persistent=False)

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

    @property
    def n_live_parameters(self) -> int:
        """Number of parameters without padding."""
        dense_width, live_channels = self.dense_weight.shape[1], sum(self._channels)
        per_network = sum(parameter[0].numel() for parameter in (self.dense_bias, self.long_bias))
        per_network += sum(parameter[0].numel() for parameter in (self.norm_weight, self.norm_bias))
        per_channel = self.long_kernels[0, 0].numel() + 1 + self.long_width
        return len(self._sizes) * per_network + sum(self._sizes) * dense_width * 3 + live_channels * per_channel

    def _freeze_kernel_norm(self) -> None:
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

    def filters(self) -> dict[str, Tensor]:
        """Long convolution with its skip as one filter of 16 taps per channel, by network: [channels, 16]."""
        taps = self.kernels().clone()
        taps[..., _LONG_CENTRE] += self.long_skip
        return {
            name: taps[index, :channels]
            for index, (name, channels) in enumerate(zip(self.networks.names, self._channels, strict=True))
        }

    def forward(self, bold: Tensor) -> Tensor:
        """Tokens [B, N, P, D] of BOLD [B, ROI, T], with P = ⌊T / patch⌋; left-over samples are not read."""
        n_scans, _, n_samples = bold.shape
        n_patches = n_samples // self.patch
        patches = bold[..., : n_patches * self.patch].unflatten(-1, (n_patches, self.patch))
        rows = patches.permute(1, 3, 0, 2).index_select(0, self.roi_order).flatten(2)
        if torch.is_autocast_enabled(rows.device.type):  # once, instead of in every product
            rows = rows.to(torch.get_autocast_dtype(rows.device.type))
        if bold.device.type == "cpu" and len(self._sizes) <= _LOOP_LIMIT:
            pooled = torch.stack(list(self._pooled_in_turn(rows)))
        else:
            pooled = self._pooled_at_once(rows)
        tokens = pooled.unflatten(-1, (n_scans, n_patches)).permute(2, 0, 3, 1)
        tokens = F.layer_norm(tokens, (tokens.shape[-1],))
        return tokens * self.norm_weight[:, None, :] + self.norm_bias[:, None, :]

    def _pooled(self, dense: Tensor, long: Tensor) -> Tensor:
        """GELU, then the mean over the samples of a patch: two of [..., channels, patch·B·P] → [..., D, B·P]."""
        parts = [F.gelu(features).unflatten(-1, (self.patch, -1)).mean(dim=-2) for features in (dense, long)]
        return torch.cat(parts, dim=-2)

    def _pooled_in_turn(self, rows: Tensor) -> Iterator[Tensor]:
        """Pooled features [D, B·P] of one network after another, in cache and without padding; fastest on a CPU.

        ``rows`` are the ROIs in network order, [ROI, patch, B·P].
        """
        matrices = self._toeplitz_matrices().split(self._channels)
        dense_weights, long_weights = self.dense_weight.unbind(), self.long_weight.unbind()
        for index, own_rows in enumerate(rows.split(self._sizes)):
            heads, n_channels, n_rois = self.heads[index], self._channels[index], self._sizes[index]
            repeated = own_rows.repeat_interleave(heads, dim=0) if heads > 1 else own_rows
            channels = torch.bmm(matrices[index], repeated).flatten(1)
            columns = _with_neighbours(own_rows)
            dense_weight = dense_weights[index][:, :n_rois].flatten(1)
            dense = torch.addmm(self.dense_bias[index, :, None], dense_weight, columns)
            long = torch.addmm(self.long_bias[index, :, None], long_weights[index][:, :n_channels], channels)
            yield self._pooled(dense, long)

    def _pooled_at_once(self, rows: Tensor) -> Tensor:
        """Pooled features [N, D, B·P] of all networks by batched products, without a loop."""
        n_networks, length = len(self._sizes), rows.shape[1] * rows.shape[2]
        columns = F.pad(_with_neighbours(rows).view(len(rows), -1), (0, 0, 0, 1))
        columns = columns.index_select(0, self.roi_slots).view(n_networks, -1, length)
        channels = torch.bmm(self._toeplitz_matrices(), rows.index_select(0, self.channel_rows)).flatten(1)
        channels = F.pad(channels, (0, 0, 0, 1)).index_select(0, self.channel_slots).view(n_networks, -1, length)
        dense = torch.baddbmm(self.dense_bias[..., None], self.dense_weight.flatten(2), columns)
        long = torch.baddbmm(self.long_bias[..., None], self.long_weight, channels)
        return self._pooled(dense, long)

    def _toeplitz_matrices(self) -> Tensor:
        """Long convolution of each channel inside a patch, with its skip on the diagonal.

        [channels, output sample, input sample].
        """
        kernels = self.kernels().flatten(0, 1).index_select(0, self.live_channels)
        skip = self.long_skip.flatten().index_select(0, self.live_channels)
        with torch.autocast(kernels.device.type, enabled=False):
            matrices = (kernels @ self.toeplitz).view(-1, self.patch, self.patch)
        return matrices + torch.diag_embed(skip[:, None].expand(-1, self.patch))


def _with_neighbours(rows: Tensor) -> Tensor:
    """Each ROI one sample late, as it is, and one early, zero-padded inside the patch: the input of kernel 3.

    [ROI, patch, B·P] → [ROI·3, patch·B·P].
    """
    padded = F.pad(rows, (0, 0, 1, 1))
    columns = torch.stack([padded[:, tap : tap + rows.shape[1]] for tap in range(3)], dim=1)
    return columns.flatten(2).flatten(0, 1)


def _padded_slots(sizes: list[int]) -> Tensor:
    """Place of each network's rows, laid one after another, in rows side by side; padding reads one past the end."""
    slots = torch.full((len(sizes), max(sizes)), sum(sizes))
    start = 0
    for index, size in enumerate(sizes):
        slots[index, :size] = torch.arange(start, start + size)
        start += size
    return slots.flatten()


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

    def filters(self) -> dict[str, Tensor]:
        """The weights of each output for the samples of a patch, shared by all ROIs: [width, patch]."""
        return {"all ROIs": self.projection.weight}
