"""Stage ``parcellate``: from preprocessed images to cleaned parcel time series at native TR, one file per batch."""

from __future__ import annotations

import argparse
import functools
import json
import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from semantoks import signals
from semantoks.confounds import (
    framewise_displacement,
    longest_gap,
    n_non_steady,
    read_confounds,
    tells_displacement,
)
from semantoks.confounds import read_confounds_sidecar as read_sidecar
from semantoks.denoise import Strategy, degrees_of_freedom, design, kept_volumes, load_strategy
from semantoks.errors import UserError, run_command
from semantoks.files import KEY, provenance, read_json, read_metadata, read_table, read_text_table, write_table
from semantoks.isolation import CrashError, run_isolated
from semantoks.label_images import on_grid, read_label_image, read_mask_image, share_inside
from semantoks.parcel_means import (
    Bold,
    ParcelMeans,
    ParcelVoxels,
    mean_volume,
    open_bold,
    parcel_means,
    voxels_of_parcels,
)
from semantoks.timeseries_table import SCHEMA

Masks = NDArray[np.bool_]
PassBand = tuple[float | None, float | None]
COLUMNS = [*KEY, "batch", "task", "site", "space", "bold_path", "mask_path", "confounds_path", "tr", "exclude_reason"]
FURTHER = pa.schema(
    {
        "mask_computed": pa.bool_(),
        "mask_dice": pa.float64(),
        "n_non_steady": pa.int64(),
        "n_regressors": pa.int64(),
        "degrees_of_freedom": pa.float64(),
        "mean_fd_rate": pa.float64(),
        "regridded_volume": pa.list_(pa.float32()),
    }
)
"""Columns beyond the contract; see docs/denoising.md."""


@dataclass(frozen=True)
class ParcellateSettings:
    """Section ``parcellate`` of the configuration (see ``workflow/schemas/parcellate.schema.yaml``)."""

    denoising: str
    band_pass: Sequence[float | None] | None
    detrend: bool
    minimum_coverage: float
    minimum_degrees_of_freedom: float
    template_mask: str | None = None
    """Path of a mask; None does not compare."""

    @property
    def pass_band(self) -> PassBand:
        """Edges of the band-pass in Hz, None for an open side."""
        low, high = self.band_pass or (None, None)
        return low, high


@dataclass(frozen=True)
class AtlasFiles:
    """The atlas as the stage ``atlas`` left it."""

    folder: Path
    name: str
    space: str
    index: NDArray[np.int64]
    roi_names: list[str]

    @classmethod
    def read(cls, folder: Path) -> AtlasFiles:
        """Read ``labels.tsv`` and ``atlas.json``; the image follows when a recording needs it."""
        description = read_json(folder / "atlas.json")
        table = read_text_table(folder / "labels.tsv")
        if not (folder / "atlas.nii.gz").is_file():
            raise UserError(
                f"{folder}: expected atlas.nii.gz, found an atlas without image; set 'atlas.image' to parcellate"
            )
        index = table["index"].to_numpy().astype(np.int64)
        return cls(folder, description["name"], description["space"], index, table["name"].tolist())


@dataclass(frozen=True)
class Noise:
    """What the confounds say about a recording, for the volumes after the non-steady ones."""

    n_non_steady: int
    regressors: NDArray[np.float64]
    """[regressor, time]"""
    kept: Masks
    """[time]"""
    displacement: NDArray[np.float64] | None
    """Framewise displacement in mm [time], NaN where unknown; None without confounds."""


