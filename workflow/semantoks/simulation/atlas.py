"""``simulated457``: an invented atlas of 457 parcels over the brain mask that nilearn ships.

It has the shape of the real thing - 400 cortical, 50 subcortical and 7 cerebellar parcels, nine networks in
the parcel order of METHOD.md section 1 - and nothing else in common with it: parcels are Voronoi cells, the
right hemisphere mirrors the left, and networks are patches around hand-placed centres.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn import datasets, image
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

ATLAS_NAME = "simulated457"
SPACE = "MNI152NLin2009aSym"
"""Template of nilearn's bundled mask, in TemplateFlow's spelling."""
RESOLUTION = "6mm"
VOXEL_SIZE = 6.0
"""Edge of a voxel [mm]."""

NETWORKS = ("Vis", "SomMot", "DorsAttn", "SalVentAttn", "Limbic", "Cont", "Default", "Subcortex", "Cerebellum")
PARCELS_LEFT = (31, 37, 23, 22, 13, 22, 52)
PARCELS_RIGHT = (30, 40, 23, 25, 13, 30, 39)
N_SUBCORTEX, N_CEREBELLUM = 50, 7

GREY, WHITE, CSF = 1, 2, 3
"""Codes of the tissue image."""

# Two or three centres per network in the left hemisphere [mm], roughly where the network of that name lies.
_CENTRES = {
    "Vis": [(-12, -90, 0), (-30, -85, 10)],
    "SomMot": [(-40, -22, 55), (-55, -10, 25)],
    "DorsAttn": [(-28, -60, 55), (-45, -65, -5)],
    "SalVentAttn": [(-38, 8, 2), (-8, 10, 45), (-58, -35, 30)],
    "Limbic": [(-15, 30, -22), (-40, 10, -35)],
    "Cont": [(-42, 30, 28), (-45, -52, 45)],
    "Default": [(-8, 52, 15), (-8, -55, 28), (-58, -20, -15), (-25, 30, 45)],
}


@dataclass(frozen=True)
class Atlas:
    """The atlas and the tissues on the simulation's grid.

    Attributes
    ----------
    parcels : int16 [x, y, z], 0 outside, parcel ``i`` of ``labels`` has the value ``i + 1``.
    tissue : int8 [x, y, z], 0 outside the brain, else ``GREY``, ``WHITE`` or ``CSF``.
    affine : float64 [4, 4], voxel to mm.
    labels : one row per parcel, columns index, name, network.
    """

    parcels: np.ndarray
    tissue: np.ndarray
    affine: np.ndarray
    labels: pd.DataFrame

    @property
    def brain(self) -> np.ndarray:
        """Brain mask, bool [x, y, z]."""
        mask: np.ndarray = self.tissue > 0
        return mask

    @property
    def network_of_parcel(self) -> np.ndarray:
        """Position in ``NETWORKS`` of every parcel, int [457]."""
        return self.labels["network"].map({name: i for i, name in enumerate(NETWORKS)}).to_numpy()


def build_atlas(seed: int = 0) -> Atlas:
    """Make atlas and tissue maps from nilearn's bundled MNI152 templates; the same seed gives the same atlas."""
    random = np.random.default_rng([seed, 457])
    tissue, affine = _tissue_map()
    voxels = np.argwhere(tissue > 0)
    coordinates = voxels @ affine[:3, :3].T + affine[:3, 3]
    grey = tissue[tuple(voxels.T)] == GREY
    x, y, z = coordinates.T
    deep = ((np.abs(x) / 36) ** 2 + ((y + 8) / 34) ** 2 + (z / 22) ** 2 < 1) & (tissue[tuple(voxels.T)] != CSF)
    cerebellum = grey & (y < -36) & (z < -24) & ~deep
    cortex = grey & ~deep & ~cerebellum & ~((np.abs(x) < 20) & (z < -24) & (y < 0))

    parcels = np.zeros(tissue.shape, dtype=np.int16)
    rows: list[tuple[str, str]] = []
    left = x < 0
    cells, centres = _voronoi(coordinates[cortex & left], len_left := sum(PARCELS_LEFT), random)
    for side, counts in (("L", PARCELS_LEFT), ("R", PARCELS_RIGHT)):
        order, names = _assign_networks(centres, counts)
        rank = np.empty(len_left, dtype=int)
        rank[order] = np.arange(len_left)
        target = voxels[cortex & left]
        if side == "R":
            target = target * [-1, 1, 1] + [tissue.shape[0] - 1, 0, 0]
        parcels[tuple(target.T)] = 1 + len(rows) + rank[cells]
        rows += [(f"{side}_{name}", name.split("_")[0]) for name in names]
    for region, network, count in ((deep, "Subcortex", N_SUBCORTEX), (cerebellum, "Cerebellum", N_CEREBELLUM)):
        parcels[tuple(voxels[region].T)] = 1 + len(rows) + _mirrored_cells(coordinates[region], count, random)
        rows += [(f"{network}_{i + 1}", network) for i in range(count)]
    tissue[parcels > 0] = GREY
    labels = pd.DataFrame(rows, columns=["name", "network"])
    labels["name"] = "sim_" + labels["name"]
    labels.insert(0, "index", np.arange(1, len(rows) + 1))
    return Atlas(parcels, tissue, affine, labels)


