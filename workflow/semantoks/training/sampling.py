"""Which scans and crops a step sees, and whether it is masked: a pure function of seed and step.

Nothing random is kept between steps, so that a resumed training continues exactly where it stopped, on any number
of processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from semantoks.errors import UserError

_ORDER, _CROPS, _DEVICE = range(3)


@dataclass(frozen=True)
class StepDraw:
    """What a step of training sees.

    Attributes
    ----------
    scans : [m] indices into the corpus.
    uniform : [2, m] in [0, 1), where the crop of each view starts within its scan.
    masked : whether the student's tokens are masked in this step.
    """

    scans: NDArray[np.int64]
    uniform: NDArray[np.float64]
    masked: bool


class Sampler:
    """One random recording per participant and epoch, in random order, cut into batches; the rest is dropped.

    Parameters
    ----------
    table : key columns of the corpus; the row order does not matter.
    batch : scans per step over all processes; a smaller corpus is used whole.
    seed : of the training.
    mask_probability : of masking a step.
    """

    def __init__(self, table: pd.DataFrame, batch: int, seed: int, mask_probability: float) -> None:
        ordered = table.reset_index(drop=True).sort_values(["cohort", "participant_id", "recording_id"])
        self._scans = ordered.index.to_numpy(np.int64)
        participant = ordered.groupby(["cohort", "participant_id"], sort=False).ngroup().to_numpy()
        self._counts = np.bincount(participant)
        self._first = np.concatenate([[0], np.cumsum(self._counts)[:-1]])
        self.n_participants = len(self._counts)
        if self.n_participants < 2:
            raise UserError(
                f"shards: expected at least two participants, found {self.n_participants}; the objective compares "
                "scans of a batch and cannot learn from one"
            )
        self.batch = min(batch, self.n_participants)
        self.steps_per_epoch = self.n_participants // self.batch
        self._seed, self._mask_probability = seed, mask_probability

    def draw(self, step: int) -> StepDraw:
        """Scans, crops and coin of a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self._seed, _ORDER, epoch])
        recording = self._first + order.integers(self._counts)
        chosen = order.permutation(recording)[position * self.batch : (position + 1) * self.batch]
        crops = np.random.default_rng([self._seed, _CROPS, step])
        masked = bool(crops.random() < self._mask_probability)
        return StepDraw(self._scans[chosen], crops.random((2, self.batch)), masked)

    def generator(self, step: int, device: torch.device) -> torch.Generator:
        """Source of augmentation and masks of a step, on the device."""
        state = np.random.SeedSequence([self._seed, _DEVICE, step]).generate_state(1, np.uint64)
        return torch.Generator(device).manual_seed(int(state[0]))