def parcellate_recording(
    row: Mapping[str, Any], atlas: AtlasFiles, strategy: Strategy, settings: ParcellateSettings
) -> dict[str, Any]:
    """Cleaned time series and measures of one recording.

    The order of processing is the one of docs/denoising.md: drop non-steady volumes, average parcels, interpolate
    censored volumes, detrend, band-pass signals and confounds alike, regress on kept volumes.

    Parameters
    ----------
    row : one row of the index.

    Returns
    -------
    The columns of the time-series table but for the key.

    Raises
    ------
    UserError
        When the recording cannot be used; the message is the reason.
    """
    if row["space"] != atlas.space:
        raise UserError(f"the image is in space {row['space']}, the atlas {atlas.name} in {atlas.space}")
    bold = open_bold(row["bold_path"])
    noise = read_noise(row["confounds_path"], bold.n_volumes, strategy)
    tr = float(row["tr"])
    freedom = degrees_of_freedom(int(noise.kept.sum()), tr, settings.pass_band, len(noise.regressors))
    if freedom < settings.minimum_degrees_of_freedom:
        raise UserError(
            f"degrees of freedom {freedom:.1f} below {settings.minimum_degrees_of_freedom:g}: {noise.kept.sum()} kept "
            f"volumes of {tr:g} s, {len(noise.regressors)} regressors of {strategy.name}"
        )
    mask, mask_computed = read_mask(row["mask_path"], bold)
    voxels, inside, volume = atlas_on_grid(atlas.folder, bold.shape, tuple(bold.affine.ravel()), tuple(atlas.index))
    parcels = parcel_means(bold, voxels, mask, noise.n_non_steady)
    coverage = parcel_coverage(parcels, inside)
    with_data = (coverage >= settings.minimum_coverage) & signals.rows_with_data(parcels.means)
    if not with_data.any():
        raise UserError(
            f"no parcel with data: the best coverage is {coverage.max():.2f}; is the image in {atlas.space}?"
        )
    cleaned = np.full(parcels.means.shape, np.nan, dtype=np.float32)
    cleaned[with_data] = signals.clean(
        parcels.means[with_data], tr, noise.regressors, noise.kept, settings.pass_band, settings.detrend
    )
    return motion_measures(noise, tr) | {
        "tr": tr,
        "n_frames": len(noise.kept),
        "kept": noise.kept,
        "coverage": coverage,
        "tsnr": parcels.tsnr,
        "bold": cleaned.ravel(),
        "mask_computed": mask_computed,
        "mask_dice": template_dice(mask, bold.affine, settings.template_mask),
        "n_non_steady": noise.n_non_steady,
        "n_regressors": len(noise.regressors),
        "degrees_of_freedom": freedom,
        "regridded_volume": volume,
    }


def read_noise(path: str | None, n_volumes: int, strategy: Strategy) -> Noise:
    """Regressors, kept volumes and motion of one recording.

    Raises
    ------
    UserError
        No or other confounds than the strategy needs, other numbers of rows than volumes, or nothing kept.
    """
    if path is None:
        if strategy.needs_confounds:
            raise UserError(f"no confounds file, which the denoising strategy {strategy.name} needs")
        return Noise(0, np.empty((0, n_volumes)), np.ones(n_volumes, dtype=bool), None)
    confounds = read_confounds(path)
    if len(confounds) != n_volumes:
        raise UserError(f"{path}: expected {n_volumes} rows, one per volume, found {len(confounds)}")
    first = n_non_steady(confounds)
    regressors = design(confounds, strategy, read_sidecar(path)).to_numpy().T[:, first:]
    kept = kept_volumes(confounds, strategy.censoring, first)
    if not kept.any():
        raise UserError(f"every volume is censored by the denoising strategy {strategy.name} or not in steady state")
    displacement = framewise_displacement(confounds)[first:] if tells_displacement(confounds) else None
    return Noise(first, regressors, kept, displacement)


