"""The transformer over network tokens, its scan features, and the projection head (METHOD §3)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from semantoks.errors import UserError
from semantoks.model.networks import NetworkTable
from semantoks.model.tokenizer import LinearTokenizer, SemanticTokenizer


@dataclass(frozen=True)
class ModelSettings:
    """Sizes of an encoder and its projection head; the defaults are those of the published model.

    Attributes
    ----------
    width : D, size of a token.
    dense_width : D1, channels of the tokenizer's dense branch; the long branch has the other ``width - D1``.
    depth : transformer blocks.
    head_width : size of an attention head.
    mlp_width : hidden units of a block's MLP.
    layer_scale : initial value of LayerScale.
    patch : samples per patch.
    tokenizer : ``semantic`` (one token per network) or ``linear`` (one per ROI).
    projection_hidden, projection_width : hidden and output units of the projection head.
    """

    width: int = 768
    dense_width: int = 384
    depth: int = 8
    head_width: int = 64
    mlp_width: int = 3072
    layer_scale: float = 0.1
    patch: int = 20
    tokenizer: Literal["semantic", "linear"] = "semantic"
    projection_hidden: int = 1024
    projection_width: int = 128

    def __post_init__(self) -> None:
        for name in ("width", "depth", "head_width", "mlp_width", "patch", "projection_hidden", "projection_width"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}: expected at least 1, found {getattr(self, name)}")
        if self.width % self.head_width or self.width % 2:
            raise UserError(
                f"model.width: expected an even multiple of model.head_width ({self.head_width}), found {self.width}"
            )
        if self.tokenizer == "semantic" and not 0 < self.dense_width < self.width:
            raise UserError(
                f"model.dense_width: expected a value between 0 and model.width ({self.width}), "
                f"found {self.dense_width}; the long convolution gets the rest"
            )

    def as_dict(self) -> dict[str, Any]:
        """All sizes, JSON-able."""
        return asdict(self)


SHORT = 128
"""Up to so many tokens the attention made for long sequences is not the fastest: forward and backward pass take a CPU
six times as long as plain products, a GPU half as long again as the memory-efficient kind."""


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q·kᵀ / √d)·v of [B, heads, n, d], the softmax in at least float32."""
    if key.shape[2] > SHORT:
        return F.scaled_dot_product_attention(query, key, value)
    if query.device.type != "cpu":
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            return F.scaled_dot_product_attention(query, key, value)
    shape, size = query.shape, query.shape[-1]
    query, key, value = (part.flatten(0, 1) for part in (query * size**-0.5, key, value))
    products = torch.bmm(query, key.transpose(1, 2))
    weights = products.softmax(-1, dtype=torch.promote_types(products.dtype, torch.float32)).to(products.dtype)
    return torch.bmm(weights, value).view(shape)


