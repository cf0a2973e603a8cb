"""The HDF5 file of a cohort of type ``hdf5``: its layout, checked, and what it tells of each recording."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semantoks.errors import UserError

if TYPE_CHECKING:
    import h5py

DEFAULT_LENGTH = "ts_len"
"""Name of the dataset of lengths that may be absent: of one the user has named, absence is a mistake."""


@contextmanager
def open_hdf5(source: Mapping[str, Any]) -> Iterator[h5py.File]:
    """Open the file of a cohort's source for reading, after checking what concerns all its recordings.

    Raises
    ------
    UserError
        For a file that is none, a missing dataset or one of another shape or type: time series are numbers
        [recording, ROI, time], the same recordings and frames in all datasets; ids and lengths have one value for
        each recording, names one for each ROI.
    """
    import h5py

    try:
        file = h5py.File(source["path"], "r")
    except OSError as error:
        raise UserError(f"{source['path']}: expected an HDF5 file, found {error}; correct 'source.path'") from None
    with file:
        _check_layout(file, source)
        yield file


def texts(dataset: h5py.Dataset) -> list[str]:
    """Values of a dataset as text; bytes that are no UTF-8 are shown as their codes."""
    values = dataset[:]
    return [value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value) for value in values]


def number_per_recording(file: h5py.File, source: Mapping[str, Any], key: str) -> NDArray[np.float64]:
    """Values [recording] of the dataset that ``source.<key>`` names.

    Raises
    ------
    UserError
        When there is no such dataset, or it does not hold one number for each recording.
    """
    dataset = _dataset(file, source, key, source[key])
    _expect_shape(dataset, source, key, (file[source["datasets"][0]].shape[0],), "one for each recording")
    if dataset.dtype.kind not in "iuf":
        raise _wrong(source, key, f"numbers in {source[key]!r}", str(dataset.dtype))
    return np.asarray(dataset[:], dtype=np.float64)


class FramesOf:
    """Number of frames of each recording of an open file."""

    def __init__(self, file: h5py.File, source: Mapping[str, Any]) -> None:
        self._datasets = [file[name] for name in source["datasets"]]
        self._name = source["length"]
        self._lengths = number_per_recording(file, source, "length") if self._name in file else None

    def __call__(self, position: int) -> int:
        """Frames of the recording in a row: what the file says, else those before the NaN padding.

        Raises
        ------
        ValueError
            When the file says what cannot be, or all frames are NaN; the message is the recording's reason.
        """
        stored = int(self._datasets[0].shape[2])
        if self._lengths is not None:
            length = float(self._lengths[position])
            if not (1 <= length <= stored and length == int(length)):
                raise ValueError(f"{self._name}: expected 1 to {stored} frames as stored, found {length:g}")
            return int(length)
        padding = np.all([np.isnan(dataset[position]).all(axis=0) for dataset in self._datasets], axis=0)
        if padding.all():
            raise ValueError("no frame with data: all are NaN")
        return stored - int(np.argmin(padding[::-1]))


def _check_layout(file: h5py.File, source: Mapping[str, Any]) -> None:
    datasets = [_dataset(file, source, "datasets", name) for name in source["datasets"]]
    first = datasets[0]
    for name, dataset in zip(source["datasets"], datasets, strict=True):
        if len(dataset.shape) != 3 or 0 in dataset.shape:
            raise _wrong(source, "datasets", f"time series [recording, ROI, time] in {name!r}", _shape(dataset))
        if dataset.dtype.kind not in "iuf":
            raise _wrong(source, "datasets", f"numbers in {name!r}", str(dataset.dtype))
        if (dataset.shape[0], dataset.shape[2]) != (first.shape[0], first.shape[2]):
            expected = f"{first.shape[0]} recordings of {first.shape[2]} frames as in {source['datasets'][0]!r}"
            raise _wrong(source, "datasets", f"{expected} in {name!r}", _shape(dataset))
    ids = _dataset(file, source, "id", source["id"])
    _expect_shape(ids, source, "id", first.shape[:1], "one for each recording")
    if source["length"] != DEFAULT_LENGTH or source["length"] in file:
        number_per_recording(file, source, "length")
    if source["roi_names"]:
        names = _dataset(file, source, "roi_names", source["roi_names"])
        n_rois = sum(dataset.shape[1] for dataset in datasets)
        _expect_shape(names, source, "roi_names", (n_rois,), f"one for each ROI of {' + '.join(source['datasets'])}")


def _dataset(file: h5py.File, source: Mapping[str, Any], key: str, name: str) -> h5py.Dataset:
    import h5py

    if not isinstance(file.get(name), h5py.Dataset):
        found: list[str] = []
        file.visititems(lambda name, one: found.append(name) if isinstance(one, h5py.Dataset) else None)
        raise _wrong(source, key, f"the dataset {name!r}", ", ".join(found) or "none at all")
    return file[name]


def _expect_shape(
    dataset: h5py.Dataset, source: Mapping[str, Any], key: str, shape: tuple[int, ...], meaning: str
) -> None:
    if dataset.shape != shape:
        raise _wrong(source, key, f"{shape[0]} values in {source[key]!r}, {meaning}", _shape(dataset))


def _shape(dataset: h5py.Dataset) -> str:
    return f"the shape {dataset.shape}"


def _wrong(source: Mapping[str, Any], key: str, expected: str, found: str) -> UserError:
    advice = "correct it, or set 'tr' in the cohort file" if key == "tr" else "correct the cohort file or the data"
    return UserError(f"{source['path']}: key 'source.{key}': expected {expected}, found {found}; {advice}")
