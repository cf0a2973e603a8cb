"""AdamW on float32 weights with the gradient norm clipped, as one step (METHOD §7)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from semantoks.objectives.parallel import sum_gradients


def make_optimiser(parameters: Iterable[nn.Parameter], decay_all: bool = True) -> torch.optim.AdamW:
    """AdamW(.9, .999, 1e-8); weight decay on every parameter, or only on those with two or more dimensions."""
    parameters = list(parameters)
    decayed = [parameter for parameter in parameters if decay_all or parameter.ndim > 1]
    spared = [parameter for parameter in parameters if not decay_all and parameter.ndim <= 1]
    groups = [{"params": decayed, "decayed": True}, {"params": spared, "decayed": False}]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.999), eps=1e-8, fused=True)


def optimiser_step(
    optimiser: torch.optim.Optimizer, learning_rate: float, weight_decay: float, max_norm: float
) -> Tensor:
    """Sum gradients over processes, clip, update, clear; returns the gradient norm before clipping.

    A parameter without gradient (the mask embedding in steps without masking) is skipped entirely: no decay, no
    moment update.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    sum_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
        group["weight_decay"] = weight_decay if group["decayed"] else 0.0
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm
