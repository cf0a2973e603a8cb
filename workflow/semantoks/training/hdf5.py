"""Scans from an HDF5 file in the layout of the authors' code, without a cohort file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from semantoks import signals
from semantoks.errors import UserError
from semantoks.hdf5_source import texts
from semantoks.model.networks import NetworkTable
from semantoks.training.corpus import Corpus, present_networks

LONGEST_TR = 30.0
"""s; more is a repetition time in other units."""


class UnusableScanError(Exception):
    """A scan that cannot be encoded, with the reason as its message."""


@dataclass
class Hdf5Scans:
    """The scans of an HDF5 file, resampled and z-scored for a model; they must be band-passed already.

    Attributes
    ----------
    path : holds ``timeseries/<atlas>`` [scan, ROI, time] padded at the end, ``long_subject_id`` [scan],
        ``ts_len`` [scan] in samples and ``tr`` [scan] in s.
    atlas : name of the dataset; its ROIs are taken to be in the model's order, since the layout stores no names.
    networks, roi_names, tokenizer : of the model.
    target_tr : s, of the model.
    min_network_valid : a network with a smaller share of valid ROIs is masked.
    min_frames : shorter scans, after resampling, are left out.
    """

    path: Path
    atlas: str
    networks: NetworkTable
    roi_names: list[str]
    target_tr: float
    min_network_valid: float = 0.5
    tokenizer: str = "semantic"
    min_frames: int = 40

    def unusable(self) -> dict[str, str]:
        """Why scans cannot be encoded, by their ids; reads the whole file, one scan in memory.

        Raises
        ------
        UserError
            For a file that does not have this layout, holds no scan or one id twice, or no scan that can be encoded.
        """
        reasons: dict[str, str] = {}
        with self._open() as file:
            ids = self._ids(file)
            for index, name in enumerate(ids):
                try:
                    self._checked(file, index)
                except UnusableScanError as reason:
                    reasons[name] = str(reason)
        if len(reasons) == len(ids):
            raise UserError(
                f"{self.path}: expected a scan that can be encoded, found none of {len(ids)}; {ids[0]}: "
                f"{reasons[ids[0]]}"
            )
        return reasons

    def corpora(self, n_scans: int = 128) -> Iterator[Corpus]:
        """The usable ones of every ``n_scans`` scans; participants and recordings are the file's ids."""
        with self._open() as file:
            ids = self._ids(file)
            for first in range(0, len(ids), n_scans):
                corpus = self._corpus(file, ids, range(first, min(first + n_scans, len(ids))))
                if corpus is not None:
                    yield corpus

    @contextmanager
    def _open(self) -> Iterator[Any]:
        import h5py

        if not Path(self.path).is_file():
            raise UserError(f"{self.path}: expected an HDF5 file, found none")
        try:
            file = h5py.File(self.path, "r")
        except OSError as error:
            raise UserError(f"{self.path}: expected an HDF5 file, found {error}") from None
        with file:
            yield file

    def _ids(self, file: Any) -> list[str]:
        """Ids of the scans, after checking the layout of the file."""
        import h5py

        dataset = f"timeseries/{self.atlas}"
        needed = [dataset, "long_subject_id", "ts_len", "tr"]
        missing = [name for name in needed if not isinstance(file.get(name), h5py.Dataset)]
        if missing:
            found = sorted(file.get("timeseries", {}))
            raise UserError(f"{self.path}: expected the datasets {needed}, missing {missing}; its atlases are {found}")
        shape = file[dataset].shape
        if len(shape) != 3 or shape[0] == 0:
            raise UserError(f"{self.path}: {dataset}: expected scans [scan, ROI, time], found the shape {shape}")
        if shape[1] != len(self.roi_names):
            raise UserError(
                f"{self.path}: {dataset}: expected {len(self.roi_names)} ROIs as the encoder has, found {shape[1]}; "
                "encode with an encoder of that atlas"
            )
        for name in needed[1:]:
            if file[name].shape != shape[:1]:
                raise UserError(f"{self.path}: {name}: expected {shape[0]} values, found the shape {file[name].shape}")
        for name in (dataset, *needed[2:]):
            if file[name].dtype.kind not in "iuf":
                raise UserError(f"{self.path}: {name}: expected numbers, found {file[name].dtype}")
        ids = texts(file["long_subject_id"])
        repeated = pd.Series(ids)[pd.Series(ids).duplicated()]
        if len(repeated) or "" in ids:
            raise UserError(
                f"{self.path}: long_subject_id: expected an id of its own for every scan, found "
                f"{repeated.iloc[0] if len(repeated) else ''!r} {'again' if len(repeated) else ''}; two scans of one "
                "person need different ids"
            )
        return ids

    def _corpus(self, file: Any, ids: list[str], indices: range) -> Corpus | None:
        """The usable ones among some scans; None when there is none."""
        kept, all_frames, all_valid = [], [], []
        for index in indices:
            try:
                bold, with_data, tr = self._checked(file, index)
            except UnusableScanError:
                continue
            resampled = signals.zscore(signals.resample(bold[with_data], tr, self.target_tr))
            frames = np.zeros((resampled.shape[1], len(bold)), dtype=np.float16)
            frames[:, with_data] = resampled.T
            kept.append(ids[index])
            all_frames.append(frames)
            all_valid.append(with_data)
        if not kept:
            return None
        lengths = np.array([len(frames) for frames in all_frames], dtype=np.int64)
        keys = {"cohort": Path(self.path).stem, "participant_id": kept, "session_id": None, "recording_id": kept}
        return Corpus(
            table=pd.DataFrame(keys),
            frames=torch.from_numpy(np.concatenate(all_frames)),
            starts=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)[:-1]])),
            lengths=torch.from_numpy(lengths),
            present_rows=torch.from_numpy(self._present(np.stack(all_valid))),
            networks=self.networks,
            roi_names=self.roi_names,
            source={"settings": {"tr": self.target_tr}},
        )

    def _present(self, valid: np.ndarray) -> np.ndarray:
        """Token rows with data, of ``valid`` [scan, ROI]."""
        if self.tokenizer == "linear":
            return valid
        return present_networks(valid, self.networks, self.min_network_valid)

    def _checked(self, file: Any, index: int) -> tuple[np.ndarray, np.ndarray, float]:
        """BOLD of a scan as stored, float64 [ROI, time], which ROIs have data, and TR in s."""
        dataset = file[f"timeseries/{self.atlas}"]
        length, tr = float(file["ts_len"][index]), float(file["tr"][index])
        if not (1 <= length <= dataset.shape[2] and length == int(length)):
            raise UnusableScanError(f"ts_len: expected 1 to {dataset.shape[2]} samples as stored, found {length:g}")
        if not 0 < tr <= LONGEST_TR:
            raise UnusableScanError(f"tr: expected seconds above 0 and up to {LONGEST_TR:g}, found {tr:g}")
        n_frames = signals.n_resampled(int(length), tr, self.target_tr)
        if n_frames < self.min_frames:
            raise UnusableScanError(
                f"expected at least {self.min_frames} samples at {self.target_tr:g} s, found {n_frames}"
            )
        try:
            bold = dataset[index, :, : int(length)].astype(np.float64)
        except OSError as error:
            raise UnusableScanError(f"expected data that can be read, found {error}") from None
        finite = np.isfinite(bold)
        gaps = finite.any(axis=1) & ~finite.all(axis=1)
        if gaps.any():
            raise UnusableScanError(
                f"expected data in all samples, found NaN or infinity in some of {int(gaps.sum())} ROIs"
            )
        with_data = signals.rows_with_data(bold)
        if not self._present(with_data[None]).any():
            raise UnusableScanError(
                f"expected a network with data in at least {self.min_network_valid:.0%} of its ROIs, found none; "
                f"{int(with_data.sum())} of {len(bold)} ROIs have data"
            )
        return bold, with_data, tr
