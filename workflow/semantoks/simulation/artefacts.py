"""What is not brain activity: head motion, scanner drift, physiology, the first bright volumes.

Amplitudes are fractions of a voxel's mean signal. Motion reaches the image through its six parameters, their
derivatives and squares (what a 24-parameter regression can undo) and, weaker, through a slow response of the whole
brain to every jerk (what it cannot; Power et al., 2014); physiology is strongest in CSF and white matter, where
component-based regression looks for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from semantoks.simulation.atlas import CSF, GREY, WHITE, Atlas

HEAD_RADIUS = 50.0
"""Radius [mm] at which rotations count as displacement (Power et al., 2012)."""
SPIKES_PER_MINUTE = 0.6
MOTION_PER_MM = 0.020
"""Signal change per mm of displacement, standard deviation over voxels."""
DRIFT = 0.006
"""Standard deviation over voxels of the drift's amplitude."""
SLOW_RESPONSE = {GREY: 0.0025, WHITE: 0.0005, CSF: 0.0005}
"""Slow response to one mm of displacement by tissue."""
N_PHYSIOLOGY = 12
PHYSIOLOGY = {GREY: 0.0025, WHITE: 0.004, CSF: 0.010}
"""Amplitude of physiological fluctuations by tissue."""
SATURATION = (0.30, 0.08, 0.02)
"""Extra signal of the first volumes, before the steady state."""


@dataclass(frozen=True)
class Artefacts:
    """Artefacts of one recording as time courses and maps.

    Attributes
    ----------
    motion : float64 [time, 6], translations [mm], then rotations [rad], in fMRIPrep's column order.
    courses : float64 [time, course], all artefact time courses.
    maps : float64 [course, voxel], their amplitudes as a fraction of the mean signal.
    saturation : float64 [time], extra signal of the first volumes; non-zero there only.
    """

    motion: np.ndarray
    courses: np.ndarray
    maps: np.ndarray
    saturation: np.ndarray

    def signal(self) -> np.ndarray:
        """All artefacts but saturation, fraction of the mean signal, float64 [time, voxel]."""
        change: np.ndarray = self.courses @ self.maps
        return change


def draw_artefacts(
    atlas: Atlas, displacement: float, tr: float, n_frames: int, random: np.random.Generator
) -> Artefacts:
    """Draw the artefacts of one recording; voxels are those of ``atlas.brain``, in array order.

    Parameters
    ----------
    displacement : typical framewise displacement [mm]; the mean comes out near it.
    tr : repetition time [s].
    """
    motion = draw_motion(displacement, tr, n_frames, random)
    motion_mm = motion * [1, 1, 1, HEAD_RADIUS, HEAD_RADIUS, HEAD_RADIUS]
    expanded = _expand(motion_mm)
    edge = _edge_weight(atlas)
    motion_maps = MOTION_PER_MM * smooth_maps(atlas, expanded.shape[1], random) * edge
    motion_maps *= np.repeat([1.0, 0.8, 0.6, 0.4], 6)[:, None]
    slow_map = _by_tissue(SLOW_RESPONSE, atlas) * (1 + 0.5 * smooth_maps(atlas, 1, random))

    time = np.linspace(-1, 1, n_frames)
    drift = np.stack([time, np.cos(np.pi * (time + 1) / 2), np.cos(np.pi * (time + 1))], axis=1)
    drift_maps = DRIFT * smooth_maps(atlas, drift.shape[1], random)

    physiology = _physiology(tr, n_frames, random)
    physiology_maps = _by_tissue(PHYSIOLOGY, atlas) * (1 + 0.5 * smooth_maps(atlas, N_PHYSIOLOGY, random))
    physiology_maps /= np.sqrt(N_PHYSIOLOGY)

    saturation = np.zeros(n_frames)
    n_bright = random.integers(0, len(SATURATION) + 1) if tr > 2 else len(SATURATION)
    saturation[:n_bright] = SATURATION[:n_bright]
    return Artefacts(
        motion,
        np.hstack([expanded, _slow_response(motion, tr), drift, physiology]),
        np.vstack([motion_maps, slow_map, drift_maps, physiology_maps]),
        saturation,
    )


