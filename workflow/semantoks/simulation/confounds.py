"""The confounds table of a recording, computed from the simulated image as fMRIPrep (23 and later) computes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from semantoks.simulation.artefacts import framewise_displacement
from semantoks.simulation.atlas import CSF, WHITE

MOTION_COLUMNS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
N_COMPONENTS = 6
"""Components kept of each CompCor mask."""
HIGH_PASS = 128.0
"""Cut-off period of the cosine basis [s]."""
FD_OUTLIER, DVARS_OUTLIER = 0.5, 1.5
"""fMRIPrep's default thresholds [mm; standardised DVARS]."""
_COMPCOR_MASKS = {"c": "CSF", "w": "WM", "a": "combined"}


def confounds_table(
    bold: np.ndarray, tissue: np.ndarray, motion: np.ndarray, tr: float, n_unsteady: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Confounds and the content of their JSON sidecar.

    Parameters
    ----------
    bold : float [time, voxel], the image inside the brain mask.
    tissue : int [voxel], tissue code of these voxels.
    motion : float64 [time, 6], mm and rad.
    tr : repetition time [s].
    n_unsteady : number of volumes before the steady state.
    """
    csf, white = tissue == CSF, tissue == WHITE
    columns: dict[str, np.ndarray] = {}
    for name, voxels in (("global_signal", slice(None)), ("csf", csf), ("white_matter", white)):
        columns |= _expanded(name, bold[:, voxels].mean(axis=1, dtype=np.float64))
    columns["csf_wm"] = bold[:, csf | white].mean(axis=1, dtype=np.float64)
    columns["std_dvars"], columns["dvars"] = _dvars(bold)
    fd = framewise_displacement(motion)
    columns["framewise_displacement"], columns["rmsd"] = fd, _rms_displacement(motion)

    cosines = cosine_basis(len(bold) - n_unsteady, tr)
    sidecar: dict[str, Any] = {name: {"Method": "Mean"} for name in ("csf", "csf_wm", "global_signal", "white_matter")}
    for prefix, voxels in (("c", csf), ("w", white), ("a", csf | white)):
        components, described = _compcor(bold[n_unsteady:, voxels], cosines, prefix)
        columns |= {name: np.pad(values, (n_unsteady, 0)) for name, values in components.items()}
        sidecar |= described
    for i, cosine in enumerate(cosines.T):
        columns[f"cosine{i:02d}"] = np.pad(cosine, (n_unsteady, 0))
    for i in range(n_unsteady):
        columns[f"non_steady_state_outlier{i:02d}"] = _impulse(len(bold), i)
    for name, values in zip(MOTION_COLUMNS, motion.T, strict=True):
        columns |= _expanded(name, values)
    outliers = np.flatnonzero((np.nan_to_num(fd) > FD_OUTLIER) | (np.nan_to_num(columns["std_dvars"]) > DVARS_OUTLIER))
    for i, volume in enumerate(outliers[outliers >= n_unsteady]):
        columns[f"motion_outlier{i:02d}"] = _impulse(len(bold), volume)
    return pd.DataFrame(columns), sidecar


def cosine_basis(n_frames: int, tr: float) -> np.ndarray:
    """Discrete cosines slower than ``HIGH_PASS``, without the constant, float64 [time, k]; as nipype makes them."""
    order = max(int(np.floor(2 * n_frames * tr / HIGH_PASS)), 1)
    phase = np.pi / n_frames * (np.arange(n_frames) + 0.5)
    basis: np.ndarray = np.sqrt(2 / n_frames) * np.cos(np.outer(phase, np.arange(1, order)))
    return basis


def _expanded(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """A column, its backward difference and the squares of both; the first difference is missing."""
    difference = np.concatenate([[np.nan], np.diff(values)])
    return {
        name: values,
        f"{name}_derivative1": difference,
        f"{name}_power2": values**2,
        f"{name}_derivative1_power2": difference**2,
    }


def _compcor(
    voxels: np.ndarray, cosines: np.ndarray, prefix: str
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Principal components of a noise mask [time, voxel] after high-pass filtering (Behzadi et al., 2007)."""
    design = np.column_stack([np.ones(len(voxels)), cosines])
    basis, _ = np.linalg.qr(design)
    residual = voxels.astype(np.float64)
    residual = residual - basis @ (basis.T @ residual)
    residual /= residual.std(axis=0)
    eigenvalues, vectors = np.linalg.eigh(residual @ residual.T)
    share = eigenvalues[::-1] / eigenvalues.sum()
    components, described = {}, {}
    for i in range(N_COMPONENTS):
        name = f"{prefix}_comp_cor_{i:02d}"
        vector = vectors[:, -1 - i]
        components[name] = vector * np.sign(vector[np.argmax(np.abs(vector))])  # eigenvectors have no sign
        described[name] = {
            "CumulativeVarianceExplained": round(float(share[: i + 1].sum()), 10),
            "Mask": _COMPCOR_MASKS[prefix],
            "Method": "aCompCor",
            "Retained": True,
            "SingularValue": round(float(np.sqrt(eigenvalues[-1 - i])), 10),
            "VarianceExplained": round(float(share[i]), 10),
        }
    return components, described


def _dvars(bold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardised DVARS (Nichols, 2013) and DVARS of an image [time, voxel]; the first of each is NaN."""
    difference = np.diff(bold, axis=0)
    dvars = np.sqrt(np.mean(difference**2, axis=1, dtype=np.float64))
    low, high = np.percentile(bold[:, ::10], [25, 75], axis=0)  # every tenth voxel is enough for a mean
    centred = bold[:, ::10] - bold[:, ::10].mean(axis=0)
    lag_one = (centred[1:] * centred[:-1]).sum(axis=0) / (centred**2).sum(axis=0)
    expected = np.sqrt(np.mean(2 * (1 - lag_one) * ((high - low) / 1.349) ** 2))
    return np.concatenate([[np.nan], dvars / expected]), np.concatenate([[np.nan], dvars])


def _rms_displacement(motion: np.ndarray, radius: float = 80.0) -> np.ndarray:
    """Relative RMS displacement [mm] over a sphere (Jenkinson, 1999, small angles); the first is NaN."""
    step = np.diff(motion, axis=0)
    squared = (step[:, :3] ** 2).sum(axis=1) + 2 * radius**2 / 5 * (step[:, 3:] ** 2).sum(axis=1)
    return np.concatenate([[np.nan], np.sqrt(squared)])


def _impulse(n_frames: int, volume: int) -> np.ndarray:
    impulse = np.zeros(n_frames)
    impulse[volume] = 1
    return impulse
