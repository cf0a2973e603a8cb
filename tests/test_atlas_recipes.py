"""Atlases known by name: the merged 457 parcels, other combinations of published parts, the cerebellum elsewhere."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import synthetic_images as synthetic
from atlas_cases import make
from nilearn.image import resample_to_img
from semantoks import atlas, atlas_recipes, atlas_sources
from semantoks.atlas_recipes import BUCKNER, BUCKNER_TO_2009C, Recipe, recipe_of
from semantoks.errors import UserError
from semantoks.files import read_json, read_text_table
from semantoks.label_images import on_grid, read_label_image, read_label_table


@pytest.fixture(scope="module")
def sources(shared: Path) -> Path:
    return shared / "data" / "atlases"


COMBINED = Recipe(cortex=400, subcortex=3, cerebellum=True)


def merged(folder: Path, sources: Path, space: str = synthetic.SPACE) -> Path:
    return make(folder, name="schaefer400-tian3-buckner7", folder=str(sources), space=space)


def test_the_457_parcels_come_in_the_order_of_the_published_weights(tmp_path: Path, sources: Path) -> None:
    names = read_text_table(merged(tmp_path, sources) / "labels.tsv")["name"].tolist()
    official = read_label_table(sources / "Schaefer2018_400Parcels_7Networks_order.txt")["name"].tolist()
    assert names[:400] == official
    assert (names[0], names[30], names[31]) == ("7Networks_LH_Vis_1", "7Networks_LH_Vis_31", "7Networks_LH_SomMot_1")
    assert (names[199][:13], names[200]) == ("7Networks_LH_", "7Networks_RH_Vis_1")
    assert (names[400], names[449]) == ("HIP-head-m-rh", "aGP-lh")
    assert names[450:] == [f"Buckner_{name}" for name in atlas.YEO_NETWORKS]


def test_cortex_precedes_subcortex_precedes_cerebellum(tmp_path: Path, sources: Path) -> None:
    folder = merged(tmp_path, sources)
    labels, affine = read_label_image(folder / "atlas.nii.gz")
    combined, _ = read_label_image(sources / COMBINED.parts(synthetic.SPACE, 2)[0].image)
    buckner = on_grid(*read_label_image(sources / BUCKNER), labels.shape, affine)
    overlap = (buckner > 0) & (combined > 50)
    assert overlap.sum() == 65
    np.testing.assert_array_equal(labels[combined > 50], combined[combined > 50] - 50)
    subcortex = (combined > 0) & (combined <= 50)
    np.testing.assert_array_equal(labels[subcortex], combined[subcortex] + 400)
    only_buckner = (buckner > 0) & (combined == 0)
    np.testing.assert_array_equal(labels[only_buckner], buckner[only_buckner] + 450)
    voxels = read_text_table(folder / "labels.tsv")["voxels"].astype(int)
    assert voxels.tolist() == np.bincount(labels.ravel(), minlength=458)[1:].tolist()
    assert voxels[450] == 61, "the smallest cerebellar parcel"
    assert voxels.min() == 42


def test_left_is_left(tmp_path: Path, sources: Path) -> None:
    folder = merged(tmp_path, sources)
    labels, affine = read_label_image(folder / "atlas.nii.gz")
    names = read_text_table(folder / "labels.tsv")["name"]
    voxels = np.argwhere(labels > 0)
    x = voxels @ affine[0, :3] + affine[0, 3]
    centre = np.bincount(labels[labels > 0], x)[1:] / np.bincount(labels[labels > 0])[1:]
    left = names.str.contains("_LH_") | names.str.endswith("-lh")
    right = names.str.contains("_RH_") | names.str.endswith("-rh")
    assert (centre[left] < 0).all()
    assert (centre[right] > 0).all()
    assert left.sum() == right.sum() == 225


def test_in_the_other_space_the_cerebellum_is_empty_not_regridded(tmp_path: Path, sources: Path) -> None:
    folder = merged(tmp_path, sources, "MNI152NLin2009cAsym")
    voxels = read_text_table(folder / "labels.tsv")["voxels"].astype(int)
    assert (voxels[450:] == 0).all()
    assert (voxels[:450] > 0).all()
    assert "it exists in MNI152NLin6Asym only" in read_json(folder / "atlas.json")["note"]


def test_missing_or_changed_sources_and_unknown_spaces_are_errors(tmp_path: Path, sources: Path) -> None:
    name = COMBINED.parts(synthetic.SPACE, 2)[0].image
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"found no file; get .*yetianmed"):
        merged(tmp_path, tmp_path / "empty")
    (tmp_path / "empty" / name).write_bytes((sources / name).read_bytes() + b"x")
    with pytest.raises(UserError, match="expected sha256:a6568b75"):
        merged(tmp_path, tmp_path / "empty")
    with pytest.raises(UserError, match=r"key 'atlas.space': expected MNI152NLin6Asym or MNI152NLin2009cAsym"):
        merged(tmp_path, sources, "Talairach")
    with pytest.raises(UserError, match="expected 'folder'"):
        make(tmp_path, name="schaefer400-tian3-buckner7")


KNOWN = {
    "schaefer400-tian3-buckner7": (457, "7Networks_LH_Vis_1", "Buckner_Default"),
    "schaefer200-tian3-buckner7": (257, "7Networks_LH_Vis_1", "Buckner_Default"),
    "schaefer100-tian3": (150, "7Networks_LH_Vis_1", "aGP-lh"),
    "schaefer400": (400, "7Networks_LH_Vis_1", "7Networks_RH_Default_pCunPCC_9"),
    "schaefer400-17networks": (400, "17Networks_LH_VisCent_ExStr_1", "17Networks_RH_TempPar_10"),
    "schaefer100-buckner7": (107, "7Networks_LH_Vis_1", "Buckner_Default"),
    "tian3": (50, "HIP-head-m-rh", "aGP-lh"),
    "a424": (424, "a424_1", "a424_424"),
    "cc200": (200, "cc200_1", "cc200_200"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_atlases_known_by_name_are_made_from_their_sources(tmp_path: Path, sources: Path, name: str) -> None:
    resolution = 1 if name == "schaefer400-17networks" else 2
    written = read_text_table(make(tmp_path, name=name, folder=str(sources), resolution=resolution) / "labels.tsv")
    assert (len(written), written["name"].iloc[0], written["name"].iloc[-1]) == KNOWN[name]
    assert (written["voxels"].astype(int) > 0).all()
    assert read_json(tmp_path / "out" / "atlas.json")["note"] is None


@pytest.mark.parametrize("space", ["MNI152NLin6Asym", "MNI152NLin2009cAsym"])
def test_parts_of_the_merged_atlas_are_those_published_alone(tmp_path: Path, sources: Path, space: str) -> None:
    labels, _ = read_label_image(merged(tmp_path, sources, space) / "atlas.nii.gz")
    if space == "MNI152NLin6Asym":
        alone, _ = read_label_image(sources / "Schaefer2018_400Parcels_7Networks_order_FSLMNI152_2mm.nii.gz")
        cortex = (labels > 0) & (labels <= 400) & (alone > 0)
        assert (labels[cortex] == alone[cortex]).mean() > 0.99
    tian = "Tian_Subcortex_S3_3T.nii" if space == "MNI152NLin6Asym" else "Tian_Subcortex_S3_3T_2009cAsym.nii.gz"
    subcortex, _ = read_label_image(sources / tian)
    inside = (labels > 400) & (labels <= 450)
    np.testing.assert_array_equal(labels[inside], subcortex[inside] + 400)


@pytest.mark.parametrize(("cortex", "overlap"), [(100, 74), (400, 74)])
def test_parts_put_together_equal_the_published_combination(
    tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch, cortex: int, overlap: int
) -> None:
    """All but the voxels that both parts claim: there the published image has the subcortex, and here the cortex is."""
    name = f"schaefer{cortex}-tian3"
    published, _ = read_label_image(make(tmp_path / "published", name=name, folder=str(sources)) / "atlas.nii.gz")
    monkeypatch.setattr(atlas_recipes, "_COMBINED_UP_TO", 0)
    folder = make(tmp_path / "parts", name=name, folder=str(sources))
    assert len(read_json(folder / "atlas.json")["sources"]) == 4
    made, _ = read_label_image(folder / "atlas.nii.gz")
    differing = made != published
    assert differing.sum() == overlap
    assert (made[differing] <= cortex).all()
    assert (published[differing] > cortex).all()
    tables = [read_text_table(tmp_path / kind / "out" / "labels.tsv")["name"] for kind in ("published", "parts")]
    assert tables[0].tolist() == tables[1].tolist()


def test_the_other_order_holds_the_same_parcels_under_other_numbers(tmp_path: Path, sources: Path) -> None:
    """Schaefer-400 in 17-network order with Tian S3, of which no image is published, against the 7-network order."""
    atlases = {}
    for name in ("schaefer400-tian3", "schaefer400-17networks-tian3"):
        folder = make(tmp_path / name, name=name, folder=str(sources), resolution=1)
        atlases[name] = read_label_image(folder / "atlas.nii.gz")[0], read_text_table(folder / "labels.tsv")["name"]
    (seven, names), (seventeen, other_names) = atlases.values()
    assert len(other_names) == 450
    assert other_names[0] == "17Networks_LH_VisCent_ExStr_1"
    assert other_names[400:].tolist() == names[400:].tolist()
    both = (seven > 0) & (seventeen > 0) & (seven <= 400) & (seventeen <= 400)
    pairs = np.unique(np.stack([seven[both], seventeen[both]]), axis=1)
    assert pairs.shape == (2, 400), "one parcel for each"
    assert (pairs[0] != pairs[1]).sum() > 300, "under another number"
    hemispheres = [names[i - 1].split("_")[1] == other_names[j - 1].split("_")[1] for i, j in pairs.T]
    assert all(hemispheres)
    assert (seven > 0).sum() == (seventeen > 0).sum()


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("schaefer1000-17networks-tian4", Recipe(1000, 17, 4)),
        ("schaefer300-buckner7", Recipe(300, cerebellum=True)),
        ("tian1", Recipe(subcortex=1)),
        ("a424", Recipe(single="a424")),
        ("Schaefer400", None),
        ("my-schaefer400", None),
    ],
)
def test_names_of_known_atlases(name: str, recipe: Recipe | None) -> None:
    assert recipe_of(name) == recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "schaefer450"}, r"key 'atlas.name': expected Schaefer's 100, 200, … 1000 parcels, found 450"),
        ({"name": "schaefer300"}, r"expected the checksum of Schaefer2018_300.*2mm.nii.gz, found 'unresolved'; where"),
        (
            {"name": "schaefer300-tian2"},
            r"checksum of Schaefer2018_300.*_S2_MNI152NLin6Asym_2mm.*--pin data/atlases --fi",
        ),
        ({"name": "schaefer600-tian2"}, r"checksum of Schaefer2018_600Parcels_7Networks_order_FSLMNI152_2mm.nii.gz"),
        (
            {"name": "schaefer600-17networks-tian2", "space": "MNI152NLin2009cAsym"},
            r"checksum of tpl-MNI152NLin2009cAsym_res-02_atlas-Schaefer2018_desc-600Parcels17Networks_dseg.nii.gz",
        ),
        (
            {"name": "schaefer700", "space": "MNI152NLin2009cAsym"},
            r"expected the file tpl-.*700Parcels7Networks_dseg.nii.gz, found none: no copy of it was checked",
        ),
        ({"name": "tian3", "space": "MNI152NLin2009cAsym", "resolution": 1}, r"key 'atlas.resolution': expected 2 for"),
        ({"name": "a424", "resolution": 1}, r"key 'atlas.resolution': expected 2 for a424, found 1"),
        ({"name": "tian3", "space": "MNIPediatricAsym"}, r"key 'atlas.space': expected MNI152NLin6Asym or MNI152NLin2"),
        ({"name": "cc200", "space": "MNI152NLin2009cAsym"}, r"key 'atlas.space': expected MNI152NLin6Asym for cc200"),
    ],
)
def test_what_no_source_gives_is_refused(tmp_path: Path, sources: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path, folder=str(sources), **changes)


def test_seven_and_seventeen_network_orders_are_told_apart(tmp_path: Path, sources: Path) -> None:
    """The trap: 400 labels fit either table, and every parcel would carry another's name."""
    seven, seventeen = (f"Schaefer2018_400Parcels_{order}Networks_order" for order in (7, 17))
    image = str(sources / f"{seven}_FSLMNI152_2mm.nii.gz")
    with pytest.raises(UserError, match=r"in 7-network order, as in .*, found names of the 17-network order"):
        make(tmp_path, image=image, labels=str(sources / f"{seventeen}.txt"))
    make(tmp_path, image=image, labels=str(sources / f"{seven}.txt"))
    first, second = (read_label_table(sources / f"{order}.txt") for order in (seven, seventeen))
    assert (first["index"] == second["index"]).all(), "nothing but names tells the orders apart"


