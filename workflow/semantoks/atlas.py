"""Stage ``atlas``: one label image, one label table and their checksums, in one form for every atlas."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from semantoks.atlas_recipes import (
    BUCKNER,
    BUCKNER_TO_2009C,
    NLIN6,
    NLIN2009C,
    TEMPLATEFLOW,
    Part,
    Recipe,
    recipe_of,
)
from semantoks.atlas_sources import checked_source
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
    transform: str | None = None


@dataclass(frozen=True)
class Atlas:
    """An atlas in memory: ``table`` with the columns index, name (and network); labels int32 [x, y, z] or None."""

    table: pd.DataFrame
    labels: Labels | None
    affine: NDArray[np.float64] | None
    sources: dict[str, str]
    """File name → SHA-256."""
    note: str | None = None
    """What a reader of the atlas must know."""


def make_atlas(settings: AtlasSettings, sources: Path | None = None) -> Atlas:
    """Read or make the atlas that the settings name, and check it.

    Parameters
    ----------
    sources : folder of fetched sources, used when the settings name no folder.

    Raises
    ------
    UserError
        Sources missing or changed, labels with gaps or duplicates, labels of the image that the table lacks, and the
        reverse.
    """
    recipe = None if settings.image or settings.labels else recipe_of(settings.name)
    if recipe:
        folder = Path(settings.folder) if settings.folder else sources
        if folder is None:
            raise UserError(f"atlas {settings.name!r}: expected 'folder' with its sources, found none; docs/atlases.md")
        atlas, empty = merge_parts(with_transform(settings, folder), recipe, folder)
    else:
        atlas, empty = _read_atlas(settings), settings.empty_labels
    if atlas.labels is not None:
        check_image(atlas.table, atlas.labels, empty, settings.image or settings.name)
    return atlas


def _read_atlas(settings: AtlasSettings) -> Atlas:
    labels = affine = None
    if settings.image is not None:
        labels, affine = read_label_image(settings.image)
    if settings.labels is not None:
        table = read_label_table(settings.labels)
        check_labels(table, settings.labels)
        check_order(settings.image, table["name"].tolist(), settings.labels)
    elif labels is not None:
        index = np.unique(labels[labels > 0])
        if not len(index):
            raise UserError(f"{settings.image}: expected labels, found no voxel above 0")
        table = pd.DataFrame({"index": index, "name": [f"{settings.name}_{i}" for i in index]})
        check_labels(table[~table["index"].isin(settings.drop_labels)], str(settings.image), settings.drop_labels)
    else:
        raise UserError(
            f"atlas {settings.name!r}: expected 'image', 'labels' or both, found neither; give them, or use a name "
            "that the workflow knows, e.g. 'schaefer400-tian3-buckner7' (docs/atlases.md)"
        )
    check_declared(settings, table, labels)
    table = table[~table["index"].isin(settings.drop_labels)].reset_index(drop=True)
    if labels is not None:
        labels = np.where(np.isin(labels, settings.drop_labels), 0, labels).astype(np.int32)
    files = [path for path in (settings.image, settings.labels) if path is not None]
    return Atlas(table, labels, affine, {Path(path).name: sha256(path) for path in files})


def check_declared(settings: AtlasSettings, table: pd.DataFrame, labels: Labels | None) -> None:
    """Check that the labels to drop, and those declared empty, are labels of the table or (to drop) of the image.

    Raises
    ------
    UserError
        Naming the key and the labels that are not there, or that none would be left.
    """
    of_table = set(table["index"].tolist())
    of_image = set() if labels is None else set(np.unique(labels).tolist())
    for key, declared, known in (
        ("drop_labels", settings.drop_labels, of_table | of_image),
        ("empty_labels", settings.empty_labels, of_table - set(settings.drop_labels)),
    ):
        if strangers := sorted(set(declared) - known):
            raise UserError(
                f"key 'atlas.{key}': expected labels of {settings.labels or settings.image}, found "
                f"{_some(strangers)}, which it lacks; correct the key"
            )
    if of_table <= set(settings.drop_labels):
        raise UserError(f"key 'atlas.drop_labels': expected some labels to be left of {len(table)}, found all dropped")


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


def check_order(image: str | None, names: Sequence[str], where: str) -> None:
    """Refuse names of Schaefer's 7-network order for an image in 17-network order, and the reverse.

    The same parcels have other numbers in the two orders, and nothing in the image tells it but its file name.
    """
    of_image = re.search(r"(?<!\d)(7|17)Networks", Path(image).name) if image else None
    of_names = {match[1] for name in names if (match := re.match(r"(7|17)Networks_", name))}
    if of_image and of_names - {of_image[1]}:
        raise UserError(
            f"{where}: expected the parcels in {of_image[1]}-network order, as in {Path(image or '').name}, found "
            f"names of the {of_names.pop()}-network order, which numbers the same parcels differently; use the table "
            "that belongs to the image"
        )


def with_transform(settings: AtlasSettings, folder: Path) -> AtlasSettings:
    """The settings with the path of TemplateFlow's transform, where that is wanted and leads into their space."""
    if settings.transform != TEMPLATEFLOW:
        return settings
    path = str(_checked(folder / BUCKNER_TO_2009C)) if settings.space == NLIN2009C else None
    return replace(settings, transform=path)


