"""Stage ``atlas``: one label image, one label table and their checksums, in one form for every atlas."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from semantoks.errors import UserError, run_command
from semantoks.files import replacing, sha256, write_json, write_text
from semantoks.label_images import (
    Labels,
    check_labels,
    on_grid,
    read_label_image,
    read_label_table,
    write_label_image,
)

LOCK = Path(__file__).resolve().parents[2] / "resources" / "atlases.lock"
MERGED = "schaefer400-tian3-buckner7"
BUCKNER_SPACE = "MNI152NLin6Asym"
SCHAEFER_TIAN = "Schaefer2018_400Parcels_7Networks_order_Tian_Subcortex_S3"
SCHAEFER_TIAN_IMAGES = {
    "MNI152NLin6Asym": SCHAEFER_TIAN + "_MNI152NLin6Asym_{}mm.nii.gz",
    "MNI152NLin2009cAsym": SCHAEFER_TIAN + "_3T_MNI152NLin2009cAsym_{}mm.nii.gz",
}
SCHAEFER_TIAN_LABELS = SCHAEFER_TIAN + "_label.txt"
BUCKNER_IMAGE = "atl-Buckner7_space-MNI_dseg.nii"
YEO_NETWORKS = ("Vis", "SomMot", "DorsAttn", "SalVentAttn", "Limbic", "Cont", "Default")
"""The seven networks of Yeo et al. (2011); Buckner label k is network k."""


@dataclass(frozen=True)
class AtlasSettings:
    """Section ``atlas`` of the configuration (see ``workflow/schemas/atlas.schema.yaml``)."""

    name: str
    space: str
    folder: str | None
    resolution: int
    image: str | None
    labels: str | None
    drop_labels: list[int]
    empty_labels: list[int]


@dataclass(frozen=True)
class Atlas:
    """An atlas in memory: ``table`` with the columns index, name (and network); labels int32 [x, y, z] or None."""

    table: pd.DataFrame
    labels: Labels | None
    affine: NDArray[np.float64] | None
    sources: dict[str, str]
    """File name → SHA-256."""


def make_atlas(settings: AtlasSettings) -> Atlas:
    """Read or make the atlas that the settings name, and check it.

    Raises
    ------
    UserError
        Sources missing or changed, labels with gaps or duplicates, labels of the image that the table lacks, and the
        reverse.
    """
    if settings.name == MERGED and settings.image is None and settings.labels is None:
        atlas, empty = merge_schaefer_tian_buckner(settings)
    else:
        atlas, empty = _read_atlas(settings), settings.empty_labels
    if atlas.labels is not None:
        check_image(atlas.table, atlas.labels, empty, settings.image or settings.name)
    return atlas


def _read_atlas(settings: AtlasSettings) -> Atlas:
    labels = affine = None
    if settings.image is not None:
        labels, affine = read_label_image(settings.image)
        labels = np.where(np.isin(labels, settings.drop_labels), 0, labels).astype(np.int32)
    if settings.labels is not None:
        table = read_label_table(settings.labels)
        check_labels(table, settings.labels)
        table = table[~table["index"].isin(settings.drop_labels)].reset_index(drop=True)
    elif labels is not None:
        index = np.unique(labels[labels > 0])
        table = pd.DataFrame({"index": index, "name": [f"{settings.name}_{i}" for i in index]})
        check_labels(table, str(settings.image))
    else:
        raise UserError(
            f"atlas {settings.name!r}: expected 'image', 'labels' or both, found neither; give them, or use the name "
            f"{MERGED!r} with 'folder'"
        )
    files = [path for path in (settings.image, settings.labels) if path is not None]
    return Atlas(table, labels, affine, {Path(path).name: sha256(path) for path in files})


def check_image(table: pd.DataFrame, labels: Labels, empty: Sequence[int], where: str) -> None:
    """Check that image and table hold the same labels, but for those declared empty.

    Raises
    ------
    UserError
        Naming the labels that one has and the other lacks.
    """
    found = set(np.unique(labels[labels > 0]).tolist())
    known = set(table["index"].tolist())
    beyond, missing = sorted(found - known), sorted(known - found - set(empty))
    if beyond:
        raise UserError(
            f"{where}: expected only labels of the table (1 to {table['index'].max()}), found {_some(beyond)}; correct "
            "the table, or list stray labels under 'drop_labels'"
        )
    if missing:
        raise UserError(
            f"{where}: expected voxels for every label of the table, found none for {_some(missing)}; use the image "
            "that belongs to the table, or list labels that it lacks under 'empty_labels'"
        )


def _some(labels: list[int]) -> str:
    return ", ".join(map(str, labels[:10])) + (f", … ({len(labels)} in all)" if len(labels) > 10 else "")


def merge_schaefer_tian_buckner(settings: AtlasSettings) -> tuple[Atlas, list[int]]:
    """Merge Schaefer-400 (7 networks), Tian S3 and Buckner-7 into 457 parcels, in this order.

    The combined Schaefer-and-Tian image numbers Tian first (1–50) and Schaefer after (51–450); here the cortex comes
    first. Where parcels overlap, cortex precedes subcortex and subcortex precedes cerebellum. The cerebellum is
    brought from its 1 mm grid by nearest neighbour; in a space other than its own it is left empty.

    Returns
    -------
    The atlas, and the labels that are empty because the cerebellum is not there.

    References
    ----------
    Schaefer et al. (2018), Cerebral Cortex 28:3095; Tian et al. (2020), Nature Neuroscience 23:1421;
    Buckner et al. (2011), Journal of Neurophysiology 106:2322.
    """
    if settings.folder is None:
        raise UserError(f"atlas {MERGED!r}: expected 'folder' with its sources, found none; see docs/atlases.md")
    if settings.space not in SCHAEFER_TIAN_IMAGES:
        known = " or ".join(SCHAEFER_TIAN_IMAGES)
        raise UserError(f"atlas {MERGED!r}: key 'space': expected {known}, found {settings.space!r}")
    folder = Path(settings.folder)
    image = folder / SCHAEFER_TIAN_IMAGES[settings.space].format(settings.resolution)
    sources = {path.name: checked_source(path) for path in (image, folder / SCHAEFER_TIAN_LABELS)}
    combined, affine = read_label_image(image)
    labels = cortex_first(combined)
    cerebellum = range(451, 458)
    if settings.space == BUCKNER_SPACE:
        sources[BUCKNER_IMAGE] = checked_source(folder / BUCKNER_IMAGE)
        buckner = on_grid(*read_label_image(folder / BUCKNER_IMAGE), labels.shape, affine)
        labels = np.where((labels == 0) & (buckner > 0), buckner + 450, labels).astype(np.int32)
    names = read_label_table(folder / SCHAEFER_TIAN_LABELS).sort_values("index")["name"].tolist()
    names = names[50:] + names[:50] + [f"Buckner_{network}" for network in YEO_NETWORKS]
    table = pd.DataFrame({"index": range(1, 458), "name": names})
    check_labels(table, SCHAEFER_TIAN_LABELS)
    return Atlas(table, labels, affine, sources), [] if settings.space == BUCKNER_SPACE else list(cerebellum)


def cortex_first(combined: Labels) -> Labels:
    """Renumber the combined image: Schaefer 51–450 → 1–400, Tian 1–50 → 401–450."""
    moved: Labels = np.where(combined > 50, combined - 50, np.where(combined > 0, combined + 400, 0)).astype(np.int32)
    return moved


def checked_source(path: Path) -> str:
    """SHA-256 of a source file, equal to the one in ``resources/atlases.lock``.

    Raises
    ------
    UserError
        The file is missing or is another copy than the one that was checked.
    """
    known = yaml.safe_load(LOCK.read_text(encoding="utf-8"))["files"][path.name]
    if not path.is_file():
        raise UserError(
            f"{path}: expected a source of the atlas, found no file; get {known['path']} from {known['home']} at "
            f"commit {known['commit']}"
        )
    found = sha256(path)
    if found != known["sha256"]:
        raise UserError(
            f"{path}: expected SHA-256 {known['sha256']}, found {found}; it is another copy than the one whose labels "
            "were checked. To use it, give image and label table of the whole atlas under a name of its own"
        )
    return found


def write_atlas(atlas: Atlas, settings: AtlasSettings, folder: Path) -> None:
    """Write ``labels.tsv``, ``atlas.nii.gz`` (if there is an image) and ``atlas.json`` into ``folder``."""
    table = atlas.table.copy()
    description: dict[str, Any] = {"name": settings.name, "space": settings.space, "sources": atlas.sources}
    description["sha256"] = {"image": None}
    image = folder / "atlas.nii.gz"
    if atlas.labels is not None and atlas.affine is not None:
        counts = np.bincount(atlas.labels.ravel(), minlength=table["index"].max() + 1)
        table.insert(2, "voxels", counts[table["index"]])
        with replacing(image) as temporary:
            write_label_image(temporary, atlas.labels, atlas.affine)
        description["sha256"]["image"] = sha256(image)
        description["voxel_size"] = np.sqrt((atlas.affine[:3, :3] ** 2).sum(axis=0)).round(4).tolist()
    else:
        table.insert(2, "voxels", "n/a")
        image.unlink(missing_ok=True)
    write_text(folder / "labels.tsv", table.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n"))
    description["sha256"]["labels"] = sha256(folder / "labels.tsv")
    write_json(folder / "atlas.json", description)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.atlas", description=__doc__)
    parser.add_argument("--settings", type=json.loads, required=True, help="section `atlas` of the config, as JSON")
    parser.add_argument("--output-folder", type=Path, required=True)
    arguments = parser.parse_args(argv)
    settings = AtlasSettings(**arguments.settings)
    atlas = make_atlas(settings)
    write_atlas(atlas, settings, arguments.output_folder)
    print(f"{settings.name}: {len(atlas.table)} parcels in {settings.space}")


if __name__ == "__main__":
    run_command(main)
