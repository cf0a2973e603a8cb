"""What a training asks of an objective, so that several can stand side by side on the same encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from semantoks.model.encoder import Encoder
from semantoks.objectives.views import Views


class Objective(nn.Module, ABC):
    """An encoder with whatever it is trained by.

    A step is ``predictions`` (with gradients), ``targets`` (without), ``losses`` of the two, the optimiser's update of
    ``trained``, ``after_step``. Predictions and losses are apart so that gradient accumulation can take the losses of
    the whole batch: a loss may compare scans with each other.

    Predictions and targets are named tuples of tensors [2 views, m scans, …] or None; ``losses`` gives a named tuple
    whose ``total`` is this process's share of the loss: summed over processes it is that of the global batch.

    ``weights`` are what schedules say of the parts of a loss in this step, by name; a part of weight 0 need not be
    computed.
    """

    features: ClassVar[str]
    """Name of the submodule that is the encoder whose features are used afterwards."""

    @abstractmethod
    def trained(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Parameters that the optimiser updates, with their names."""

    @abstractmethod
    def encoders(self) -> list[Encoder]:
        """All of them, to be compiled."""

    @abstractmethod
    def predictions(self, views: Views, weights: Mapping[str, float]) -> Any:
        """From the masked views."""

    @abstractmethod
    def targets(self, views: Views, weights: Mapping[str, float]) -> Any:
        """What the predictions are compared with."""

    @abstractmethod
    def losses(
        self, predictions: Any, targets: Any, views: Views, weights: Mapping[str, float], n_scans: int | None = None
    ) -> Any:
        """Losses of a batch; ``n_scans`` is m of the global batch, when there are several processes."""

    @abstractmethod
    def metrics(self, losses: Any, predictions: Any, targets: Any) -> dict[str, Tensor]:
        """Scalars to log, ``loss`` among them, of the global batch; NaN where a step does not compute one.

        ``coding_rate``, where an objective has one, is watched for collapse.
        """

    def after_step(self, momentum: float) -> None:
        """What follows the optimiser's update; ``momentum`` is that of a teacher."""
