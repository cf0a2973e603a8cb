"""Fake BIDS trees for tests: real names, empty or tiny files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
from semantoks.batches import read_batch, update_batches
from semantoks.index import build_index

COHORT: dict[str, Any] = {
    "name": "study",
    "tasks": None,
    "entities": {},
    "include": None,
    "exclude": [],
    "space": "MNI152NLin6Asym",
    "resolution": None,
    "tr": None,
    "participants": None,
    "site_column": None,
    "mean_fd_column": None,
    "already_done": {"band_pass": None, "global_signal_regression": False, "z_score": False},
}
"""Cohort settings with every default, as the schema fills them in; tests override what they are about."""


def cohort(source: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    return {**COHORT, "source": dict(source), **settings}


def derivative(
    root: Path, name: str, space: str = "MNI152NLin6Asym", tr: float | None = 2.0, n_frames: int = 60, **entities: str
) -> Path:
    """One preprocessed volume with mask, confounds and sidecar; ``name`` is e.g. ``sub-01_ses-1_task-rest_run-01``."""
    parts = dict(part.split("-", 1) for part in name.split("_"))
    folder = root / f"sub-{parts['sub']}" / (f"ses-{parts['ses']}" if "ses" in parts else "") / "func"
    folder.mkdir(parents=True, exist_ok=True)
    if not (root / "dataset_description.json").exists():
        description = {"Name": "fake", "BIDSVersion": "1.8.0", "DatasetType": "derivative"}
        (root / "dataset_description.json").write_text(json.dumps(description))
    further = "".join(f"_{key}-{value}" for key, value in entities.items())
    stem = f"{name}_space-{space}{further}"
    image = folder / f"{stem}_desc-preproc_bold.nii.gz"
    write_image(image, n_frames, tr or 0.0)
    mask = nibabel.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4))
    nibabel.save(mask, folder / f"{stem}_desc-brain_mask.nii.gz")
    (folder / f"{name}_desc-confounds_timeseries.tsv").write_text("csf\n" + "0.0\n" * n_frames)
    if tr is not None:
        (folder / f"{stem}_desc-preproc_bold.json").write_text(json.dumps({"RepetitionTime": tr}))
    return image


def raw(root: Path, name: str, suffix: str = "bold") -> Path:
    """One empty raw image, as in the BIDS examples."""
    parts = dict(part.split("-", 1) for part in name.split("_"))
    folder = root / f"sub-{parts['sub']}" / (f"ses-{parts['ses']}" if "ses" in parts else "") / "func"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "fake", "BIDSVersion": "1.8.0"}))
    path = folder / f"{name}_{suffix}.nii.gz"
    path.touch()
    return path


def write_image(path: Path, n_frames: int = 60, tr: float = 2.0) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4, n_frames), np.int16), np.eye(4))
    image.header.set_zooms((1, 1, 1, tr))
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)


def fmriprep(root: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a cohort of derivatives."""
    return cohort({"type": "fmriprep", "path": str(root)}, **settings)


def index_of(settings: dict[str, Any], *status_files: Path) -> pd.DataFrame:
    """The index of a cohort in one batch, by way of the batch's file as in the workflow."""
    with tempfile.TemporaryDirectory() as folder:
        update_batches(settings, Path(folder), 1000)
        listing = read_batch(Path(folder) / "part-0001.tsv").assign(batch="part-0001")
    return build_index(settings, listing, status_files)