class Attention(nn.Module):
    """Multi-head self-attention; the rows of ``qkv`` are [q | k | v], head-major inside each, without bias."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width)

    def forward(self, tokens: Tensor, n_queries: int | None = None) -> Tensor:
        """Attend from the first ``n_queries`` tokens (all by default) to all: [B, n, D] → [B, n_queries, D]."""
        width = tokens.shape[-1]
        if n_queries is None:
            query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        else:
            query = F.linear(tokens[:, :n_queries], self.qkv.weight[:width])
            key, value = F.linear(tokens, self.qkv.weight[width:]).chunk(2, dim=-1)
        query, key, value = (part.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for part in (query, key, value))
        attended = attend(query, key, value)
        projected: Tensor = self.projection(attended.transpose(1, 2).flatten(2))
        return projected


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale on both branches."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        width = settings.width
        self.attention_norm = nn.LayerNorm(width, eps=1e-5)
        self.attention = Attention(width, settings.head_width)
        self.attention_scale = nn.Parameter(torch.full((width,), settings.layer_scale))
        self.mlp_norm = nn.LayerNorm(width, eps=1e-5)
        self.mlp_in = nn.Linear(width, settings.mlp_width)
        self.mlp_out = nn.Linear(settings.mlp_width, width)
        self.mlp_scale = nn.Parameter(torch.full((width,), settings.layer_scale))

    def forward(self, tokens: Tensor, n_queries: int | None = None) -> Tensor:
        """[B, n, D] → [B, n, D], or only the first ``n_queries`` tokens of it."""
        attended = self.attention(self.attention_norm(tokens), n_queries)
        tokens = tokens[:, :n_queries] + self.attention_scale * attended
        hidden = F.gelu(self.mlp_in(self.mlp_norm(tokens)))
        result: Tensor = tokens + self.mlp_scale * self.mlp_out(hidden)
        return result


class Encoder(nn.Module):
    """BOLD → tokens.

    Parameters
    ----------
    settings : sizes.
    networks : ROIs of each network; with the linear tokenizer every ROI is its own network.
    """

    def __init__(self, settings: ModelSettings, networks: NetworkTable) -> None:
        super().__init__()
        self.settings, self.networks = settings, networks
        width = settings.width
        self.tokenizer: SemanticTokenizer | LinearTokenizer
        if settings.tokenizer == "semantic":
            self.tokenizer = SemanticTokenizer(networks, width, settings.dense_width, settings.patch)
            self.n_networks = len(networks.names)
        else:
            self.tokenizer = LinearTokenizer(networks, width, settings.patch)
            self.n_networks = networks.n_rois
        self.cls_token = nn.Parameter(0.02 * torch.randn(width))
        self.mask_embedding = nn.Parameter(0.02 * torch.randn(width))
        self.network_embedding = nn.Parameter(0.02 * torch.randn(self.n_networks, width))
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self._sequence_of = Encoder._sequence

    def compile_parts(self) -> None:
        """``torch.compile`` tokenizer and blocks in place.

        All blocks of all encoders share what is compiled for one, once with and once without gradients.
        """
        self.tokenizer.compile_parts()
        self._sequence_of = torch.compile(Encoder._sequence, dynamic=False)
        for block in self.blocks:
            block.compile(dynamic=False)

    def forward(self, bold: Tensor, mask: Tensor | None = None, only_cls: bool = False) -> Tensor:
        """Encode crops.

        Parameters
        ----------
        bold : [B, ROI, T] float32, z-scored.
        mask : [B, N, P] bool, True = masked; None masks nothing and leaves the mask embedding without gradient.
        only_cls : return [B, 1, D], without computing what the CLS token of the last block does not read.

        Returns
        -------
        Tokens [B, 1 + N·P, D]: CLS, then network-major (token 1 + n·P + p).
        """
        return self.encode_tokens(self.tokenizer(bold), mask, only_cls)

    def encode_tokens(self, tokens: Tensor, mask: Tensor | None = None, only_cls: bool = False) -> Tensor:
        """The transformer alone, on tokens [B, N, P, D] of the tokenizer."""
        tokens = self._sequence_of(self, tokens, mask)
        last = len(self.blocks) - 1
        for depth, block in enumerate(self.blocks):
            tokens = block(tokens, 1 if only_cls and depth == last else None)
        normalised: Tensor = self.norm(tokens[:, :1] if only_cls else tokens)
        return normalised

    def _sequence(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """CLS and the tokens, masked, with network and temporal position: [B, N, P, D] → [B, 1 + N·P, D]."""
        n_scans, _, n_patches, width = tokens.shape
        if mask is not None:
            tokens = torch.where(mask[..., None], self.mask_embedding.to(tokens.dtype), tokens)
        positions = temporal_positions(n_patches, width, tokens.device)
        tokens = tokens + self.network_embedding[:, None, :] + positions.to(self.network_embedding.dtype)
        return torch.cat([self.cls_token.expand(n_scans, 1, width), tokens.flatten(1, 2)], dim=1)


def temporal_positions(n_patches: int, width: int, device: torch.device | None = None) -> Tensor:
    """Fixed position of patch p, float64 [P, D]: [sin(p·ω) | cos(p·ω)] with ω_i = 10000^(−i / (D/2))."""
    index = torch.arange(width // 2, device=device, dtype=torch.float64)
    frequencies = torch.exp(index * (-math.log(10000.0) / (width // 2)))
    angles = torch.arange(n_patches, device=device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def scan_features(tokens: Tensor, present: Tensor | None = None) -> Tensor:
    """``cls_avg`` = [mean of the N·P tokens | CLS], [B, 2·D], of encoder tokens [B, 1 + N·P, D].

    Parameters
    ----------
    present : [B, N, P] bool; when given, the mean is over these tokens only.
    """
    patches = tokens[:, 1:]
    if present is None:
        mean = patches.mean(dim=1)
    else:
        weight = present.flatten(1).to(tokens.dtype)
        mean = torch.einsum("bn,bnd->bd", weight / weight.sum(dim=1, keepdim=True).clamp(min=1), patches)
    return torch.cat([mean, tokens[:, 0]], dim=-1)


class ProjectionHead(nn.Module):
    """Linear, GELU, Linear, L2-normalised: [..., D] → [..., p]; shared by CLS, network and patch tokens."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.hidden = nn.Linear(settings.width, settings.projection_hidden)
        self.output = nn.Linear(settings.projection_hidden, settings.projection_width)
        for layer in (self.hidden, self.output):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Unit-norm projections [..., p], normalised in at least float32 also under autocast."""
        projected = self.output(F.gelu(self.hidden(tokens)))
        return F.normalize(projected if projected.dtype == torch.float64 else projected.float(), dim=-1)
