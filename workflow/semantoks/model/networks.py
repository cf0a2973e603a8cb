"""Which ROI belongs to which functional network: the table from which a model is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semantoks.errors import UserError


@dataclass(frozen=True)
class NetworkTable:
    """Networks in the order of their tokens and the network of each ROI.

    Networks need not be contiguous blocks of ROIs (METHOD §1); within a network ROIs keep their order.

    Attributes
    ----------
    names : name of each of the N networks, in token order.
    of_roi : for each ROI the index of its network in ``names``.
    """

    names: tuple[str, ...]
    of_roi: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.of_roi:
            raise UserError("network table: expected at least one ROI, found none; check the shard's `networks`")
        if len(set(self.names)) != len(self.names):
            raise UserError(f"network table: expected unique network names, found {list(self.names)}")
        if not all(0 <= index < len(self.names) for index in self.of_roi):
            raise UserError(f"network table: expected network indices below {len(self.names)}, found others")
        empty = [name for name, size in zip(self.names, self.sizes, strict=True) if size == 0]
        if empty:
            raise UserError(f"network table: expected at least one ROI per network, found none in {empty}")

    @classmethod
    def from_labels(cls, labels: Sequence[str], names: Sequence[str] | None = None) -> NetworkTable:
        """Build the table from the network name of every ROI; networks are ordered by first appearance.

        Parameters
        ----------
        labels : network name of each ROI, in ROI order.
        names : another order of the networks, when it matters.
        """
        order = tuple(dict.fromkeys(labels)) if names is None else tuple(names)
        unknown = sorted(set(labels) - set(order))
        if unknown:
            raise UserError(f"network table: expected the networks {list(order)}, found also {unknown}")
        return cls(order, tuple(order.index(label) for label in labels))

    @property
    def labels(self) -> list[str]:
        """Network name of each ROI."""
        return [self.names[index] for index in self.of_roi]

    @property
    def n_rois(self) -> int:
        """Number of ROIs."""
        return len(self.of_roi)

    @property
    def sizes(self) -> list[int]:
        """Number of ROIs of each network."""
        return [self.of_roi.count(index) for index in range(len(self.names))]

    def members(self) -> list[NDArray[np.int64]]:
        """ROI indices of each network, ascending."""
        of_roi = np.asarray(self.of_roi)
        return [np.flatnonzero(of_roi == index) for index in range(len(self.names))]
