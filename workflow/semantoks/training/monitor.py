"""Metrics of every step, the progress bar, and the stop when training has gone wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from semantoks.errors import UserError
from semantoks.files import write_text
from semantoks.objectives.objective import Objective
from semantoks.objectives.parallel import process_rank
from semantoks.training.settings import RunSettings
from semantoks.training.step import StepResult


def measure(objective: Objective, result: StepResult) -> dict[str, float]:
    """The objective's metrics of a step; waits for the device once."""
    values = objective.metrics(*result)
    numbers = torch.stack([value.float() for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))


class Monitor:
    """Writes metrics, shows progress, stops a training that cannot recover.

    Parameters
    ----------
    path : JSON lines, one per logged step; lines of the steps that a resumed training repeats are dropped.
    first_step, n_steps, batch : where the training starts and ends, and scans per step.
    collapsed : coding rate of identical features.
    n_low : logged steps in a row with a coding rate at collapse so far.
    events : folder for TensorBoard, or None.
    """

    def __init__(
        self,
        path: Path,
        settings: RunSettings,
        first_step: int,
        n_steps: int,
        batch: int,
        collapsed: float = 0.0,
        n_low: int = 0,
        events: Path | None = None,
    ) -> None:
        self.n_low, self._settings, self._batch = n_low, settings, batch
        self._least = settings.collapse_factor * collapsed
        self._leads = process_rank() == 0
        if not self._leads:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        complete = [line for line in lines if line.endswith("\n")]
        kept = [line for line in complete if json.loads(line)["step"] < first_step]
        write_text(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")
        self._bar = tqdm(total=n_steps * batch, initial=first_step * batch, unit="scan", desc="pretrain", disable=None)
        self._events = None
        if events is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(events), purge_step=first_step)

    def log(self, metrics: dict[str, Any]) -> None:
        """Write the metrics of a step and check them.

        Raises
        ------
        UserError
            When the loss is not finite, or the coding rate stayed at collapse.
        """
        if self._leads:
            clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
            self._file.write(json.dumps(clean) + "\n")
            self._file.flush()
            shown = f"loss {metrics['loss']:.3f}"
            if "coding_rate" in metrics:
                shown += f", γR {metrics['coding_rate']:.3f}"
            self._bar.set_postfix_str(shown, refresh=False)
            if self._events is not None:
                for name, value in clean.items():
                    if value is not None and name != "step":
                        self._events.add_scalar(name, value, metrics["step"])
        self._check(metrics)

    def advance(self) -> None:
        """One step is done."""
        if self._leads:
            self._bar.update(self._batch)

    def _check(self, metrics: dict[str, Any]) -> None:
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["gradient_norm"])):
            raise UserError(
                f"pretraining: step {metrics['step']}: expected a finite loss and gradient, found loss "
                f"{metrics['loss']}, gradient norm {metrics['gradient_norm']}; check the shards for NaN, then try a "
                "lower optimiser.learning_rate, more optimiser.warmup_epochs, or run.precision: float32"
            )
        self.n_low = self.n_low + 1 if metrics.get("coding_rate", math.inf) < self._least else 0
        if self.n_low >= self._settings.patience:
            raise UserError(
                f"pretraining: step {metrics['step']}: expected a coding rate of at least {self._least:.3f}, "
                f"found {metrics['coding_rate']:.4f}, for {self.n_low} logged steps: all scans have the same features "
                "(collapse); try a larger optimiser.batch, a lower optimiser.learning_rate, a higher "
                "optimiser.momentum or objective.ttr_weight; run.collapse_factor: 0 lets it go on"
            )

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._leads:
            self._file.close()
            self._bar.close()
            if self._events is not None:
                self._events.close()
