"""Scans from an HDF5 file in the layout of the authors' code, without a cohort file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from semantoks import signals
from semantoks.errors import UserError
from semantoks.model.networks import NetworkTable
from semantoks.training.corpus import Corpus, present_networks


def load_hdf5(
    path: Path | str,
    atlas: str,
    networks: NetworkTable,
    roi_names: list[str],
    target_tr: float,
    min_network_valid: float = 0.5,
    tokenizer: str = "semantic",
    min_frames: int = 40,
) -> Corpus:
    """Read, resample and z-score scans of a model's atlas; they must be band-passed already.

    Parameters
    ----------
    path : holds ``timeseries/<atlas>`` [scan, ROI, time] padded at the end, ``long_subject_id`` [scan],
        ``ts_len`` [scan] in samples and ``tr`` [scan] in s.
    atlas : name of the dataset; its ROIs are taken to be in the model's order, since the layout stores no names.
    target_tr : s, of the model.

    Returns
    -------
    A corpus whose participants are the file's ids and whose cohort is the file's name.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: expected an HDF5 file, found none")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: expected an HDF5 file, found {error}") from None
    with file:
        needed = [f"timeseries/{atlas}", "long_subject_id", "ts_len", "tr"]
        missing = [name for name in needed if name not in file]
        if missing:
            found = sorted(file.get("timeseries", {}))
            raise UserError(f"{path}: expected the datasets {needed}, missing {missing}; its atlases are {found}")
        dataset = file[f"timeseries/{atlas}"]
        if dataset.shape[1] != len(roi_names):
            raise UserError(
                f"{path}: timeseries/{atlas}: expected {len(roi_names)} ROIs as the encoder has, found "
                f"{dataset.shape[1]}; encode with an encoder of that atlas"
            )
        ids = [value.decode() if isinstance(value, bytes) else str(value) for value in file["long_subject_id"][:]]
        scans = [
            _scan(dataset[index, :, : int(length)], float(tr), target_tr, f"{path}: {ids[index]}")
            for index, (length, tr) in enumerate(zip(file["ts_len"][:], file["tr"][:], strict=True))
        ]
    valid = np.stack([with_data for _, with_data in scans])
    lengths = np.array([len(frames) for frames, _ in scans], dtype=np.int64)
    if lengths.min() < min_frames:
        short = ids[int(lengths.argmin())]
        raise UserError(f"{path}: {short}: expected at least {min_frames} samples, found {lengths.min()}; leave it out")
    keys = {"cohort": path.stem, "participant_id": ids, "session_id": None, "recording_id": ids}
    return Corpus(
        table=pd.DataFrame(keys),
        frames=torch.from_numpy(np.concatenate([frames for frames, _ in scans])),
        starts=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)[:-1]])),
        lengths=torch.from_numpy(lengths),
        present_rows=torch.from_numpy(
            valid if tokenizer == "linear" else present_networks(valid, networks, min_network_valid)
        ),
        networks=networks,
        roi_names=roi_names,
        source={"settings": {"tr": target_tr}},
    )


def _scan(bold: np.ndarray, tr: float, target_tr: float, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames [time, ROI] float16 at the target TR, z-scored, and which ROIs have data."""
    bold = bold.astype(np.float64)
    gaps = np.isnan(bold).any(axis=1) & ~np.isnan(bold).all(axis=1)
    if gaps.any():
        raise UserError(f"{where}: expected data in all samples, found NaN in some of {int(gaps.sum())} ROIs")
    with_data = signals.rows_with_data(bold)
    resampled = signals.zscore(signals.resample(bold[with_data], tr, target_tr))
    frames = np.zeros((resampled.shape[1], len(bold)), dtype=np.float16)
    frames[:, with_data] = resampled.T
    return frames, with_data