def _tissue_map() -> tuple[np.ndarray, np.ndarray]:
    """Grey matter, white matter and CSF on a 6 mm grid that is symmetric about x = 0."""
    affine = np.diag([VOXEL_SIZE] * 3 + [1.0])
    affine[:3, 3] = (-75, -111, -75)

    def resampled(template: nib.Nifti1Image) -> np.ndarray:
        smooth = image.smooth_img(template, VOXEL_SIZE)
        on_grid = image.resample_img(
            smooth, affine, (26, 32, 28), interpolation="linear", force_resample=True, copy_header=True
        )
        values: np.ndarray = on_grid.get_fdata()
        values = (values + values[::-1]) / 2
        return values

    brain = resampled(datasets.load_mni152_brain_mask(resolution=2)) > 0.5
    grey = resampled(datasets.load_mni152_gm_template(resolution=2))
    white = resampled(datasets.load_mni152_wm_template(resolution=2))
    largest = np.argmax([grey, white, np.clip(1 - grey - white, 0, 1)], axis=0) + 1
    return np.where(brain, largest, 0).astype(np.int8), affine


def _voronoi(coordinates: np.ndarray, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cut points [n, 3] into ``count`` compact cells (Lloyd's algorithm); cell of each point, centres [count, 3]."""
    centres = coordinates[random.choice(len(coordinates), count, replace=False)]
    for _ in range(30):
        cell = cKDTree(centres).query(coordinates)[1]
        size = np.bincount(cell, minlength=count)
        sums = np.stack([np.bincount(cell, axis, minlength=count) for axis in coordinates.T], axis=1)
        # an emptied cell restarts on a point of the largest one
        empty = np.flatnonzero(size == 0)
        centres = sums / np.maximum(size, 1)[:, None]
        centres[empty] = coordinates[cell == np.argmax(size)][: len(empty)] if len(empty) else centres[empty]
    return cKDTree(centres).query(coordinates)[1], centres


def _mirrored_cells(coordinates: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Cells of a bilateral region: half left, half right (mirrored); an odd one is the vermis in the middle."""
    half = count // 2
    middle = np.abs(coordinates[:, 0]) < VOXEL_SIZE if count % 2 else np.zeros(len(coordinates), dtype=bool)
    left = (coordinates[:, 0] < 0) & ~middle
    _, centres = _voronoi(coordinates[left], half, random)
    mirrored = coordinates * np.where(coordinates[:, :1] > 0, [-1, 1, 1], 1)
    cell = cKDTree(centres).query(mirrored)[1] + np.where(coordinates[:, 0] > 0, half, 0)
    return np.where(middle, count - 1, cell)


def _assign_networks(centres: np.ndarray, counts: tuple[int, ...]) -> tuple[np.ndarray, list[str]]:
    """Give each left-hemisphere parcel a network, as near its centres as the required counts allow.

    Returns the parcels in label order (by network, then posterior to anterior) and their names.
    """
    cortical = NETWORKS[:7]
    distance = np.stack(
        [np.min([np.linalg.norm(centres - c, axis=1) for c in _CENTRES[name]], axis=0) for name in cortical]
    )
    slots = np.repeat(np.arange(7), counts)
    parcel, slot = linear_sum_assignment(distance[slots].T ** 2)
    network = slots[slot[np.argsort(parcel)]]
    order = np.lexsort((centres[:, 2], centres[:, 1], network))
    names = [f"{name}_{i + 1}" for name, count in zip(cortical, counts, strict=True) for i in range(count)]
    return order, names