# --- the cerebellum in another space -------------------------------------------------------------------------------


def itk_affine(path: Path, shift: tuple[float, float, float]) -> str:
    """A translation in the form ITK writes (LPS; from a point of the target to the one it comes from)."""
    x, y, z = shift
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: 1 0 0 0 1 0 0 0 1 {-x} {-y} {z}\nFixedParameters: 0 0 0\n"
    )
    return str(path)


def test_the_cerebellum_is_warped_by_the_transform_that_is_given(tmp_path: Path, sources: Path) -> None:
    """A translation moves the image by as much, the other way."""
    transform = itk_affine(tmp_path / "shift.txt", (6.0, -4.0, 2.0))
    space = "MNI152NLin2009cAsym"
    folder = make(tmp_path, name="schaefer400-tian3-buckner7", folder=str(sources), space=space, transform=transform)
    labels, affine = read_label_image(folder / "atlas.nii.gz")
    buckner, own = read_label_image(sources / BUCKNER)
    moved = own.copy()
    moved[:3, 3] -= [6.0, -4.0, 2.0]
    source = nibabel.Nifti1Image(buckner.astype(np.int16), moved)
    grid = nibabel.Nifti1Image(np.zeros(labels.shape), affine)
    resampled = resample_to_img(source, grid, interpolation="nearest", force_resample=True, copy_header=True)
    expected = np.asarray(resampled.dataobj).astype(int)
    free = (labels == 0) | (labels > 450)
    differing = (np.where(labels > 450, labels - 450, 0) != expected) & free
    assert differing.sum() < 0.01 * (expected > 0).sum()
    description = read_json(folder / "atlas.json")
    assert description["note"] == "the cerebellum was warped from MNI152NLin6Asym by shift.txt, nearest neighbour"
    assert "shift.txt" in description["sources"]
    voxels = read_text_table(folder / "labels.tsv")["voxels"].astype(int)
    assert (voxels[450:] > 40).all()


