"""Networks trained from nothing on the labels: Brain Network Transformer, and a windowed time-series transformer.

Written from the papers, small. BNT: Kan et al., NeurIPS 2022 (connection profiles as node features, transformer
without positions, orthonormal clustering readout). Windows: in the spirit of BolT, Bedel et al., Medical Image
Analysis 88, 2023 (time points as tokens, attention within overlapping windows, a CLS token per window that sees the
fringe around it, CLS tokens averaged).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from semantoks.baselines.features import Index, Matrix
from semantoks.baselines.network_training import TrainingSettings, plain_groups


class BrainNetworkTransformer(nn.Module):
    """FC [B, ROI, ROI] → [B, outputs].

    Parameters
    ----------
    n_rois, outputs : sizes.
    width : of the tokens; ``clusters`` and ``readout`` size of the orthonormal clustering readout.
    """

    centres: Tensor

    def __init__(self, n_rois: int, outputs: int, width: int = 64, clusters: int = 10, readout: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(n_rois, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        centres = torch.empty(clusters, width)
        nn.init.orthogonal_(centres)
        self.register_buffer("centres", centres)
        self.reduce = nn.Linear(width, readout)
        self.classify = nn.Sequential(nn.Linear(clusters * readout, 32), nn.LeakyReLU(), nn.Linear(32, outputs))

    def forward(self, connectivity: Tensor) -> Tensor:
        """Connection profiles are the nodes' features; nodes are pooled by soft assignment to fixed centres."""
        nodes = self.layers(self.embed(connectivity))
        assignment = torch.softmax(nodes @ self.centres.T, dim=-1)
        pooled = assignment.transpose(1, 2) @ self.reduce(nodes)
        output: Tensor = self.classify(pooled.flatten(1))
        return output


class WindowTransformer(nn.Module):
    """BOLD [B, ROI, T] → [B, outputs].

    Parameters
    ----------
    n_rois, outputs : sizes.
    window, stride : frames of a window, and between windows' starts.
    fringe : frames before and after a window that its tokens also see; it doubles in the second block.
    """

    def __init__(
        self, n_rois: int, outputs: int, width: int = 64, window: int = 20, stride: int = 10, fringe: int = 10
    ) -> None:
        super().__init__()
        self.window, self.stride, self.fringe = window, stride, fringe
        self.embed = nn.Linear(n_rois, width)
        self.cls_token = nn.Parameter(0.02 * torch.randn(width))
        self.position_embedding = nn.Parameter(0.02 * torch.randn(window + 4 * fringe + 1, width))
        self.attention = nn.ModuleList(nn.MultiheadAttention(width, 4, 0.1, batch_first=True) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(2)
        )
        self.classify = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))

    def forward(self, bold: Tensor) -> Tensor:
        """Two blocks of attention from each window (and its CLS token) to itself and its fringe."""
        frames = self.embed(bold.transpose(1, 2))
        n_windows = max(1, (frames.shape[1] - self.window) // self.stride + 1)
        cls = self.cls_token.expand(len(frames), n_windows, -1)
        for number, attention in enumerate(self.attention):
            windows = self._windows(frames, self.fringe * (number + 1), n_windows)
            seen = torch.cat([cls[:, :, None], windows], dim=2).flatten(0, 1)
            seen = self.norms[2 * number](seen + self.position_embedding[: seen.shape[1]])
            start = 1 + self.fringe * (number + 1)
            query = torch.cat([seen[:, :1], seen[:, start : start + self.window]], dim=1)
            made = query + attention(query, seen, seen, need_weights=False)[0]
            made = made + self.mlps[number](self.norms[2 * number + 1](made))
            made = made.unflatten(0, (len(frames), n_windows))
            cls, frames = made[:, :, 0], self._joined(made[:, :, 1:], frames.shape[1])
        output: Tensor = self.classify(cls.mean(dim=1))
        return output

    def _windows(self, frames: Tensor, fringe: int, n_windows: int) -> Tensor:
        """[B, T, D] → [B, windows, window + 2·fringe, D], zeros outside."""
        needed = (n_windows - 1) * self.stride + self.window
        padded = nn.functional.pad(frames, (0, 0, fringe, fringe + max(0, needed - frames.shape[1])))
        return padded.unfold(1, self.window + 2 * fringe, self.stride)[:, :n_windows].transpose(2, 3)

    def _joined(self, windows: Tensor, n_frames: int) -> Tensor:
        """Overlapping windows [B, windows, window, D] averaged back to frames [B, T, D]; uncovered frames are 0."""
        n_windows = windows.shape[1]
        length = max(n_frames, (n_windows - 1) * self.stride + self.window)
        total = windows.new_zeros(len(windows), length, windows.shape[-1])
        count = windows.new_zeros(length, 1)
        for number in range(n_windows):
            frames = slice(number * self.stride, number * self.stride + self.window)
            total[:, frames] = total[:, frames] + windows[:, number]
            count[frames] += 1
        return (total / count.clamp(min=1))[:, :n_frames]


class FromNothing:
    """A freshly initialised network, all parameters at one rate."""

    def __init__(self, kind: type[nn.Module], n_rois: int, outputs: int, seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module: nn.Module = kind(n_rois, outputs)

    def groups(self, settings: TrainingSettings) -> list[dict[str, Any]]:
        """Weight decay on weights only."""
        return plain_groups(self.module, settings)


class Matrices:
    """Correlation matrices [participants, ROI, ROI]; the same at training and at test."""

    def __init__(self, matrices: Matrix, batch: int = 64) -> None:
        self.matrices, self.batch = torch.from_numpy(matrices), batch

    @classmethod
    def from_edges(cls, edges: Matrix, n_rois: int) -> Matrices:
        """From Fisher-z edges [participants, ROI·(ROI−1)/2]; unknown ones are 0, the diagonal 1."""
        first, second = np.triu_indices(n_rois, 1)
        matrices = np.tile(np.eye(n_rois, dtype=np.float32), (len(edges), 1, 1))
        matrices[:, first, second] = matrices[:, second, first] = np.tanh(np.nan_to_num(edges))
        return cls(matrices)

    def training(self, participants: Index, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The participants' matrices."""
        return (self.matrices[torch.tensor(participants)],)

    def testing(self, participants: Index) -> Iterator[tuple[Index, tuple[Tensor, ...]]]:
        """The participants' matrices in batches."""
        for first in range(0, len(participants), self.batch):
            part = participants[first : first + self.batch]
            yield part, (self.matrices[torch.tensor(part)],)


def without_mask(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The BOLD alone: these networks know no absent tokens, absent parcels are 0."""
    return (inputs[0],)
