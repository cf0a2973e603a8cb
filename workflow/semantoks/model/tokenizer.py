"""From BOLD patches to one token per network and patch (METHOD §2)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

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
    dense_rows: Tensor
    long_rows: Tensor
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
        # a function of the class: a bound one would go on reading the weights of this object in a copy of it
        self._tokens_of = SemanticTokenizer._tokens

        self.register_buffer("kernel_norm", torch.ones(n_networks, max(channels)))
        self._freeze_kernel_norm()
        self._register_layout(sizes, channels)
        # 1 where a tap of the long kernel carries input sample s to output sample t, [tap, t·patch + s]; a product with
        # it, other than picking taps, has its gradient summed in the same order on every device
        samples = torch.arange(patch)
        tap_of = (samples[:, None] + _LONG_CENTRE - samples[None, :]).flatten()
        self.register_buffer("toeplitz", (torch.arange(LONG_TAPS)[:, None] == tap_of).float(), persistent=False)

    def _register_layout(self, sizes: list[int], channels: list[int]) -> None:
        """Where, with all networks side by side, the inputs of the dense branch and of the long branch's channels lie.

        Rows are ROIs in network order, three each for the dense branch; padding reads those after the last, zeros.
        """
        members = [torch.from_numpy(rois) for rois in self.networks.members()]
        self._sizes, self._channels = sizes, channels
        self.register_buffer("roi_order", torch.cat(members), persistent=False)
        zeros = self.networks.n_rois
        dense_rows = torch.full((len(sizes), _aligned(3 * max(sizes))), 3 * zeros)
        long_rows = torch.full((len(sizes), _aligned(max(channels))), zeros)
        starts = [0, *itertools.accumulate(sizes)]
        for index, (start, size, heads) in enumerate(zip(starts, sizes, self.heads, strict=False)):
            dense_rows[index, : 3 * size] = torch.arange(3 * start, 3 * (start + size))
            long_rows[index, : channels[index]] = torch.arange(start, start + size).repeat_interleave(heads)
        live = long_rows.flatten() < zeros
        self.register_buffer("dense_rows", dense_rows.flatten(), persistent=False)
        self.register_buffer("long_rows", long_rows.flatten(), persistent=False)
        self.register_buffer("live_channels", live.nonzero()[:, 0], persistent=False)

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
        tokens: Tensor = self._tokens_of(self, rows, n_scans)
        return tokens

    def compile_parts(self) -> None:
        """``torch.compile`` all but the order of the samples, which compiled code would look up again and again."""
        # a mean over a patch that is written out as a sum takes a quarter of the time of a reduction
        options: dict[str, Any] = {"unroll_reductions_threshold": self.patch + 1}
        self._tokens_of = torch.compile(SemanticTokenizer._tokens, dynamic=False, options=options)

    def _tokens(self, rows: Tensor, n_scans: int) -> Tensor:
        """Tokens [B, N, P, D] of ROIs in network order, [ROI, patch, B·P]."""
        if rows.device.type == "cpu" and len(self._sizes) <= _LOOP_LIMIT:
            pooled = torch.stack(list(self._pooled_in_turn(rows)))
        else:
            pooled = self._pooled_at_once(rows)
        tokens = pooled.unflatten(-1, (n_scans, -1)).permute(2, 0, 3, 1)
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
        matrices = self._toeplitz_matrices().index_select(0, self.live_channels).split(self._channels)
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
        rows = F.pad(rows, (0, 0, 0, 0, 0, 1))
        columns = _with_neighbours(rows).index_select(0, self.dense_rows).view(n_networks, -1, length)
        channels = torch.bmm(self._toeplitz_matrices(), rows.index_select(0, self.long_rows))
        channels = channels.view(n_networks, -1, length)
        dense_weight = _widened(self.dense_weight.flatten(2), columns.shape[1])
        dense = torch.bmm(dense_weight, columns) + self.dense_bias[..., None]
        long = torch.bmm(_widened(self.long_weight, channels.shape[1]), channels) + self.long_bias[..., None]
        return self._pooled(dense, long)

    def _toeplitz_matrices(self) -> Tensor:
        """Long convolution of each channel inside a patch, with its skip on the diagonal; padding's are zero.

        [N·channels, output sample, input sample].
        """
        n_channels = len(self.long_rows) // len(self._sizes)
        kernels = _widened(self.kernels().transpose(1, 2), n_channels).transpose(1, 2).flatten(0, 1)
        skip = _widened(self.long_skip, n_channels).flatten()
        with torch.autocast(skip.device.type, enabled=False):
            matrices = (kernels @ self.toeplitz).view(-1, self.patch, self.patch)
        return matrices + torch.diag_embed(skip[:, None].expand(-1, self.patch))


def _aligned(size: int) -> int:
    """The next multiple of 8: GPUs multiply others at a third of the speed."""
    return -(-size // 8) * 8


def _widened(weights: Tensor, size: int) -> Tensor:
    """Zeros appended to the last dimension up to ``size``."""
    return F.pad(weights, (0, size - weights.shape[-1]))


def _with_neighbours(rows: Tensor) -> Tensor:
    """Each ROI one sample late, as it is, and one early, zero-padded inside the patch: the input of kernel 3.

    [ROI, patch, B·P] → [ROI·3, patch·B·P].
    """
    padded = F.pad(rows, (0, 0, 1, 1))
    columns = torch.stack([padded[:, tap : tap + rows.shape[1]] for tap in range(3)], dim=1)
    return columns.flatten(2).flatten(0, 1)


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

    def compile_parts(self) -> None:
        """``torch.compile`` it in place."""
        self.compile(dynamic=False)

    def filters(self) -> dict[str, Tensor]:
        """The weights of each output for the samples of a patch, shared by all ROIs: [width, patch]."""
        return {"all ROIs": self.projection.weight}