MATRIX = np.array([[1.05, 0.02, 0.0], [-0.03, 0.97, 0.01], [0.0, 0.02, 1.0]])
SHIFT = np.array([3.0, -2.0, 4.0])
SLOPES = np.array([[0.0, 0.0, 0.03], [0.02, 0.0, 0.0], [0.0, -0.02, 0.0]])
OFFSET = np.array([2.0, -3.0, 1.0])


def itk_composite(path: Path) -> str:
    """An affine and a field of displacements as ANTs and TemplateFlow write them; the field is applied first.

    Layout as SimpleITK 2.5 (ITK 5.4) wrote it; coordinates are LPS, the field runs fastest along x.
    """
    shape, spacing, origin = (30, 36, 30), 8.0, np.array([-116.0, -140.0, -116.0])
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape[::-1]), indexing="ij")
    points = origin + spacing * np.stack([x, y, z], axis=-1)
    displacements = points @ SLOPES.T + OFFSET
    with h5py.File(path, "w") as file:
        group = file.create_group("TransformGroup")
        parts = [
            ("CompositeTransform_double_3_3", None, None),
            ("AffineTransform_double_3_3", np.zeros(3), np.concatenate([MATRIX.ravel(), SHIFT])),
            (
                "DisplacementFieldTransform_double_3_3",
                np.concatenate([shape, origin, [spacing] * 3, np.eye(3).ravel()]),
                displacements.ravel(),
            ),
        ]
        for number, (kind, fixed, parameters) in enumerate(parts):
            part = group.create_group(str(number))
            part["TransformType"] = np.array([kind.encode()])
            if fixed is not None:
                part["TransformFixedParameters"], part["TransformParameters"] = fixed, parameters
    return str(path)


