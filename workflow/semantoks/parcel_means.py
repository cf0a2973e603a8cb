"""Mean time series of parcels out of a 4D NIfTI image, in one pass over the file.

Only voxels of parcels inside the brain mask are kept while the file is read, so memory depends on the atlas and
the length of the recording, not on the size of the image.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from semantoks.errors import UserError
from semantoks.label_images import Labels

try:  # reads gzip two to three times faster where it is installed
    from isal import igzip as fast_gzip  # type: ignore
except ImportError:
    fast_gzip = gzip


@dataclass(frozen=True)
class Bold:
    """Header of a 4D image: what is needed to read its volumes."""

    path: Path
    shape: tuple[int, int, int]
    n_volumes: int
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float


def open_bold(path: Path | str) -> Bold:
    """Read the header of a 4D NIfTI image.

    Raises
    ------
    UserError
        When the file is missing, is no NIfTI image, not 4D, has one volume or complex values.
    """
    path = Path(path)
    if not path.is_file():
        what = "a link to nothing" if path.is_symlink() else "no file"
        raise UserError(f"{path}: expected a 4D NIfTI image, found {what}")
    try:
        image: Any = nibabel.load(path)
    except (ImageFileError, OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: expected a 4D NIfTI image, found something unreadable ({error})") from None
    if len(image.shape) != 4:
        raise UserError(f"{path}: expected a 4D image, found {len(image.shape)}D {image.shape}")
    if image.shape[3] < 2:
        raise UserError(f"{path}: expected a time series, found {image.shape[3]} volume")
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise UserError(f"{path}: expected real numbers, found data type {dtype}")
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    affine = np.asarray(image.affine, dtype=np.float64)
    return Bold(path, image.shape[:3], image.shape[3], affine, dtype, image.dataobj.offset, slope, intercept)


def volumes(bold: Bold) -> Iterator[NDArray[Any]]:
    """The volumes one after another as stored (before slope and intercept), flat, first axis fastest.

    Raises
    ------
    UserError
        When the file ends early or its checksum is wrong.
    """
    n_bytes = int(np.prod(bold.shape)) * bold.dtype.itemsize
    compressed = bold.path.suffix == ".gz"
    try:
        with fast_gzip.open(bold.path, "rb") if compressed else bold.path.open("rb") as file:
            file.read(bold.offset)
            for number in range(bold.n_volumes):
                content = file.read(n_bytes)
                if len(content) < n_bytes:
                    raise UserError(f"{bold.path}: expected {bold.n_volumes} volumes, found {number}")
                yield np.frombuffer(content, dtype=bold.dtype)
            if compressed:
                file.read(1)  # reaching the end makes gzip compare its checksum
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{bold.path}: expected a complete image, found a damaged file ({error})") from None


def mean_volume(bold: Bold) -> NDArray[np.float64]:
    """Mean over time, float64 [x, y, z]."""
    total = np.zeros(int(np.prod(bold.shape)))
    for volume in volumes(bold):
        total += np.nan_to_num(volume)
    mean: NDArray[np.float64] = (total / bold.n_volumes * bold.slope + bold.intercept).reshape(bold.shape, order="F")
    return mean


@dataclass(frozen=True)
class ParcelMeans:
    """Mean time series and measures of each parcel."""

    means: NDArray[np.float64]
    """[ROI, time], in the units of the image; NaN for a parcel without data."""
    voxels: NDArray[np.int64]
    """[ROI], voxels of the parcel on the image's grid."""
    voxels_with_data: NDArray[np.int64]
    """[ROI], those inside the mask that are finite and vary."""
    tsnr: NDArray[np.float64]
    """[ROI], temporal mean over temporal standard deviation per voxel, averaged over the parcel; NaN without data."""


def parcel_means(
    bold: Bold, labels: Labels, index: NDArray[np.integer], mask: NDArray[np.bool_], first: int = 0
) -> ParcelMeans:
    """Average the voxels of each parcel that lie inside the mask and hold data.

    Parameters
    ----------
    bold : the image.
    labels : int32 [x, y, z] on the grid of the image.
    index : [ROI], the label of each parcel; labels are matched by value, never by position.
    mask : bool [x, y, z].
    first : number of volumes to leave out at the start.

    Raises
    ------
    UserError
        Damaged file, or a volume in which most voxels are not finite.
    """
    flat = labels.ravel(order="F")
    position = np.full(max(int(flat.max()), int(index.max())) + 1, -1, dtype=np.int64)
    position[index] = np.arange(len(index))
    of_voxel = position[flat]
    of_voxel[flat == 0] = -1
    voxels = np.bincount(of_voxel[of_voxel >= 0], minlength=len(index))
    where = np.flatnonzero((of_voxel >= 0) & mask.ravel(order="F"))
    where = where[np.argsort(of_voxel[where], kind="stable")]
    data = _gather(bold, where, first)
    with_data = _varying(data, bold.path, first)
    if not with_data.all():
        data, where = data[:, with_data], where[with_data]
    counts = np.bincount(of_voxel[where], minlength=len(index))
    means = np.full((len(index), len(data)), np.nan)
    tsnr = np.full(len(index), np.nan)
    present = counts > 0
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])[present]
    if present.any():
        means[present] = (np.add.reduceat(data, starts, axis=1, dtype=np.float64) / counts[present]).T
        tsnr[present] = np.add.reduceat(_tsnr(data), starts) / counts[present]
    return ParcelMeans(means, voxels, counts, tsnr)


def _gather(bold: Bold, where: NDArray[np.integer], first: int) -> NDArray[np.float32]:
    """Values of the given voxels after slope and intercept, float32 [time, voxel]."""
    data = np.empty((bold.n_volumes - first, len(where)), dtype=np.float32)
    for number, volume in enumerate(volumes(bold)):
        if number >= first:
            data[number - first] = volume[where]
    if bold.slope != 1 or bold.intercept != 0:
        data *= np.float32(bold.slope)
        data += np.float32(bold.intercept)
    return data


def _varying(data: NDArray[np.float32], path: Path, first: int) -> NDArray[np.bool_]:
    """Which voxels are finite and not constant, bool [voxel]."""
    lowest, highest = data.min(axis=0), data.max(axis=0)
    finite = np.isfinite(lowest) & np.isfinite(highest)
    if finite.mean() < 0.5:
        share = (~np.isfinite(data)).mean(axis=1)
        broken = np.flatnonzero(share > 0.5) + first + 1
        if broken.size:
            raise UserError(f"{path}: expected finite values, found NaN or infinity in volume {broken[0]}")
    varying: NDArray[np.bool_] = finite & (highest > lowest)
    return varying


def _tsnr(data: NDArray[np.float32]) -> NDArray[np.float64]:
    mean = data.mean(axis=0, dtype=np.float64)
    deviation = data - mean.astype(np.float32)
    variance = np.einsum("tv,tv->v", deviation, deviation) / len(data)
    ratio: NDArray[np.float64] = mean / np.sqrt(variance)
    return ratio
