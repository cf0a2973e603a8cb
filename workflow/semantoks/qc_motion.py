"""What motion does to functional connectivity over the recordings of a cohort: QC–FC, and its change with distance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semantoks.label_images import read_label_image

FEWEST = 10
"""Recordings below which a correlation over recordings says nothing."""


class MotionConnectivity:
    """Running sums for the correlation, over recordings, of each pair's connectivity with mean displacement."""

    def __init__(self, n_rois: int) -> None:
        self.recordings = 0
        self._sums = {name: np.zeros((n_rois, n_rois)) for name in ("n", "z", "zz", "zf", "f", "ff")}

    def add(self, z: NDArray[np.float64], rows: NDArray[np.integer], mean_fd: float) -> None:
        """Take in one recording: Fisher's z [row, row] of the parcels ``rows``, and its mean displacement (mm)."""
        self.recordings += 1
        block = np.ix_(rows, rows)
        values = {"n": 1.0, "z": z, "zz": z**2, "zf": z * mean_fd, "f": mean_fd, "ff": mean_fd**2}
        for name, value in values.items():
            self._sums[name][block] += value

    def correlations(self) -> NDArray[np.float64]:
        """Pearson correlation of connectivity and motion [ROI, ROI]; NaN on the diagonal and with too few recordings.

        References
        ----------
        Ciric et al. (2017), NeuroImage 154:174-187.
        """
        s = self._sums
        n = np.where(s["n"] >= FEWEST, s["n"], np.nan)
        covariance = s["zf"] / n - s["z"] / n * (s["f"] / n)
        variances = (s["zz"] / n - (s["z"] / n) ** 2) * (s["ff"] / n - (s["f"] / n) ** 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            result: NDArray[np.float64] = covariance / np.sqrt(np.where(variances > 1e-20, variances, np.nan))
        np.fill_diagonal(result, np.nan)
        return result


def distances(folder: Path, index: NDArray[np.integer]) -> NDArray[np.float64] | None:
    """Distance in mm between the centres of gravity of parcels [ROI, ROI]; None for an atlas without image."""
    if not (folder / "atlas.nii.gz").is_file():
        return None
    labels, affine = read_label_image(folder / "atlas.nii.gz")
    where = np.argwhere(labels > 0)
    points = where @ affine[:3, :3].T + affine[:3, 3]
    values, size = labels[labels > 0], int(index.max()) + 1
    counts = np.bincount(values, minlength=size)[index]
    with np.errstate(invalid="ignore"):
        centres = np.stack([np.bincount(values, axis, minlength=size)[index] / counts for axis in points.T], axis=1)
    result: NDArray[np.float64] = np.sqrt(((centres[:, None] - centres[None]) ** 2).sum(axis=2))
    return result
