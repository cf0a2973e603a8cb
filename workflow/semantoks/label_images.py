"""Label images and label tables: reading, checking, bringing onto another grid of the same space."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from semantoks.errors import UserError
from semantoks.files import read_text_table

Labels = NDArray[np.int32]


def read_label_image(path: Path | str) -> tuple[Labels, NDArray[np.float64]]:
    """Read a 3D image of integer labels.

    Returns
    -------
    int32 [x, y, z] labels, 0 is background; float64 [4, 4] affine from voxel indices to mm.

    Raises
    ------
    UserError
        When the file is missing, unreadable, not 3D, or holds values that are not whole numbers ≥ 0.
    """
    values, affine = _read_volume(path, "label image")
    labels = (values if values.dtype.kind in "iu" else np.nan_to_num(values)).astype(np.int32)
    exact = np.can_cast(values.dtype, np.int32)
    if labels.min() < 0 or not (exact or (labels == values).all()):
        raise UserError(f"{path}: expected whole numbers from 0 as labels, found others; is it a probability map?")
    return labels, affine


def read_mask_image(path: Path | str) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Read a 3D mask, in which the inside need not be exactly 1 (TemplateFlow has one of 1.00000006).

    Returns
    -------
    bool [x, y, z], above half; float64 [4, 4] affine from voxel indices to mm.

    Raises
    ------
    UserError
        When the file is missing, unreadable, not 3D, or nothing is inside.
    """
    values, affine = _read_volume(path, "mask")
    mask = values > 0.5
    if not mask.any():
        raise UserError(f"{path}: expected a mask, found no voxel in it")
    return mask, affine


