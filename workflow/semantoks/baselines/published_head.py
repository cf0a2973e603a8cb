"""The probe's head as published: BatchNorm + Linear, trained by SGD on every crop (EVALUATION §1).

Heads that differ only in their learning rate see the same batches, so their normalised input is the same: one
product of a batch with the weights of all rates serves them all, and repetitions of equal size stack on top.
The normalisation is folded into the weights and the gradients are written out, so a batch is read, never copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

EPSILON = 1e-5
STATISTICS_MOMENTUM = 0.1
MOMENTUM = 0.9
LARGEST_BATCH = 256
INITIAL_SD = 2e-5


@dataclass(frozen=True)
class Problem:
    """One head to train at every rate: sample numbers, targets and the seed of its batches and initial weights.

    ``target`` holds class ids [n_samples], or standardised numbers when ``n_classes`` is 0, of *all* samples.
    """

    training: npt.NDArray[np.intp]
    target: npt.NDArray
    n_classes: int
    seed: int

    @property
    def outputs(self) -> int:
        """Number of outputs of the head."""
        return max(self.n_classes, 1)


@dataclass
class Heads:
    """Parameters of a stack of heads [problems, rates, …]; running statistics [problems, features]."""

    gamma: Tensor
    beta: Tensor
    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor

    def logits(self, samples: Tensor, problem: int) -> Tensor:
        """Output [samples, rates, outputs] with the running statistics, as at test time."""
        scale = torch.rsqrt(self.variance[problem] + EPSILON)
        weight = self.weight[problem] * self.gamma[problem].unsqueeze(-2)
        shift = self.bias[problem] + (self.weight[problem] @ self.beta[problem].unsqueeze(-1)).squeeze(-1)
        return torch.einsum("nf,rcf->nrc", (samples - self.mean[problem]) * scale, weight) + shift


def batches_of(n_samples: int) -> list[int]:
    """Sizes of an epoch's batches: min(256, n // 8), the last partial one kept.

    No batch has a single sample, which BatchNorm cannot normalise: sizes start at 2 and a last one of 1 is merged.
    """
    size = min(LARGEST_BATCH, max(2, n_samples // 8))
    sizes = [size] * (n_samples // size) + ([n_samples % size] if n_samples % size else [])
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
        sizes[-1] += 1
    return sizes


def initial_parameters(features: int, outputs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Initial weight [outputs, features] (truncated normal, sd 2e-5) and bias [outputs] (library default)."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.nn.init.trunc_normal_(torch.empty(outputs, features), std=INITIAL_SD, generator=generator)
    bound = features**-0.5
    return weight, torch.empty(outputs).uniform_(-bound, bound, generator=generator)


def epoch_orders(n_samples: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """The order of the training samples in each epoch."""
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(epochs):
        yield torch.randperm(n_samples, generator=generator)


def train(samples: Tensor, problems: Sequence[Problem], rates: Sequence[Sequence[float]], epochs: int) -> Heads:
    """Train the heads of problems with equally many training samples and outputs, each at every one of its rates.

    Parameters
    ----------
    samples : [n, features] float32 (best centred: BatchNorm takes out any constant, and small numbers round less).
    problems : at least one.
    rates : learning rates of each problem, equally many, constant over the epochs.
    epochs : passes over the training samples.
    """
    heads = _initial(samples, problems, len(rates[0]))
    parameters = (heads.gamma, heads.beta, heads.weight, heads.bias)
    velocity = [torch.zeros_like(parameter) for parameter in parameters]
    speed = torch.tensor(rates, dtype=torch.float32, device=samples.device)  # [problems, rates]
    numbers = torch.stack([torch.tensor(problem.training) for problem in problems]).to(samples.device)
    kind = torch.int64 if problems[0].n_classes else torch.float32
    targets = torch.stack([torch.as_tensor(p.target[p.training], dtype=kind) for p in problems]).to(samples.device)
    sizes = batches_of(numbers.shape[1])
    for orders in zip(*(epoch_orders(numbers.shape[1], epochs, p.seed) for p in problems), strict=True):
        order = torch.stack(orders).to(samples.device)
        for chosen in order.split(sizes, dim=1):
            rows = numbers.gather(1, chosen)
            batch = samples.index_select(0, rows.flatten()).view(*rows.shape, -1)
            gradients = _gradients(heads, batch, targets.gather(1, chosen), problems[0].n_classes)
            for parameter, moving, gradient in zip(parameters, velocity, gradients, strict=True):
                moving.mul_(MOMENTUM).add_(gradient)
                parameter.addcmul_(moving, speed.view(*speed.shape, *[1] * (parameter.ndim - 2)), value=-1)
    return heads


def _initial(samples: Tensor, problems: Sequence[Problem], n_rates: int) -> Heads:
    features, outputs = samples.shape[1], problems[0].outputs
    drawn = [initial_parameters(features, outputs, problem.seed) for problem in problems]
    weight = torch.stack([weight for weight, _ in drawn]).unsqueeze(1).repeat(1, n_rates, 1, 1)
    bias = torch.stack([bias for _, bias in drawn]).unsqueeze(1).repeat(1, n_rates, 1)
    ones = torch.ones(len(problems), n_rates, features)
    statistics = torch.ones(len(problems), features)
    to = samples.device
    return Heads(
        ones.to(to), torch.zeros_like(ones).to(to), weight.to(to), bias.to(to), 0 * statistics.to(to), statistics.to(to)
    )


def _gradients(heads: Heads, batch: Tensor, target: Tensor, n_classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the mean loss for (gamma, beta, weight, bias); the running statistics are updated.

    ``batch`` is [problems, samples, features]. With x̂ = (x − μ)·s the output is x·(s·γ·w)ᵀ + (b + w·β − μ·(s·γ·w)ᵀ),
    and every gradient follows from Σ ∂logits·x̂, so x̂ is never made.
    """
    count = batch.shape[1]
    # Many times faster than torch.var_mean over rows; exact enough because the samples are centred.
    mean = batch.mean(1)
    variance = (batch.square().mean(1) - mean.square()).clamp_min(0)
    heads.mean.lerp_(mean, STATISTICS_MOMENTUM)
    heads.variance.lerp_(variance * (count / max(count - 1, 1)), STATISTICS_MOMENTUM)
    scale = torch.rsqrt(variance + EPSILON)[:, None, None]
    mean = mean[:, None, None]
    shape = heads.bias.shape
    folded = heads.weight * heads.gamma.unsqueeze(2) * scale
    shift = heads.bias + (heads.weight * heads.beta.unsqueeze(2) - folded * mean).sum(-1)
    flat = folded.flatten(1, 2)
    output = torch.baddbmm(shift.flatten(1).unsqueeze(1), batch, flat.transpose(1, 2)).view(shape[0], count, *shape[1:])
    slope = _slopes(output, target, n_classes) / count
    total = slope.sum(1)
    product = torch.bmm(slope.flatten(2).transpose(1, 2), batch).view_as(folded)
    normalised = (product - total.unsqueeze(-1) * mean) * scale
    gamma = (heads.weight * normalised).sum(2)
    beta = (heads.weight * total.unsqueeze(-1)).sum(2)
    weight = normalised * heads.gamma.unsqueeze(2) + total.unsqueeze(-1) * heads.beta.unsqueeze(2)
    return gamma, beta, weight, total


def _slopes(output: Tensor, target: Tensor, n_classes: int) -> Tensor:
    """Derivative of cross-entropy, or of L1, for each output [problems, samples, rates, outputs]."""
    if not n_classes:
        return torch.sign(output - target[:, :, None, None])
    slope = torch.softmax(output, dim=-1)
    true = torch.nn.functional.one_hot(target, n_classes).to(slope.dtype)
    return slope - true.unsqueeze(2)


def crop_error(output: Tensor, target: Tensor, n_classes: int) -> Tensor:
    """What is chosen on, per rate, smaller is better: −balanced accuracy per crop, or the mean absolute error.

    Parameters
    ----------
    output : [crops, rates, outputs]; a diverged rate (not finite) gets infinity.
    target : [crops].
    """
    if not n_classes:
        error = (output[:, :, 0] - target[:, None]).abs().mean(0)
    else:
        right = (output.argmax(-1) == target[:, None]).to(torch.float64)
        error = -torch.stack([right[target == k].mean(0) for k in torch.unique(target)]).mean(0)
    return torch.where(torch.isfinite(output).all(dim=2).all(dim=0), error, torch.inf)
