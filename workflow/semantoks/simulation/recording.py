"""One simulated recording: parcels' signals, artefacts and noise put together as a BOLD image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from semantoks.simulation.artefacts import Artefacts, draw_artefacts, smooth_maps
from semantoks.simulation.atlas import CSF, GREY, NETWORKS, WHITE, Atlas
from semantoks.simulation.dynamics import parcel_series
from semantoks.simulation.participants import Participant, draw_traits

MEAN_SIGNAL = {GREY: 900.0, WHITE: 750.0, CSF: 1200.0}
"""Mean image intensity by tissue."""
NEURAL_AMPLITUDE = 0.010
"""Standard deviation of a parcel's neural signal, as a fraction of the mean."""
VOXEL_NOISE = 0.012
"""Standard deviation of the scanner's noise in a voxel, as a fraction of the mean."""
HEAVY_MOTION = 1.6
"""Framewise displacement [mm] of the recording that must be excluded."""


@dataclass(frozen=True)
class Recording:
    """A simulated recording inside the brain of the atlas (voxels in array order).

    Attributes
    ----------
    neural : float64 [parcel, time], what an ideal scanner would show of each parcel, variance about 1.
    artefacts : motion, drift, physiology and saturation.
    bold : float32 [time, voxel], intensities.
    mask : bool [x, y, z], this recording's brain mask: some voxels at the rim have no signal.
    """

    neural: np.ndarray
    artefacts: Artefacts
    bold: np.ndarray
    mask: np.ndarray


def parcel_positions(atlas: Atlas) -> np.ndarray:
    """Place of each parcel along its network from -1 (back) to 1 (front), by rank, float64 [parcel]."""
    inside = atlas.parcels > 0
    centre = ndimage.mean(np.indices(atlas.parcels.shape)[1][inside], atlas.parcels[inside], atlas.labels["index"])
    position = np.empty(len(centre))
    for network in range(len(NETWORKS)):
        members = np.flatnonzero(atlas.network_of_parcel == network)
        position[members[np.argsort(centre[members], kind="stable")]] = np.linspace(-1, 1, len(members))
    return position


def simulate_recording(atlas: Atlas, participant: Participant, index: int, seed: int) -> Recording:
    """Simulate recording ``index`` of a participant; every number follows from the seed."""
    site = participant.site
    traits = draw_traits(participant, atlas.network_of_parcel, parcel_positions(atlas), seed)
    random = np.random.default_rng([seed, participant.number, 2, index])
    neural = parcel_series(traits, site.tr, site.n_frames, random)
    displacement = HEAVY_MOTION if participant.heavy_motion == index else participant.motion * random.uniform(0.8, 1.25)
    artefacts = draw_artefacts(atlas, displacement, site.tr, site.n_frames, random)

    mean = _mean_image(atlas, random)
    change = VOXEL_NOISE * random.standard_normal((site.n_frames, len(mean)), dtype=np.float32)
    parcel = atlas.parcels[atlas.brain]
    gain = np.float32(NEURAL_AMPLITUDE) * random.uniform(0.7, 1.3, len(mean)).astype(np.float32)
    change[:, parcel > 0] += neural.T.astype(np.float32)[:, parcel[parcel > 0] - 1] * gain[parcel > 0]
    change += artefacts.courses.astype(np.float32) @ artefacts.maps.astype(np.float32)
    change += artefacts.saturation.astype(np.float32)[:, None]
    lost = _signal_loss(atlas, random)
    bold = (1 + change) * np.where(lost, 0.2 * mean, mean).astype(np.float32)
    mask = np.zeros_like(atlas.brain)
    mask[atlas.brain] = ~lost
    return Recording(neural, artefacts, bold, mask)


def _mean_image(atlas: Atlas, random: np.random.Generator) -> np.ndarray:
    """Mean intensity of each brain voxel: tissue contrast times a smooth receive field, float64 [voxel]."""
    tissue = atlas.tissue[atlas.brain]
    contrast = np.array([MEAN_SIGNAL[code] for code in (GREY, WHITE, CSF)])[tissue - 1]
    field: np.ndarray = contrast * np.clip(1 + 0.08 * smooth_maps(atlas, 1, random)[0], 0.5, 1.5)
    return field


def _signal_loss(atlas: Atlas, random: np.random.Generator) -> np.ndarray:
    """Voxels without signal, bool [voxel]: a few at the rim, and some above the nasal sinus."""
    depth = ndimage.distance_transform_edt(atlas.brain)[atlas.brain]
    position = np.argwhere(atlas.brain) @ atlas.affine[:3, :3].T + atlas.affine[:3, 3]
    sinus = np.linalg.norm(position - [0, 40, -32], axis=1) < random.uniform(0, 18)
    lost: np.ndarray = sinus | ((depth <= 1) & (random.random(len(depth)) < 0.02))
    return lost
