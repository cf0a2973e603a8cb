"""Small images, confounds and index tables for the tests of the imaging stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
from semantoks.atlas import Atlas, AtlasSettings, write_atlas
from semantoks.files import KEY, write_table

SPACE = "MNI152NLin6Asym"
SHAPE = (12, 14, 10)
N_VOLUMES = 200
TR = 2.0
NAMES = ["7Networks_LH_Vis_1", "7Networks_LH_Default_1", "7Networks_RH_Vis_1", "HIP-head-m-lh", "Buckner_Vis"]
# scrambled on purpose: position in the table is not the value in the image
INDEX = [4, 2, 5, 1, 3]


def affine(voxel: float = 4.0, flip: bool = False) -> np.ndarray:
    """RAS affine of the grid around the origin; ``flip`` gives LAS, as FSL stores images."""
    matrix = np.diag([voxel, voxel, voxel, 1.0])
    matrix[:3, 3] = -voxel * (np.array(SHAPE) - 1) / 2
    if flip:
        matrix[0] *= -1
    return matrix


def atlas_labels() -> np.ndarray:
    """Five boxes, background between; each name of NAMES owns the box of its INDEX."""
    labels = np.zeros(SHAPE, dtype=np.int32)
    for number, corner in enumerate([(1, 1, 1), (1, 8, 1), (7, 1, 1), (7, 8, 1), (4, 4, 5)], 1):
        labels[tuple(slice(c, c + 4 - (c == 4)) for c in corner)] = number
    return labels


def atlas_folder(folder: Path, space: str = SPACE, labels: np.ndarray | None = None) -> Path:
    """A folder as the atlas stage leaves it."""
    folder.mkdir(exist_ok=True)
    settings = AtlasSettings("boxes", space, None, 2, None, None, [], [])
    table = pd.DataFrame({"index": INDEX, "name": NAMES})
    write_atlas(Atlas(table, atlas_labels() if labels is None else labels, affine(), {}), settings, folder)
    return folder


def planted_series(random: np.random.Generator, n_volumes: int = N_VOLUMES) -> np.ndarray:
    """One series per parcel in the order of NAMES, [5, time]: in the pass-band, around 1000."""
    time = np.arange(n_volumes) * TR
    frequencies = random.uniform(0.03, 0.07, size=(5, 4, 1))
    phases = random.uniform(0, 2 * np.pi, size=(5, 4, 1))
    return 1000 + 10 * np.sin(2 * np.pi * frequencies * time + phases).sum(axis=1)


def bold_image(series: np.ndarray, random: np.random.Generator, noise: float = 0.0, dtype: Any = np.float32) -> Any:
    """4D image in which every voxel of a parcel follows its series, plus noise; background is 500 plus noise."""
    labels = atlas_labels()
    data = np.full((*SHAPE, series.shape[1]), 500.0)
    for index, row in zip(INDEX, series, strict=True):
        data[labels == index] = row
    data += noise * random.normal(size=data.shape)
    image = nibabel.Nifti1Image(
        np.round(data).astype(dtype) if np.dtype(dtype).kind == "i" else data.astype(dtype), affine()
    )
    image.header.set_zooms((4, 4, 4, TR))
    return image


def confounds_table(random: np.random.Generator, n_volumes: int = N_VOLUMES, n_non_steady: int = 0) -> pd.DataFrame:
    """A confounds table with the columns of fMRIPrep 21 and later that the strategies use."""
    table = {}
    for name in ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"):
        table[name] = np.cumsum(random.normal(size=n_volumes)) * (0.01 if name.startswith("t") else 1e-4)
    for name in ("white_matter", "csf", "global_signal"):
        table[name] = 500 + np.cumsum(random.normal(size=n_volumes))
    for prefix in "wc":
        for number in range(6):
            table[f"{prefix}_comp_cor_{number:02d}"] = random.normal(size=n_volumes)
    for number in range(int(2 * n_volumes * TR / 128)):
        table[f"cosine{number:02d}"] = np.cos(np.pi * (number + 1) * (np.arange(n_volumes) + 0.5) / n_volumes)
    for number in range(n_non_steady):
        table[f"non_steady_state_outlier{number:02d}"] = (np.arange(n_volumes) == number).astype(float)
    frame = pd.DataFrame(table)
    motion = frame[["trans_x", "trans_y", "trans_z"]].diff().abs().sum(axis=1)
    motion += 50 * frame[["rot_x", "rot_y", "rot_z"]].diff().abs().sum(axis=1)
    frame["framewise_displacement"] = motion.where(frame.index > 0)
    frame["std_dvars"] = np.where(frame.index > 0, 1 + 0.1 * random.normal(size=n_volumes), np.nan)
    return frame


def write_confounds(path: Path, table: pd.DataFrame) -> Path:
    """As fMRIPrep writes it: tab-separated, ``n/a`` for missing."""
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    return path


def index_row(recording: str = "sub-01_task-rest", **changes: Any) -> dict[str, Any]:
    """One row of the index; ``changes`` overrides columns."""
    row = {
        **dict.fromkeys(KEY),
        "cohort": "boxes",
        "participant_id": "01",
        "recording_id": recording,
        "batch": "batch-0001",
        "task": "rest",
        "site": "A",
        "space": SPACE,
        "bold_path": None,
        "mask_path": None,
        "confounds_path": None,
        "tr": TR,
        "exclude_reason": None,
    }
    return row | changes


def write_index(path: Path, rows: list[dict[str, Any]]) -> Path:
    """An index table of these rows."""
    write_table(path, pd.DataFrame(rows), {"stage": "index", "fmriprep_versions": ["25.2.3", None]})
    return path


def write_recording(
    folder: Path, recording: str, image: Any, confounds: pd.DataFrame | None, mask: np.ndarray | None = None
) -> dict[str, Any]:
    """Write image, mask (all voxels unless given) and confounds; returns the row of the index."""
    bold_path = folder / f"{recording}_bold.nii.gz"
    mask_path = folder / f"{recording}_mask.nii.gz"
    nibabel.save(image, bold_path)
    whole = np.ones(image.shape[:3], dtype=np.uint8) if mask is None else mask.astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(whole, image.affine), mask_path)
    paths = {"bold_path": str(bold_path), "mask_path": str(mask_path)}
    if confounds is not None:
        paths["confounds_path"] = str(write_confounds(folder / f"{recording}_confounds.tsv", confounds))
    return index_row(recording, **paths)
