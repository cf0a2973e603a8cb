"""Choosing, refitting and testing the published head on the crops of an encoder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from semantoks.baselines.features import CropFeatures, Index
from semantoks.baselines.published_head import Heads, Problem, batches_of, crop_error, train
from semantoks.baselines.tasks import Prediction, Task
from semantoks.errors import UserError

STACKED_VALUES = {"cpu": 2**19, "cuda": 2**28}
"""Values [problems x batch x features] in one step: as many as a processor's cache holds, or as fill a GPU."""


class Samples:
    """Every crop of every participant as one sample [samples, features], and whose it is."""

    def __init__(self, features: CropFeatures, device: str) -> None:
        self.owner, _ = np.nonzero(features.present)
        crops = features.crops[features.present]
        # BatchNorm takes any constant out; without it float32 keeps more of what is left.
        crops = crops - crops.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.values = torch.from_numpy(crops).to(device)
        self._rows = [np.flatnonzero(self.owner == number) for number in range(len(features.participants))]

    def of(self, participants: Index) -> Index:
        """Sample numbers of the participants, one participant after the other."""
        return np.concatenate([self._rows[number] for number in participants])

    def mean_of(self, values: npt.NDArray[np.float64], participants: Index) -> npt.NDArray[np.float64]:
        """Average rows that are in the order of :meth:`of` over each participant."""
        counts = np.array([len(self._rows[number]) for number in participants])
        total = np.add.reduceat(values, np.cumsum(counts) - counts, axis=0)
        mean: npt.NDArray[np.float64] = total / counts[:, None]
        return mean

    def problem(self, task: Task, participants: Index) -> Problem:
        """The head of a task, to be trained on the crops of the given participants."""
        return Problem(self.of(participants), self.target(task), task.n_classes, task.seed)

    def target(self, task: Task) -> npt.NDArray:
        """Target of every sample: class id, or number in sds of the training part."""
        if task.n_classes:
            return task.target[self.owner]
        mean, sd = task.scale
        return ((task.target[self.owner] - mean) / sd).astype(np.float32)

    def logits(self, heads: Heads, number: int, participants: Index) -> torch.Tensor:
        """Output [samples, rates, outputs] for the crops of the given participants."""
        return heads.logits(self.values[torch.from_numpy(self.of(participants))], number)


def predict_published(
    features: CropFeatures, tasks: Sequence[Task], settings: Mapping[str, Any], device: str = "cpu"
) -> Iterator[tuple[Task, Prediction]]:
    """Train, choose and test the published head on every task.

    The rate is chosen on the validation part per crop; ties keep the larger rate. With ``refit`` the head is trained
    again with the chosen rate on training and validation part. Logits are averaged over a participant's crops.

    Parameters
    ----------
    features : of the participants to whom the tasks' row numbers refer.
    tasks : splits; those with equally many samples train together.
    settings : the section ``probe`` (``rates``, ``epochs``, ``refit``).
    device : ``cpu`` or ``cuda``.

    Raises
    ------
    UserError
        When a GPU is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU was found; use --device cpu")
    samples = Samples(features, device)
    rates = sorted(settings["rates"], reverse=True)
    for stack in _stacks(tasks, samples, device):
        problems = [samples.problem(task, task.training) for task in stack]
        heads = train(samples.values, problems, [rates] * len(stack), settings["epochs"])
        best = [_best_rate(heads, number, samples, task) for number, task in enumerate(stack)]
        fitted = [task.training for task in stack]
        column = best
        if settings["refit"]:
            fitted = [np.concatenate([task.training, task.validation]) for task in stack]
            problems = [samples.problem(task, both) for task, both in zip(stack, fitted, strict=True)]
            heads = train(samples.values, problems, [[rates[number]] for number in best], settings["epochs"])
            column = [0] * len(stack)
        for number, task in enumerate(stack):
            scores = _scores(heads, (number, column[number]), samples, task)
            yield task, Prediction(scores, f"rate {rates[best[number]]:g}", len(fitted[number]))


def _stacks(tasks: Sequence[Task], samples: Samples, device: str) -> Iterator[list[Task]]:
    """Tasks that can be trained as one: equally many training samples and outputs."""
    alike: dict[tuple[int, int, int], list[Task]] = defaultdict(list)
    for task in tasks:
        sizes = len(samples.of(task.training)), len(samples.of(task.validation))
        alike[(*sizes, task.n_classes)].append(task)
    for (count, _, _), group in alike.items():
        size = max(1, STACKED_VALUES[device] // (max(batches_of(count)) * samples.values.shape[1]))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _best_rate(heads: Heads, number: int, samples: Samples, task: Task) -> int:
    target = torch.from_numpy(samples.target(task)[samples.of(task.validation)]).to(samples.values.device)
    error = crop_error(samples.logits(heads, number, task.validation), target, task.n_classes)
    return int(error.argmin())


def _scores(heads: Heads, position: tuple[int, int], samples: Samples, task: Task) -> npt.NDArray[np.float64]:
    number, column = position
    output = samples.logits(heads, number, task.test)[:, column].double().cpu().numpy()
    logits = samples.mean_of(output, task.test)
    if task.n_classes:
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probability: npt.NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
        return probability
    mean, sd = task.scale
    return logits * sd + mean