def merge_parts(settings: AtlasSettings, recipe: Recipe, folder: Path) -> tuple[Atlas, list[int]]:
    """Merge cortex (Schaefer), subcortex (Tian) and cerebellum (Buckner) into one atlas, in this order.

    Where parcels overlap, cortex precedes subcortex and subcortex precedes cerebellum. The published images of
    Schaefer and Tian together number Tian first; here the cortex comes first.

    Returns
    -------
    The atlas, and the labels that are empty because there is no cerebellum in this space.

    References
    ----------
    Schaefer et al. (2018), Cerebral Cortex 28:3095; Tian et al. (2020), Nature Neuroscience 23:1421;
    Buckner et al. (2011), Journal of Neurophysiology 106:2322.
    """
    files = [folder / name for name in recipe.files(settings.space, settings.resolution)]
    first, *others = recipe.parts(settings.space, settings.resolution)
    labels, names, affine = _read_part(first, recipe, settings.name, folder)
    for part in others:
        added, further, own = _read_part(part, recipe, settings.name, folder)
        labels = below(labels, on_grid(added, own, labels.shape, affine), len(names))
        names += further
    empty, note = [], None
    if recipe.cerebellum:
        before = len(names)
        names += [f"Buckner_{network}" for network in YEO_NETWORKS]
        buckner, note = cerebellum_on_grid(settings, _checked(folder / BUCKNER), labels.shape, affine)
        labels = below(labels, buckner, before)
        empty = list(range(before + 1, before + 8)) if not buckner.any() else []
    table = pd.DataFrame({"index": range(1, len(names) + 1), "name": names})
    check_labels(table, str(files[0]))
    sources = {path.name: sha256(path) for path in files}
    if settings.transform and not empty and recipe.cerebellum and settings.space != NLIN6:
        sources[Path(settings.transform).name] = sha256(settings.transform)
    return Atlas(table, labels, affine, sources, note), empty


def below(labels: Labels, added: Labels, before: int) -> Labels:
    """Put further parcels, numbered on from ``before``, where there are none yet; int32 [x, y, z]."""
    merged: Labels = np.where((labels == 0) & (added > 0), added + before, labels).astype(np.int32)
    return merged


def _checked(path: Path) -> Path:
    checked_source(path)
    return path


def _read_part(part: Part, recipe: Recipe, atlas: str, folder: Path) -> tuple[Labels, list[str], NDArray[np.float64]]:
    """Labels of a part, the names of its parcels in the order of their values, and its affine."""
    labels, affine = read_label_image(_checked(folder / part.image))
    if part.table is None:
        return labels, [f"{atlas}_{index}" for index in range(1, int(labels.max()) + 1)], affine
    names: list[str] = read_label_table(_checked(folder / part.table)).sort_values("index")["name"].tolist()
    check_order(part.image, names, str(folder / part.table))
    if part.subcortex_first:
        n_subcortex = len(names) - recipe.cortex
        return cortex_first(labels, n_subcortex), names[n_subcortex:] + names[:n_subcortex], affine
    return labels, names, affine