def _read_volume(path: Path | str, what: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    if not Path(path).is_file():
        raise UserError(f"{path}: expected a NIfTI {what}, found no file")
    try:
        image: Any = nibabel.load(path)
        values = np.asarray(image.dataobj)
    except (ImageFileError, HeaderDataError, OSError, ValueError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: expected a NIfTI {what}, found something unreadable ({error})") from None
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise UserError(f"{path}: expected a 3D {what}, found {values.ndim} dimensions {values.shape}")
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise UserError(f"{path}: expected an affine that leads from voxels to mm, found {affine.tolist()}")
    return values, affine


def write_label_image(path: Path | str, labels: Labels, affine: NDArray[np.float64]) -> None:
    """Write labels [x, y, z] as int16 (int32 beyond 32,767) NIfTI; equal labels give equal bytes."""
    image = nibabel.Nifti1Image(labels.astype(np.int16 if labels.max() < 2**15 else np.int32), affine)
    image.set_sform(affine, code=4)
    image.set_qform(affine, code=4)
    nibabel.save(image, path)


def on_grid(labels: Labels, affine: NDArray[np.float64], shape: tuple[int, ...], target: NDArray[np.float64]) -> Labels:
    """Labels on another grid of the same space, by nearest neighbour; 0 outside the image.

    Parameters
    ----------
    labels : int32 [x, y, z]; affine : its affine.
    shape : shape [x, y, z] of the target grid.
    target : affine of the target grid.
    """
    if shape == labels.shape and np.allclose(affine, target, atol=1e-4):
        return labels
    to_source = np.linalg.inv(affine) @ target
    x, y, z = (np.arange(n, dtype=np.float64) for n in shape)
    result = np.zeros(shape, dtype=np.int32)
    for k, plane in enumerate(z):
        points = [
            np.add.outer(to_source[axis, 0] * x, to_source[axis, 1] * y)
            + to_source[axis, 2] * plane
            + to_source[axis, 3]
            for axis in range(3)
        ]
        # rounding first makes ties, frequent between grids of 1 and 2 mm, independent of the processor
        nearest = [np.floor(np.round(point, 4) + 0.5).astype(np.intp) for point in points]
        inside = np.all([(n >= 0) & (n < size) for n, size in zip(nearest, labels.shape, strict=True)], axis=0)
        result[inside, k] = labels[tuple(n[inside] for n in nearest)]
    return result


def share_inside(
    labels: Labels,
    affine: NDArray[np.float64],
    index: NDArray[np.integer],
    shape: tuple[int, ...],
    target: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Share of each label's voxels that lie in the field of view of another grid, float64 [label], NaN for none."""
    voxels = np.argwhere(labels > 0)
    to_target = np.linalg.inv(target) @ affine
    points = voxels @ to_target[:3, :3].T + to_target[:3, 3]
    inside = ((points > -0.5 - 1e-4) & (points < np.array(shape) - 0.5 + 1e-4)).all(axis=1)
    values = labels[labels > 0]
    count = np.bincount(values, minlength=index.max() + 1)[index]
    with np.errstate(invalid="ignore"):
        shares: NDArray[np.float64] = np.bincount(values, inside, minlength=index.max() + 1)[index] / count
    return shares


def read_label_table(path: Path | str) -> pd.DataFrame:
    """Read a label table in any of the forms in use.

    Forms: TSV or CSV with a header (``index`` and ``name`` or ``label``; optionally ``network`` or ``network_label``);
    lines of ``index name …`` (CBIG); pairs of lines ``name`` and ``index r g b a`` (Connectome Workbench);
    lines of ``index r g b name``; names only, one per line.

    Returns
    -------
    Columns index (int), name (text) and, where the table has it, network (text); rows in the order of the table.

    Raises
    ------
    UserError
        Unknown form, or an index that is not a whole number.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: expected a label table, found no file")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected a label table in UTF-8, found {error}") from None
    if lines and "index" in re.split(r"[\t,]", lines[0].lower()):
        return _with_header(path)
    rows = _without_header(lines)
    if not rows:
        raise UserError(
            f"{path}: expected a label table (TSV with the columns index and name, or one of the forms in "
            f"docs/atlases.md), found {lines[0]!r} in the first line"
            if lines
            else f"{path}: found an empty file"
        )
    return pd.DataFrame(rows, columns=["index", "name"])


def _with_header(path: Path) -> pd.DataFrame:
    table = read_text_table(path).rename(columns=str.lower)
    name = next((column for column in ("name", "label") if column in table), None)
    if name is None:
        raise UserError(f"{path}: expected the columns index and name (or label), found {', '.join(table.columns)}")
    try:
        result = pd.DataFrame({"index": table["index"].astype(int), "name": table[name].astype(str)})
    except (ValueError, TypeError):
        raise UserError(f"{path}: column 'index': expected whole numbers, found others") from None
    if table[name].isna().any():
        raise UserError(f"{path}: column {name!r}: expected a name in every row, found empty cells")
    network = next((column for column in ("network", "network_label") if column in table), None)
    return result if network is None else result.assign(network=table[network])


def _without_header(lines: list[str]) -> list[tuple[int, str]]:
    by_line = [re.match(r"^(\d+)[\s,]+([^\s,]*[A-Za-z][^\s,]*)", line) for line in lines]
    if lines and all(by_line):
        return [(int(match[1]), match[2]) for match in by_line if match]
    coloured = [re.match(r"^(\d+)\s+[\d.]+\s+[\d.]+\s+[\d.]+\s+(\S+)$", line) for line in lines]
    if lines and all(coloured) and not all(re.fullmatch(r"[\d.\s]+", line) for line in lines):
        return [(int(match[1]), match[2]) for match in coloured if match]
    indices = [re.match(r"^(\d+)(\s+\d+){3,4}$", line) for line in lines[1::2]]
    if lines and len(lines) % 2 == 0 and all(indices):
        return [(int(match[1]), name) for name, match in zip(lines[::2], indices, strict=True) if match]
    if lines and not any(re.match(r"^\d", line) or re.search(r"\s", line) for line in lines):
        return list(enumerate(lines, 1))
    return []


def check_labels(table: pd.DataFrame, where: str, dropped: Collection[int] = ()) -> None:
    """Check that indices and names are unique, and indices run without gap from 1, but for those ``dropped``.

    Raises
    ------
    UserError
        Naming the first duplicate or gap.
    """
    for column in ("index", "name"):
        double = table[column][table[column].duplicated()]
        if len(double):
            raise UserError(f"{where}: column {column!r}: expected different values, found {double.iloc[0]} twice")
    background = table.loc[table["index"] == 0, "name"]
    if len(background):
        raise UserError(
            f"{where}: expected parcels, whose indices start at 1, found {background.iloc[0]!r} with index 0, which is "
            "the background; delete that row"
        )
    known = {*table["index"], *dropped}
    gap = next(number for number in itertools.count(1) if number not in known)
    if gap < table["index"].max():
        found = f"{table['index'].min()} to {table['index'].max()}"
        raise UserError(
            f"{where}: expected the indices 1 to {len(table)}, found {found} without {gap}; renumber the labels"
        )
