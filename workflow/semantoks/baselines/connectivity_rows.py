"""Further references on functional connectivity: correlation kernel, tangent space, powers of the matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nilearn.connectome import ConnectivityMeasure
from sklearn.base import BaseEstimator
from sklearn.covariance import LedoitWolf

from semantoks.baselines.connectivity import Connectivity, Recording, correlation, enough_valid, read_recordings
from semantoks.baselines.features import Index, Matrix, mean_over_recordings, participant_keys, standardise
from semantoks.phenotypes import Phenotype

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class KernelConnectivity:
    """Correlation kernel between participants' FC, as in kernel regression of behaviour on FC.

    Each participant's Fisher-z edges are centred and scaled to norm 1, so that inner products of two participants are
    the correlation of their FC; ridge on them is kernel ridge regression with that kernel (Kong et al., Cerebral Cortex
    29, 2019; He et al., NeuroImage 206, 2020).
    """

    name: str
    connectivity: Connectivity
    _factors: dict[bytes, Floats] = field(default_factory=dict, repr=False)

    @property
    def participants(self) -> list[str]:
        """Participants in the order of the rows."""
        return self.connectivity.participants

    def design(self, phenotype: Phenotype, training: Index) -> Matrix:
        """Rows [participants, participants] whose inner products are the kernel, centred on the training rows.

        An edge that is missing in a participant counts as that participant's mean edge. Only which ROIs are kept
        depends on the training rows, so a kernel is decomposed once for each choice of ROIs.
        """
        connectivity = self.connectivity
        enough = enough_valid(connectivity.valid, training, connectivity.valid_share)
        if enough.tobytes() not in self._factors:
            self._factors[enough.tobytes()] = _factor(correlation_kernel(connectivity.kept(training)))
        factor = self._factors[enough.tobytes()]
        rows: Matrix = (factor - factor[training].mean(axis=0)).astype(np.float32)
        return rows


def correlation_kernel(edges: Matrix) -> Floats:
    """Correlation [participants, participants] between the rows of a matrix; missing entries are the row's mean."""
    known = ~np.isnan(edges)
    mean = np.where(known, edges, 0).sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
    rows = np.where(known, edges - mean, 0)
    norm = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    rows /= np.maximum(norm, 1e-12)
    kernel: Floats = (rows @ rows.T).astype(np.float64)
    return kernel


def _factor(kernel: Floats) -> Floats:
    """A matrix F with F·Fᵀ = kernel."""
    variance, axes = np.linalg.eigh(kernel)
    factor: Floats = axes * np.sqrt(np.maximum(variance, 0))
    return factor


class GivenCovariance(BaseEstimator):
    """Estimator whose input is the covariance itself, so that nilearn need not estimate it again in every split."""

    def fit(self, covariance: Floats, y: None = None) -> GivenCovariance:
        """Take the matrix as the estimate."""
        self.covariance_ = covariance
        return self


@dataclass(frozen=True)
class TangentConnectivity:
    """Tangent space of covariances at their geometric mean (Varoquaux et al., MICCAI 2010), by nilearn.

    ``covariances`` is [participants, ROI, ROI] float64 (Ledoit-Wolf, averaged over recordings); an ROI without data has
    variance 1 and no covariance. ``valid`` and ``valid_share`` as in :class:`Connectivity`.
    """

    name: str
    participants: list[str]
    covariances: Floats
    valid: npt.NDArray[np.bool_]
    valid_share: float

    def design(self, phenotype: Phenotype, training: Index) -> Matrix:
        """Standardised upper triangles of the tangent vectors; the mean is that of the training rows."""
        enough = np.flatnonzero(enough_valid(self.valid, training, self.valid_share))
        covariances = self.covariances[:, enough[:, None], enough]
        measure = ConnectivityMeasure(
            GivenCovariance(), kind="tangent", vectorize=True, discard_diagonal=False, standardize=False
        )
        measure.fit(list(covariances[training]))
        return standardise(measure.transform(list(covariances)).astype(np.float32), training)


def read_tangent(shards: Sequence[Path | str], valid_share: float, by_session: bool = False) -> TangentConnectivity:
    """Covariances of every unit in the shards; its recordings are averaged."""
    people, rows, valid = [], [], []
    n_rois = 0
    for recording in read_recordings(shards):
        people.append((recording.cohort, recording.participant_id, recording.session_id if by_session else None))
        matrix = covariance(recording)
        n_rois = len(matrix)
        rows.append(matrix.ravel())
        valid.append(recording.valid)
    owner = participant_keys(*zip(*people, strict=True))
    participants, mean = mean_over_recordings(np.stack(rows).astype(np.float32), owner)
    _, known = mean_over_recordings(np.stack(valid).astype(np.float32), owner)
    covariances = mean.astype(np.float64).reshape(-1, n_rois, n_rois)
    return TangentConnectivity("fc-tangent", participants, covariances, known > 0, valid_share)


def covariance(recording: Recording) -> Floats:
    """Ledoit-Wolf covariance [ROI, ROI] of the standardised ROIs; 1 and 0 for an ROI without data."""
    sd = recording.bold.std(axis=1)
    usable = np.flatnonzero(recording.valid & (sd > 0))
    matrix = np.eye(len(recording.bold))
    if len(usable):
        bold = recording.bold[usable].astype(np.float64)
        bold = (bold - bold.mean(axis=1, keepdims=True)) / bold.std(axis=1, keepdims=True)
        matrix[np.ix_(usable, usable)] = LedoitWolf(store_precision=False, assume_centered=True).fit(bold.T).covariance_
    return matrix


def power_edges(power: float) -> Callable[[Recording], Matrix]:
    """Edges of FC^α: eigenvalues of the correlation matrix of the valid ROIs to the power α, off the diagonal."""

    def edges(recording: Recording) -> Matrix:
        matrix = correlation(recording.bold, recording.valid)
        usable = np.flatnonzero(~np.isnan(np.diag(matrix)))
        variance, axes = np.linalg.eigh(matrix[np.ix_(usable, usable)].astype(np.float64))
        # Eigenvalues that rounding leaves beside 0 are 0: a small power would blow them up.
        kept = np.where(variance > 1e-5 * variance.max(initial=0), variance, 0)
        raised = np.full(matrix.shape, np.nan)
        raised[np.ix_(usable, usable)] = (axes * kept**power) @ axes.T
        return raised[np.triu_indices(len(matrix), 1)].astype(np.float32)

    return edges