def test_a_composite_transform_as_templateflow_has_it_moves_the_cerebellum(tmp_path: Path, sources: Path) -> None:
    """Every voxel takes the label of the place to which field and affine lead, computed from their formulas."""
    transform = itk_composite(tmp_path / BUCKNER_TO_2009C)
    space = "MNI152NLin2009cAsym"
    folder = make(tmp_path, name="schaefer400-tian3-buckner7", folder=str(sources), space=space, transform=transform)
    labels, affine = read_label_image(folder / "atlas.nii.gz")
    buckner, own = read_label_image(sources / BUCKNER)
    lps = np.array([-1.0, -1.0, 1.0])
    voxels = np.argwhere((labels == 0) | (labels > 450))
    points = (voxels @ affine[:3, :3].T + affine[:3, 3]) * lps
    moved = points + points @ SLOPES.T + OFFSET
    moved = (moved @ MATRIX.T + SHIFT) * lps
    source = np.rint((moved - own[:3, 3]) @ np.linalg.inv(own[:3, :3]).T).astype(int)
    inside = ((source >= 0) & (source < buckner.shape)).all(axis=1)
    expected = np.zeros(len(voxels), dtype=int)
    expected[inside] = buckner[tuple(source[inside].T)]
    found = np.maximum(labels[tuple(voxels.T)] - 450, 0)
    assert (expected > 0).sum() > 10_000
    assert (found != expected).sum() < 0.005 * (expected > 0).sum(), "but for roundings at borders"


