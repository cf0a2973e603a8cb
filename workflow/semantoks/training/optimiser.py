"""AdamW on float32 weights with the gradient norm clipped, as one step (METHOD §7)."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from semantoks.objectives.parallel import sum_gradients

SPARED = re.compile(r"bias$|norm|scale$|skip$|cls_token$|embedding$")
"""Names of what weight decay may spare: biases, norms, scales, the filters' skip, single tokens. Not their number of
dimensions, because the tokenizer holds the vectors of all networks side by side."""


def make_optimiser(parameters: Iterable[tuple[str, nn.Parameter]], decay_all: bool = True) -> torch.optim.AdamW:
    """AdamW(.9, .999, 1e-8); weight decay on every named parameter, or only on those not ``SPARED``."""
    named = list(parameters)
    decayed = [parameter for name, parameter in named if decay_all or not SPARED.search(name)]
    spared = [parameter for name, parameter in named if not decay_all and SPARED.search(name)]
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