def cortex_first(combined: Labels, n_subcortex: int) -> Labels:
    """Renumber an image that has ``n_subcortex`` subcortical parcels first so that they come last."""
    n_cortex = int(combined.max()) - n_subcortex
    subcortex = np.where(combined > 0, combined + n_cortex, 0)
    moved: Labels = np.where(combined > n_subcortex, combined - n_subcortex, subcortex).astype(np.int32)
    return moved


def cerebellum_on_grid(
    settings: AtlasSettings, path: Path, shape: tuple[int, ...], affine: NDArray[np.float64]
) -> tuple[Labels, str | None]:
    """Buckner's cerebellum on a grid, by nearest neighbour, and a note on how it came there.

    In its own space it is regridded. In another it is warped by the template's own transform; without that it is left
    empty, never regridded.
    """
    buckner, own = read_label_image(path)
    if settings.space == NLIN6:
        return on_grid(buckner, own, shape, affine), None
    if settings.transform is None:
        note = f"the cerebellum is without data: it exists in {NLIN6} only, and 'atlas.transform' is not given"
        return np.zeros(shape, dtype=np.int32), note
    warped = warp_labels(buckner, own, shape, affine, settings.transform)
    return warped, f"the cerebellum was warped from {NLIN6} by {Path(settings.transform).name}, nearest neighbour"


def warp_labels(
    labels: Labels, affine: NDArray[np.float64], shape: tuple[int, ...], target: NDArray[np.float64], transform: str
) -> Labels:
    """Labels in another space, by nearest neighbour through a transform that ANTs or TemplateFlow wrote (nitransforms).

    Parameters
    ----------
    labels, affine : int32 [x, y, z] and its affine, in the space from which the transform leads.
    shape, target : grid in the space to which it leads.
    transform : ITK file, ``.h5`` (composite) or ``.txt`` (linear).

    Raises
    ------
    UserError
        When the transform is missing or unreadable.
    """
    import nibabel
    from nitransforms import linear, manip, resampling

    if not Path(transform).is_file():
        raise UserError(
            f"{transform}: expected the transform of key 'atlas.transform', found no file; it is TemplateFlow's "
            f"{BUCKNER_TO_2009C}. Set the key to templateflow to have it fetched, or to null: the cerebellum is then "
            "without data"
        )
    try:
        is_linear = transform.endswith((".txt", ".tfm"))
        warp = linear.load(transform, fmt="itk") if is_linear else manip.load(transform, fmt="itk")
    except Exception as error:  # whatever its readers raise
        raise UserError(f"{transform}: expected a transform in an ITK file, found {error}") from None
    moving = nibabel.Nifti1Image(labels.astype(np.int16), affine)
    reference = nibabel.Nifti1Image(np.zeros(shape, dtype=np.int16), target)
    warped = resampling.apply(warp, moving, reference=reference, order=0, prefilter=False)
    return np.asarray(warped.dataobj).astype(np.int32)


def write_atlas(atlas: Atlas, settings: AtlasSettings, folder: Path) -> None:
    """Write ``labels.tsv``, ``atlas.nii.gz`` (if there is an image) and ``atlas.json`` into ``folder``."""
    table = atlas.table.copy()
    description: dict[str, Any] = {"name": settings.name, "space": settings.space, "sources": atlas.sources}
    description["note"] = atlas.note
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
    parser.add_argument("--sources", type=Path, help="folder of fetched sources")
    parser.add_argument("--output-folder", type=Path, required=True)
    arguments = parser.parse_args(argv)
    settings = AtlasSettings(**arguments.settings)
    atlas = make_atlas(settings, arguments.sources)
    write_atlas(atlas, settings, arguments.output_folder)
    print(
        f"{settings.name}: {len(atlas.table)} parcels in {settings.space}" + (f"; {atlas.note}" if atlas.note else "")
    )


if __name__ == "__main__":
    run_command(main)
