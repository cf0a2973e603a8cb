"""Mean time series of parcels out of a 4D NIfTI image, in one pass over the file.

Sums are updated volume by volume while the file is read, so memory does not depend on the length of the recording.
Further passes are needed only where voxels turn out not to be finite.
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from semantoks.errors import UserError
from semantoks.label_images import Labels

fast_gzip: ModuleType = gzip
DAMAGED: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
"""What reading a damaged file raises."""
with contextlib.suppress(ImportError):  # reads gzip two to three times faster where it is installed
    from isal import igzip, igzip_lib

    fast_gzip = igzip
    isal_error: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]
    DAMAGED = (*DAMAGED, isal_error)


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
    except (ImageFileError, HeaderDataError, ValueError, *DAMAGED) as error:
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
    except DAMAGED as error:
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


@dataclass(frozen=True)
class ParcelVoxels:
    """The voxels of an atlas on the grid of an image, parcel after parcel; made once for all images of that grid."""

    counts: NDArray[np.int64]
    """[ROI], voxels of each parcel."""
    position: NDArray[np.intp]
    """[voxel], where each labelled voxel lies, first axis fastest."""
    parcel: NDArray[np.intp]
    """[voxel], number of its parcel; never falls."""


def voxels_of_parcels(labels: Labels, index: NDArray[np.integer]) -> ParcelVoxels:
    """Sort the voxels of a label image by parcel.

    Parameters
    ----------
    labels : int32 [x, y, z].
    index : [ROI], the label of each parcel; labels are matched by value, never by position.
    """
    number = np.full(max(int(labels.max()), int(index.max())) + 1, -1, dtype=np.intp)
    number[index] = np.arange(len(index))
    number[0] = -1
    of_voxel = number[labels.ravel(order="F")]
    labelled = np.flatnonzero(of_voxel >= 0)
    position = labelled[np.argsort(of_voxel[labelled], kind="stable")]
    parcel = of_voxel[position]
    return ParcelVoxels(np.bincount(parcel, minlength=len(index)), position, parcel)


def parcel_means(bold: Bold, atlas: ParcelVoxels, mask: NDArray[np.bool_], first: int = 0) -> ParcelMeans:
    """Average the voxels of each parcel that lie inside the mask and hold data.

    Parameters
    ----------
    bold : the image.
    atlas : the voxels of each parcel on the grid of the image.
    mask : bool [x, y, z].
    first : number of volumes to leave out at the start.

    Raises
    ------
    UserError
        Damaged file, or a volume in which most of the voxels that are labelled and inside the mask are not finite.
    """
    n_rois = len(atlas.counts)
    inside = mask.ravel(order="F")[atlas.position]
    where, parcel = atlas.position[inside], atlas.parcel[inside]
    sums = _accumulate(bold, where, parcel, n_rois, first)
    finite = np.isfinite(sums.squares)
    if not finite.all():
        if finite.mean() < 0.5:  # else no volume can be broken
            _refuse_broken_volumes(bold, where, first)
        where, parcel = where[finite], parcel[finite]
        sums = _accumulate(bold, where, parcel, n_rois, first)
    varying = sums.squares > 0
    counts = np.bincount(parcel[varying], minlength=n_rois)

    def average(values: NDArray[np.floating]) -> NDArray[np.float64]:
        total = np.bincount(parcel, values * varying, minlength=n_rois)
        mean: NDArray[np.float64] = np.divide(total, counts, out=np.full(n_rois, np.nan), where=counts > 0)
        return mean

    with np.errstate(divide="ignore", invalid="ignore"):
        changes = sums.parcels / counts
    means = (average(sums.base)[:, None] + changes.T) * bold.slope + bold.intercept
    return ParcelMeans(
        means, atlas.counts, counts, np.sign(bold.slope) * average(sums.tsnr(bold.intercept / bold.slope))
    )


@dataclass(frozen=True)
class _Sums:
    """What one pass over an image leaves: sums of differences to the first volume, in the units stored.

    The differences are small, so that float32 holds them well, and exactly 0 for a constant voxel, which therefore
    adds nothing to its parcel.
    """

    base: NDArray[np.float32]
    """The first volume [voxel]."""
    total: NDArray[np.float32]
    """Sum over time [voxel]."""
    squares: NDArray[np.float32]
    """Sum of squares over time [voxel]; not finite where any value is not, 0 for a constant."""
    parcels: NDArray[np.float64]
    """Sum over voxels [time, ROI]."""

    def tsnr(self, intercept: float) -> NDArray[np.float64]:
        """Mean over standard deviation (ddof 0) of each voxel; ``intercept`` of the image in units stored."""
        shift = self.total.astype(np.float64) / len(self.parcels)
        variance = self.squares / len(self.parcels) - shift**2
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = self.base + shift + intercept
            ratio: NDArray[np.float64] = mean / np.sqrt(np.maximum(variance, np.finfo(np.float32).tiny))
        return ratio


def _accumulate(bold: Bold, where: NDArray[np.intp], parcel: NDArray[np.intp], n_rois: int, first: int) -> _Sums:
    """Read the file once, everything of a volume while it is in the processor's cache.

    ``where``: voxels sorted by parcel; ``parcel``: the parcel of each.
    """
    base, total, squares, values = np.zeros((4, len(where)), dtype=np.float32)
    taken = np.empty(len(where), dtype=bold.dtype)
    parcels = np.zeros((bold.n_volumes - first, n_rois))
    counts = np.bincount(parcel, minlength=n_rois)
    present = np.flatnonzero(counts)
    starts = (np.cumsum(counts) - counts)[present]
    with np.errstate(invalid="ignore", over="ignore"):
        for number, volume in enumerate(volumes(bold), -first):
            if number < 0 or not len(where):
                continue
            volume.take(where, mode="clip", out=taken)
            if number == 0:
                base[:] = taken
            np.subtract(taken, base, out=values, dtype=np.float32, casting="unsafe")
            parcels[number, present] = np.add.reduceat(values, starts)  # numpy sums float32 pairwise
            total += values
            values *= values
            squares += values
    return _Sums(base, total, squares, parcels)


def _refuse_broken_volumes(bold: Bold, where: NDArray[np.intp], first: int) -> None:
    """Read the file up to the first volume of which most of the voxels ``where`` are not finite."""
    for number, volume in enumerate(volumes(bold), 1):
        share = 1 - np.isfinite(volume[where]).mean() if number > first else 0.0
        if share > 0.5:
            raise UserError(
                f"{bold.path}: expected finite values, found NaN or infinity in volume {number}: in {share:.0%} of the "
                "atlas's voxels inside the brain mask"
            )