def read_mask(path: str | None, bold: Bold) -> tuple[Masks, bool]:
    """The brain mask [x, y, z] on the grid of the image, and whether it had to be computed.

    Without a mask file nilearn computes one from the mean image (``compute_epi_mask``).

    Raises
    ------
    UserError
        Mask of another grid, empty, or unreadable.
    """
    if path is None:
        from nilearn.masking import compute_epi_mask

        image = nibabel.Nifti1Image(mean_volume(bold), bold.affine)
        mask = np.asarray(compute_epi_mask(image).dataobj) > 0
    else:
        values, affine = read_label_image(path)
        mask = values > 0
        if mask.shape != bold.shape or not np.allclose(affine, bold.affine, atol=1e-3):
            raise UserError(
                f"{path}: expected the grid of the image {bold.shape}, found {mask.shape} or another affine"
            )
    if not mask.any():
        raise UserError(f"{path or 'the computed mask'}: expected a brain mask, found no voxel in it")
    return mask, path is None


def template_dice(mask: Masks, affine: NDArray[np.float64], template: str | None) -> float | None:
    """Dice coefficient of a recording's brain mask and the template's, brought onto its grid; None without template."""
    if template is None:
        return None
    expected = _template_on_grid(template, mask.shape, tuple(affine.ravel()))
    return float(2 * (mask & expected).sum() / (mask.sum() + expected.sum()))


@functools.lru_cache(maxsize=4)
def _template_on_grid(path: str, shape: tuple[int, ...], affine: tuple[float, ...]) -> Masks:
    mask, own = read_mask_image(path)
    return on_grid(mask.astype(np.int32), own, shape, np.array(affine).reshape(4, 4)) > 0


def known_template(mask: str | None, atlas: Path) -> dict[str, Any]:
    """Path of the mask that recordings are compared with, None without, and why there is none (note).

    Parameters
    ----------
    mask : a path, or ``templateflow`` for the one that ``template_mask.json`` in the folder ``atlas`` tells of.
    """
    if mask == "templateflow":
        return dict(read_json(atlas / "template_mask.json"))
    return {"path": mask, "note": None}


@functools.lru_cache(maxsize=4)
def atlas_on_grid(
    folder: Path, shape: tuple[int, int, int], affine: tuple[float, ...], index: tuple[int, ...]
) -> tuple[ParcelVoxels, NDArray[np.float64], NDArray[np.float64] | None]:
    """The atlas on the grid of an image of the same space.

    Returns
    -------
    the voxels of each parcel; share of each parcel inside the field of view [ROI]; and, when the atlas had to be
    brought there by nearest neighbour, each parcel's volume on that grid relative to the atlas's own [ROI], else None.
    """
    labels, own = read_label_image(folder / "atlas.nii.gz")
    target = np.array(affine).reshape(4, 4)
    rois = np.array(index)
    moved = on_grid(labels, own, shape, target)
    if moved is labels:
        return voxels_of_parcels(labels, rois), np.ones(len(index)), None
    inside = share_inside(labels, own, rois, shape, target)
    before = np.bincount(labels.ravel(), minlength=rois.max() + 1)[rois] * abs(np.linalg.det(own[:3, :3]))
    after = np.bincount(moved.ravel(), minlength=rois.max() + 1)[rois] * abs(np.linalg.det(target[:3, :3]))
    with np.errstate(invalid="ignore"):
        return voxels_of_parcels(moved, rois), inside, after / before


