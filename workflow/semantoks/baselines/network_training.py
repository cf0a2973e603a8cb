"""Training a network on the labels of one split: AdamW, cosine, and the best validation epoch really restored.

The same loop serves fine-tuned encoders and networks trained from nothing (EVALUATION §3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from semantoks.baselines.features import Index
from semantoks.baselines.published_head import crop_error
from semantoks.baselines.tasks import Prediction, Task
from semantoks.training.optimiser import SPARED

INITIAL_SD = 2e-5
CPU = torch.device("cpu")


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained on labels.

    Attributes
    ----------
    epochs : passes over the training participants; the learning rate follows a cosine to 0.
    batch : participants per step.
    learning_rate : per 256 participants of batch: 1e-4 is 6.25e-6 at batch 16.
    weight_decay : of weights; none on biases, norms and scales.
    clip_norm : largest gradient norm.
    """

    epochs: int = 50
    batch: int = 16
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    clip_norm: float = 1.0


class Inputs(Protocol):
    """What a network reads. Participants are row numbers of the tasks."""

    def training(self, participants: Index, generator: torch.Generator) -> tuple[Tensor, ...]:
        """One random, augmented input of each participant [B, …]."""
        ...

    def testing(self, participants: Index) -> Iterator[tuple[Index, tuple[Tensor, ...]]]:
        """Every regular input of the participants, in batches, each with its participant."""
        ...


class Network(Protocol):
    """A network with its groups of parameters."""

    module: nn.Module

    def groups(self, settings: TrainingSettings) -> list[dict[str, Any]]:
        """Parameter groups of AdamW: ``params``, ``weight_decay`` and ``lr`` relative to the highest, 1."""
        ...


class Head(nn.Module):
    """BatchNorm and Linear as in the published probe."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.linear = nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.linear.weight, std=INITIAL_SD)

    def forward(self, features: Tensor) -> Tensor:
        """[B, width] → [B, outputs]."""
        output: Tensor = self.linear(self.norm(features))
        return output


def decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: not to what pretraining may spare (biases, norms, tokens), nor to vectors."""
    return parameter.ndim > 1 and not SPARED.search(name)


def plain_groups(module: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """One learning rate for all parameters; weight decay on weights only."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups = []
    for decay in (True, False):
        chosen = [parameter for name, parameter in named if decayed(name, parameter) == decay]
        groups.append({"params": chosen, "weight_decay": settings.weight_decay * decay, "lr": 1.0})
    return [group for group in groups if group["params"]]


def batches(count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """A random order of ``count`` rows in batches; a last single row, which BatchNorm cannot take, is merged."""
    parts = list(torch.randperm(count, generator=generator).split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        last = parts.pop()
        parts[-1] = torch.cat([parts[-1], last])
    return parts


def fit_network(
    network: Network, inputs: Inputs, task: Task, settings: TrainingSettings, device: torch.device = CPU
) -> tuple[Prediction, list[float]]:
    """Train on the training part, keep the epoch that is best on the validation part, predict the test part.

    There is no refit: the validation part chooses the epoch. Inputs are made on the CPU, whatever the device, so that
    order, crops and augmentation are the same everywhere.

    Returns
    -------
    The prediction, and the validation error of each epoch (−balanced accuracy, or mean absolute error in sds).
    """
    generator = torch.Generator().manual_seed(task.seed)
    module, target = network.module.to(device), scaled_target(task)
    groups = network.groups(settings)
    factors = [group["lr"] for group in groups]
    optimiser = torch.optim.AdamW(groups)
    steps = settings.epochs * len(batches(len(task.training), settings.batch, torch.Generator()))
    best: tuple[float, int, dict[str, Tensor]] | None = None
    step, errors = 0, []
    for epoch in range(settings.epochs):
        module.train()
        for rows in batches(len(task.training), settings.batch, generator):
            chosen = task.training[rows.numpy()]
            rate = settings.learning_rate * settings.batch / 256 * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group, factor in zip(optimiser.param_groups, factors, strict=True):
                group["lr"] = rate * factor
            output = module(*moved(inputs.training(chosen, generator), device))
            error = loss(output, target[torch.tensor(chosen)].to(device), task.n_classes)
            optimiser.zero_grad(set_to_none=True)
            error.backward()
            nn.utils.clip_grad_norm_(
                [p for group in optimiser.param_groups for p in group["params"]], settings.clip_norm
            )
            optimiser.step()
            step += 1
        output = outputs(module, inputs, task.validation)
        errors.append(float(crop_error(output[:, None], target[torch.tensor(task.validation)], task.n_classes)[0]))
        if best is None or errors[-1] < best[0]:
            # A copy: the tensors of state_dict() go on changing.
            best = (errors[-1], epoch, {name: value.detach().clone() for name, value in module.state_dict().items()})
    assert best is not None
    module.load_state_dict(best[2])
    scores = to_scores(outputs(module, inputs, task.test), task)
    return Prediction(scores, f"epoch {best[1] + 1} of {settings.epochs}", len(task.training)), errors


def moved(values: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """The same tensors on a device."""
    return tuple(value.to(device) for value in values)


def loss(output: Tensor, target: Tensor, n_classes: int) -> Tensor:
    """Cross-entropy, or L1 for numbers."""
    if n_classes:
        return nn.functional.cross_entropy(output, target)
    return nn.functional.l1_loss(output[:, 0], target)


@torch.no_grad()
def outputs(module: nn.Module, inputs: Inputs, participants: Index) -> Tensor:
    """Output [participants, outputs] on the CPU, averaged over the regular inputs of each participant."""
    module.eval()
    device = next(module.parameters()).device
    place = {int(number): row for row, number in enumerate(participants)}
    total: Tensor | None = None
    count = torch.zeros(len(participants), 1)
    for owner, arguments in inputs.testing(participants):
        made = module(*moved(arguments, device)).float().cpu()
        rows = torch.tensor([place[int(number)] for number in owner])
        total = torch.zeros(len(participants), made.shape[1]) if total is None else total
        total.index_add_(0, rows, made)
        count.index_add_(0, rows, torch.ones(len(rows), 1))
    assert total is not None
    return total / count


def scaled_target(task: Task) -> Tensor:
    """Class ids, or numbers in sds of the training part."""
    if task.n_classes:
        return torch.tensor(task.target, dtype=torch.int64)
    mean, sd = task.scale
    return torch.as_tensor((task.target - mean) / sd, dtype=torch.float32)


def to_scores(output: Tensor, task: Task) -> npt.NDArray[np.float64]:
    """Class probabilities, or numbers in their own unit."""
    if task.n_classes:
        return torch.softmax(output.double(), dim=1).numpy()
    mean, sd = task.scale
    return output.double().numpy() * sd + mean