def test_templateflows_own_transform_lies_beside_the_other_sources(
    tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sources"
    shutil.copytree(sources, folder)
    composite = Path(itk_composite(folder / BUCKNER_TO_2009C))
    settings = {"name": "schaefer400-tian3-buckner7", "folder": str(folder), "transform": "templateflow"}
    with pytest.raises(UserError, match=r"_xfm.h5: expected md5:\w{32}, found md5:\w{32}; it is another copy"):
        make(tmp_path, **settings, space="MNI152NLin2009cAsym")
    known = f"md5:{hashlib.md5(composite.read_bytes()).hexdigest()}"
    source = replace(atlas_recipes.source_of(BUCKNER_TO_2009C), checksum=known)
    whole = atlas_sources.source_of
    monkeypatch.setattr(atlas_sources, "source_of", lambda name: source if name == source.name else whole(name))
    warped = read_json(make(tmp_path / "a", **settings, space="MNI152NLin2009cAsym") / "atlas.json")
    assert warped["note"].endswith(f"by {BUCKNER_TO_2009C}, nearest neighbour")
    assert BUCKNER_TO_2009C in warped["sources"]
    composite.unlink()
    at_home = read_json(make(tmp_path / "b", **settings, space="MNI152NLin6Asym") / "atlas.json")
    assert at_home["note"] is None, "needs no transform"


@pytest.mark.parametrize(("text", "message"), [(None, "found no file; it is TemplateFlow's"), ("x", "an ITK file")])
def test_a_transform_that_is_none_is_refused(tmp_path: Path, sources: Path, text: str | None, message: str) -> None:
    path = tmp_path / "transform.h5"
    if text:
        path.write_text(text)
    changes = {"space": "MNI152NLin2009cAsym", "transform": str(path)}
    with pytest.raises(UserError, match=message):
        make(tmp_path, name="schaefer400-tian3-buckner7", folder=str(sources), **changes)


def test_a424_lacks_one_label_in_one_copy(tmp_path: Path, sources: Path) -> None:
    labels = str(tmp_path / "labels.tsv")
    Path(labels).write_text("index\tname\n" + "".join(f"{i}\tA424_{i}\n" for i in range(1, 425)))
    assert (
        len(read_text_table(make(tmp_path, image=str(sources / "A424+2mm.nii.gz"), labels=labels) / "labels.tsv"))
        == 424
    )
    with pytest.raises(UserError, match="found none for 120;"):
        make(tmp_path, image=str(sources / "A424.nii.gz"), labels=labels)