def parcel_coverage(parcels: ParcelMeans, inside: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of each parcel that lies in the field of view, inside the mask, and has data; 0 for an empty parcel."""
    share = np.divide(
        parcels.voxels_with_data, parcels.voxels, out=np.zeros(len(parcels.voxels)), where=parcels.voxels > 0
    )
    coverage: NDArray[np.float64] = share * np.nan_to_num(inside)
    return coverage


def motion_measures(noise: Noise, tr: float) -> dict[str, Any]:
    """Columns mean_fd (mm), mean_fd_rate (mm/s), minutes_kept, share_censored and longest_gap (s)."""
    mean_fd = None
    if noise.displacement is not None and np.isfinite(noise.displacement).any():
        mean_fd = float(np.nanmean(noise.displacement))
    return {
        "mean_fd": mean_fd,
        "mean_fd_rate": None if mean_fd is None else mean_fd / tr,
        "minutes_kept": float(noise.kept.sum() * tr / 60),
        "share_censored": float(1 - noise.kept.mean()),
        "longest_gap": float(longest_gap(noise.kept, tr)),
    }


def _attempt(task: tuple[Mapping[str, Any], AtlasFiles, Strategy, ParcellateSettings]) -> dict[str, Any]:
    """One recording's row; a recording that cannot be used becomes a reason."""
    row, atlas, strategy, settings = task
    record = {name: row[name] for name in [*KEY, "task", "site", "tr", "exclude_reason"]}
    record |= {"atlas": atlas.name, "denoising": strategy.name}
    if record["exclude_reason"] is None:
        try:
            record |= parcellate_recording(row, atlas, strategy, settings)
        except (ValueError, OSError, MemoryError) as error:
            record["exclude_reason"] = str(error) or type(error).__name__
        except Exception as error:  # whatever a library raises on files like nobody has seen
            traceback.print_exc()
            record["exclude_reason"] = f"parcellation failed: {type(error).__name__}: {error}"
    return record


def parcellate_batch(
    rows: pd.DataFrame, atlas: AtlasFiles, strategy: Strategy, settings: ParcellateSettings, workers: int
) -> pa.Table:
    """The time-series table of one batch; one broken recording leaves the others alone."""
    records: list[Any] = rows.astype(object).where(rows.notna(), None).to_dict("records")
    tasks = [(row, atlas, strategy, settings) for row in records]
    results = []
    for row, result in zip(records, run_isolated(_attempt, tasks, workers, "parcellate"), strict=True):
        if isinstance(result, CrashError):
            names = [*KEY, "task", "site", "tr"]
            result = {name: row[name] for name in names} | {"exclude_reason": f"parcellation crashed: {result}"}
        results.append(result)
    return pa.Table.from_pylist(results, schema=pa.unify_schemas([SCHEMA, FURTHER]))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.parcellate", description=__doc__)
    parser.add_argument(
        "--settings", type=json.loads, required=True, help="section `parcellate` of the config, as JSON"
    )
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--batch", required=True)
    parser.add_argument("--atlas", type=Path, required=True, help="folder of the atlas stage")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1, help="recordings at a time")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    template = known_template(arguments.settings.get("template_mask"), arguments.atlas)
    settings = ParcellateSettings(**arguments.settings | {"template_mask": template["path"]})
    if settings.template_mask is not None:
        read_mask_image(settings.template_mask)  # concerns every recording: better known at once
    strategy = load_strategy(settings.denoising)
    atlas = AtlasFiles.read(arguments.atlas)
    index = read_table(arguments.index, COLUMNS)
    rows = index[index["batch"] == arguments.batch]
    if rows.empty:
        raise UserError(f"{arguments.index}: expected recordings of batch {arguments.batch!r}, found none")
    table = parcellate_batch(rows, atlas, strategy, settings, arguments.workers)
    metadata = provenance(
        "parcellate",
        arguments.settings,
        [arguments.atlas / "labels.tsv", arguments.atlas / "atlas.nii.gz"],
        roi_names=atlas.roi_names,
        atlas=read_json(arguments.atlas / "atlas.json"),
        template_mask=template,
        fmriprep_versions=read_metadata(arguments.index).get("fmriprep_versions", []),
        strategy={
            "name": strategy.name,
            "description": strategy.description,
            "citations": list(strategy.citations),
            "regresses": strategy.regresses,
            "censors": strategy.censors,
        },
    )
    write_table(arguments.output, table, metadata)
    excluded = table.num_rows - table.column("exclude_reason").null_count
    print(f"{table.num_rows - excluded} of {table.num_rows} recordings parcellated, {excluded} with a reason why not")


if __name__ == "__main__":
    run_command(main)
