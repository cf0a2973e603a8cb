"""How far features spread: what tells a training that works from one that collapses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def effective_rank(features: Tensor) -> Tensor:
    """exp(entropy) of the normalised eigenvalues of the covariance of ``features`` [m, p] (Roy & Vetterli 2007)."""
    centred = features - features.mean(dim=0)
    gram = centred @ centred.T if len(features) < features.shape[1] else centred.T @ centred
    eigenvalues = torch.linalg.eigvalsh(gram.nan_to_num()).clamp(min=0)
    share = eigenvalues / eigenvalues.sum().clamp(min=1e-12)
    rank = torch.exp(-(share * share.clamp(min=1e-12).log()).sum())
    return torch.where(gram.isfinite().all(), rank, torch.nan)


def token_cosine(tokens: Tensor) -> Tensor:
    """Mean cosine of two different tokens of a crop, of ``tokens`` [B, 1 + n, D] with CLS first; 1 is collapse.

    NaN where there is the CLS token alone.
    """
    units = F.normalize(tokens[:, 1:].float(), dim=-1)
    n_tokens = units.shape[1]
    if not n_tokens:
        return torch.full((), torch.nan, device=tokens.device)
    total = units.sum(dim=1).square().sum(dim=-1)
    return ((total - n_tokens) / max(1, n_tokens * (n_tokens - 1))).mean()