def draw_motion(displacement: float, tr: float, n_frames: int, random: np.random.Generator) -> np.ndarray:
    """Head position over time: a slow wander, breathing, and jerks; float64 [time, 6] in mm and rad."""
    minutes = n_frames * tr / 60
    wander = np.cumsum(random.standard_normal((n_frames, 6)), axis=0) * np.sqrt(tr)
    wander = ndimage.gaussian_filter1d(wander, 4 / tr, axis=0)
    seconds = np.arange(n_frames) * tr
    breathing = np.sin(2 * np.pi * (0.27 * seconds + random.random()))[:, None] * [0.1, 0.8, 0.6, 0.6, 0.1, 0.1]
    jerks = np.zeros((n_frames, 6))
    for start in random.integers(2, n_frames - 2, random.poisson(SPIKES_PER_MINUTE * minutes)):
        size = random.standard_normal(6) * random.exponential(3)
        length = random.integers(1, 4)
        jerks[start : start + length] += size
        jerks[start + length :] += 0.2 * size  # the head does not come back entirely
    motion = 0.12 * wander + 0.5 * breathing + jerks + 0.15 * random.standard_normal((n_frames, 6))
    motion *= displacement / framewise_displacement(motion * [1, 1, 1, *[1 / HEAD_RADIUS] * 3])[1:].mean()
    motion *= [1, 1, 1, *[1 / HEAD_RADIUS] * 3]
    centred: np.ndarray = motion - motion[n_frames // 2]
    return centred


def framewise_displacement(motion: np.ndarray) -> np.ndarray:
    """Framewise displacement [mm] of motion [time, 6] in mm and rad (Power et al., 2012); the first is NaN."""
    step = np.abs(np.diff(motion, axis=0)) * [1, 1, 1, HEAD_RADIUS, HEAD_RADIUS, HEAD_RADIUS]
    return np.concatenate([[np.nan], step.sum(axis=1)])


def smooth_maps(atlas: Atlas, count: int, random: np.random.Generator) -> np.ndarray:
    """Random spatial fields of unit variance, smooth over about 30 mm; float64 [count, voxel]."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in atlas.tissue.shape), indexing="ij")
    basis = np.stack([np.ones_like(x), x, y, z, x * y, y * z, x * z, x**2, y**2, z**2, x**3, y**3, z**3])
    inside = basis[:, atlas.brain]
    inside[1:] -= inside[1:].mean(axis=1, keepdims=True)
    inside /= np.sqrt((inside**2).mean(axis=1, keepdims=True))
    weights = random.standard_normal((count, len(inside)))
    maps = weights @ inside
    unit: np.ndarray = maps / np.sqrt((maps**2).mean(axis=1, keepdims=True))
    return unit


def _expand(motion: np.ndarray) -> np.ndarray:
    """24 parameters: motion, derivatives (backward differences, 0 first), squares of both; [time, 24] in mm."""
    derivative = np.vstack([np.zeros(6), np.diff(motion, axis=0)])
    return np.hstack([motion, derivative, motion**2, derivative**2])


def _slow_response(motion: np.ndarray, tr: float) -> np.ndarray:
    """Displacement [mm] felt for some ten seconds after it happened, without its mean, float64 [time, 1]."""
    displacement = np.nan_to_num(framewise_displacement(motion))
    lag = np.arange(0, 40, tr)
    kernel = lag**2 * np.exp(-lag / 4)
    response = np.convolve(displacement, kernel / kernel.max())[: len(motion)]
    centred: np.ndarray = (response - response.mean())[:, None]
    return centred


def _by_tissue(amplitude: dict[int, float], atlas: Atlas) -> np.ndarray:
    """Amplitude of each brain voxel by its tissue, float64 [voxel]."""
    amplitudes = np.array([0.0, amplitude[GREY], amplitude[WHITE], amplitude[CSF]])
    of_voxel: np.ndarray = amplitudes[atlas.tissue[atlas.brain]]
    return of_voxel


def _edge_weight(atlas: Atlas) -> np.ndarray:
    """Motion shows at the rim of the brain: weight 2 at the edge, 0.6 deep inside; float64 [voxel]."""
    depth = ndimage.distance_transform_edt(atlas.brain)[atlas.brain]
    weight: np.ndarray = 0.6 + 1.4 * np.exp(-(depth - 1) / 1.5)
    return weight


def _physiology(tr: float, n_frames: int, random: np.random.Generator) -> np.ndarray:
    """Slow vascular and respiratory fluctuations (below .12 Hz), unit variance, float64 [time, N_PHYSIOLOGY]."""
    white = random.standard_normal((2 * n_frames, N_PHYSIOLOGY))
    slow = ndimage.gaussian_filter1d(white, 2.0 / tr, axis=0)[n_frames // 2 : n_frames // 2 + n_frames]
    unit: np.ndarray = (slow - slow.mean(axis=0)) / slow.std(axis=0)
    return unit
