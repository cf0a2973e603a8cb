"""Atlases: every form of label table, the merged 457 parcels, and what is wrong with an image or table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import synthetic_images as synthetic
from nilearn.image import resample_to_img
from semantoks import atlas, atlas_recipes, atlas_sources
from semantoks.atlas_recipes import BUCKNER, BUCKNER_TO_2009C, Recipe, Source, recipe_of
from semantoks.errors import UserError
from semantoks.files import read_json, read_text_table, sha256
from semantoks.label_images import on_grid, read_label_image, read_label_table, share_inside, write_label_image

DEFAULTS: dict[str, Any] = {
    "name": "boxes",
    "space": synthetic.SPACE,
    "folder": None,
    "resolution": 2,
    "image": None,
    "labels": None,
    "drop_labels": [],
    "empty_labels": [],
}


def make(where: Path, /, **changes: Any) -> Path:
    """Run the stage; returns its folder."""
    output = where / "out"
    atlas.main(["--settings", json.dumps(DEFAULTS | changes), "--output-folder", str(output)])
    return output


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "boxes.nii.gz"
    write_label_image(path, synthetic.atlas_labels(), synthetic.affine())
    return str(path)


def table(folder: Path, text: str, name: str = "labels.tsv") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


FIVE = "index\tname\n1\ta\n2\tb\n3\tc\n4\td\n5\te\n"

FORMS = {
    "TSV": ("index\tname\n1\tLH_Vis_1\n2\tRH_Vis_1\n", "x.tsv"),
    "TSV with label and more": ("index\tlabel\tcolor\n1\tLH_Vis_1\t#fff\n2\tRH_Vis_1\t#000\n", "x.tsv"),
    "CSV": ("index,name\n1,LH_Vis_1\n2,RH_Vis_1\n", "x.csv"),
    "CBIG": ("1\tLH_Vis_1\t120\t18\t131\t0\n2\tRH_Vis_1\t120\t18\t132\t0\n", "x.txt"),
    "Workbench": ("LH_Vis_1\n1 120 18 131 255\nRH_Vis_1\n2 120 18 132 255\n", "x.txt"),
    "colour table": ("1 0.47 0.07 0.52 LH_Vis_1\n2 0.27 0.5 0.7 RH_Vis_1\n", "x.lut"),
    "names only": ("LH_Vis_1\nRH_Vis_1", "x.txt"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_label_table_reads_the_same(tmp_path: Path, form: str) -> None:
    read = read_label_table(table(tmp_path, *FORMS[form]))
    assert read[["index", "name"]].values.tolist() == [[1, "LH_Vis_1"], [2, "RH_Vis_1"]]


def test_names_may_begin_with_a_digit(tmp_path: Path) -> None:
    read = read_label_table(table(tmp_path, "1\t7Networks_LH_Vis_1\t120\t18\t131\t0\n", "x.txt"))
    assert read["name"].tolist() == ["7Networks_LH_Vis_1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index\tcolour\n1\tred\n", "expected the columns index and name"),
        ("index\tname\n1.5\ta\n", "'index': expected whole numbers"),
        ("index\tname\n1\t\n", "expected a name in every row"),
        ("1 14 -78 4\n2 44 -64 4\n", "expected a label table"),
        ("some prose about an atlas\nand more of it\n", "expected a label table"),
        ("", "empty file"),
    ],
)
def test_what_is_no_label_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_label_table(table(tmp_path, text))


def test_an_atlas_is_written_in_one_form(tmp_path: Path, image: str) -> None:
    labels = table(tmp_path, "index,name,network\n3,c,X\n1,a,X\n2,b,Y\n5,e,Y\n4,d,X\n", "labels.csv")
    folder = make(tmp_path, image=image, labels=labels)
    written = read_text_table(folder / "labels.tsv")
    assert written["name"].tolist() == ["c", "a", "b", "e", "d"], "the order of the label table is the order of ROIs"
    assert written["voxels"].tolist() == ["64", "64", "64", "36", "64"]
    assert written["network"].tolist() == ["X", "X", "Y", "Y", "X"]
    description = read_json(folder / "atlas.json")
    assert (description["name"], description["space"]) == ("boxes", synthetic.SPACE)
    assert description["sha256"] == {
        "image": sha256(folder / "atlas.nii.gz"),
        "labels": sha256(folder / "labels.tsv"),
    }
    assert description["sources"] == {"boxes.nii.gz": sha256(image), "labels.csv": sha256(labels)}
    assert description["voxel_size"] == [4.0, 4.0, 4.0]
    stored, affine = read_label_image(folder / "atlas.nii.gz")
    np.testing.assert_array_equal(stored, synthetic.atlas_labels())
    np.testing.assert_array_equal(affine, synthetic.affine())


def test_the_same_atlas_gives_the_same_bytes(tmp_path: Path, image: str) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first, second = (make(tmp_path / name, image=image) for name in ("first", "second"))
    for name in ("atlas.nii.gz", "labels.tsv", "atlas.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_labels_without_image_and_image_without_labels(tmp_path: Path, image: str) -> None:
    folder = make(tmp_path, image=image)
    assert read_text_table(folder / "labels.tsv")["name"].tolist() == [f"boxes_{i}" for i in range(1, 6)]
    folder = make(tmp_path, labels=table(tmp_path, FIVE))
    assert read_text_table(folder / "labels.tsv")["voxels"].isna().all()
    assert not (folder / "atlas.nii.gz").exists(), "the image of an earlier run must not stay"
    assert read_json(folder / "atlas.json")["sha256"]["image"] is None


def test_stray_and_known_empty_labels_can_be_declared(tmp_path: Path, image: str) -> None:
    four = table(tmp_path, FIVE.replace("5\te\n", ""))
    with pytest.raises(UserError, match=r"found 5;.*drop_labels"):
        make(tmp_path, image=image, labels=four)
    assert len(read_text_table(make(tmp_path, image=image, labels=four, drop_labels=[5]) / "labels.tsv")) == 4
    six = table(tmp_path, FIVE + "6\tf\n")
    with pytest.raises(UserError, match=r"found none for 6; .*empty_labels"):
        make(tmp_path, image=image, labels=six)
    written = read_text_table(make(tmp_path, image=image, labels=six, empty_labels=[6]) / "labels.tsv")
    assert written["voxels"].tolist()[-1] == "0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FIVE.replace("5\te", "6\te"), "expected the indices 1 to 5, found 1 to 6 without 5"),
        (FIVE.replace("5\te", "4\te"), "'index': expected different values, found 4 twice"),
        (FIVE.replace("5\te", "5\ta"), "'name': expected different values, found a twice"),
    ],
)
def test_gaps_and_duplicates_in_the_table_are_errors(tmp_path: Path, image: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path, image=image, labels=table(tmp_path, text))


def test_images_that_hold_no_labels_are_errors(tmp_path: Path) -> None:
    bad = {
        "a probability map": np.full((4, 4, 4), 0.3),
        "dimensions": np.ones((4, 4, 4, 3)),
        "whole numbers": -np.ones((4, 4, 4)),
    }
    for message, data in bad.items():
        path = tmp_path / "bad.nii.gz"
        nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), path)
        with pytest.raises(UserError, match=message):
            make(tmp_path, image=str(path))
    (tmp_path / "text.nii.gz").write_text("annex pointer")
    with pytest.raises(UserError, match="unreadable"):
        make(tmp_path, image=str(tmp_path / "text.nii.gz"))
    with pytest.raises(UserError, match="found no file"):
        make(tmp_path, image="gone.nii.gz")
    with pytest.raises(UserError, match="expected 'image', 'labels' or both"):
        make(tmp_path)


# --- grids ---------------------------------------------------------------------------------------------------------


def test_nearest_neighbour_equals_nilearn_away_from_ties_and_edges() -> None:
    labels = synthetic.atlas_labels()
    target = np.diag([-2.3, 3.1, 2.7, 1.0])
    target[:3, 3] = [21.3, -24.2, -15.1]
    target[0, 1] = 0.21  # oblique
    grid = nibabel.Nifti1Image(np.zeros((18, 16, 12)), target)
    source = nibabel.Nifti1Image(labels.astype(np.int16), synthetic.affine())
    theirs = resample_to_img(source, grid, interpolation="nearest", force_resample=True, copy_header=True)
    ours = on_grid(labels, synthetic.affine(), (18, 16, 12), target)
    np.testing.assert_array_equal(ours, np.asarray(theirs.dataobj))
    assert len(np.unique(ours)) == 6


def test_the_same_grid_gives_the_labels_themselves_and_a_flip_their_mirror_image() -> None:
    labels = synthetic.atlas_labels()
    assert on_grid(labels, synthetic.affine(), labels.shape, synthetic.affine()) is labels
    flipped = on_grid(labels, synthetic.affine(), labels.shape, synthetic.affine(flip=True))
    np.testing.assert_array_equal(flipped, labels[::-1])


def test_share_inside_counts_voxels_in_the_field_of_view() -> None:
    labels = synthetic.atlas_labels()
    cut = synthetic.affine()
    cut[1, 3] += 4 * 9  # the first nine planes along y are gone: boxes 1 and 3 too, 1 of 4 planes of boxes 2 and 4
    shares = share_inside(labels, synthetic.affine(), np.arange(1, 6), (12, 5, 10), cut)
    np.testing.assert_allclose(shares, [0, 0.75, 0, 0.75, 0])


# --- the merged atlas ----------------------------------------------------------------------------------------------


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
    combined, _ = read_label_image(sources / COMBINED.image(synthetic.SPACE, 2))
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
    name = COMBINED.image(synthetic.SPACE, 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"found no file; get .*yetianmed"):
        merged(tmp_path, tmp_path / "empty")
    (tmp_path / "empty" / name).write_bytes((sources / name).read_bytes() + b"x")
    with pytest.raises(UserError, match="expected SHA-256 a6568b75"):
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
        ({"name": "schaefer300"}, r"expected the checksum of Schaefer2018_300.*2mm.nii.gz, found 'unresolved'; run"),
        ({"name": "schaefer300-tian2"}, "expected the file Schaefer2018_300.*, found none: no copy of it was checked"),
        ({"name": "schaefer400", "space": "MNI152NLin2009cAsym"}, r"key 'atlas.space': expected MNI152NLin6Asym for"),
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


@pytest.mark.parametrize(("text", "message"), [(None, "found no file; it is TemplateFlow's"), ("x", "an ITK file")])
def test_a_transform_that_is_none_is_refused(tmp_path: Path, sources: Path, text: str | None, message: str) -> None:
    path = tmp_path / "transform.h5"
    if text:
        path.write_text(text)
    changes = {"space": "MNI152NLin2009cAsym", "transform": str(path)}
    with pytest.raises(UserError, match=message):
        make(tmp_path, name="schaefer400-tian3-buckner7", folder=str(sources), **changes)


# --- fetching ------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A lock with one file of known and one of unknown checksum, at home in a local folder."""
    (tmp_path / "home").mkdir()
    for name in ("known.nii", "new.nii"):
        (tmp_path / "home" / name).write_bytes(name.encode())
    checksum = sha256(tmp_path / "home" / "known.nii")
    (tmp_path / "lock").write_text(
        f"homes:\n  here: {{url: 'file://{tmp_path}/', licence: free}}\nfiles:\n"
        f"  known.nii: {{home: here, below: home/, sha256: {checksum}}}\n"
        "  new.nii: {home: here, below: home/, sha256: unresolved}\n"
    )
    return tmp_path


def test_a_fetched_file_is_compared_with_its_checksum(home: Path) -> None:
    source = atlas_recipes.source_of("known.nii", home / "lock")
    assert atlas_sources.fetch(source, home / "got" / "known.nii") == source.sha256
    assert (home / "got" / "known.nii").read_bytes() == b"known.nii"
    (home / "home" / "known.nii").write_bytes(b"changed")
    with pytest.raises(UserError, match="another copy than the one whose labels were checked"):
        atlas_sources.fetch(source, home / "again.nii")
    with pytest.raises(UserError, match=r"found no answer .*give the folder with it as 'atlas.folder'"):
        atlas_sources.fetch(Source("x", "http://localhost:9/x", "0", ""), home / "x")
    assert sorted(path.name for path in home.iterdir()) == ["got", "home", "lock"], "nothing half-fetched stays"


def test_pins_writes_the_checksums_that_the_lock_lacks(home: Path) -> None:
    assert atlas_sources.pin(home / "got", home / "lock") == ["new.nii"]
    assert atlas_recipes.source_of("new.nii", home / "lock").sha256 == sha256(home / "home" / "new.nii")
    assert atlas_sources.pin(home / "got", home / "lock") == []


def test_files_to_fetch_are_those_of_a_known_name_without_folder() -> None:
    assert atlas_recipes.needed_files(DEFAULTS | {"name": "schaefer400-tian3-buckner7"}) == [
        "Schaefer2018_400Parcels_7Networks_order_Tian_Subcortex_S3_MNI152NLin6Asym_2mm.nii.gz",
        "Schaefer2018_400Parcels_7Networks_order_Tian_Subcortex_S3_label.txt",
        BUCKNER,
    ]
    for own in ({"folder": "/atlases"}, {"labels": "own.tsv"}, {"name": "own", "image": "own.nii.gz"}):
        assert atlas_recipes.needed_files(DEFAULTS | {"name": "schaefer400-tian3-buckner7"} | own) == []


def test_every_source_of_the_lock_has_a_home_and_a_checksum_or_none() -> None:
    for name, source in atlas_recipes.read_sources().items():
        assert source.url.startswith("https://"), name
        assert source.sha256 == "unresolved" or len(source.sha256) == 64, name
    assert BUCKNER_TO_2009C in atlas_recipes.read_sources()


def test_a424_lacks_one_label_in_one_copy(tmp_path: Path, sources: Path) -> None:
    labels = table(tmp_path, "index\tname\n" + "".join(f"{i}\tA424_{i}\n" for i in range(1, 425)))
    assert (
        len(read_text_table(make(tmp_path, image=str(sources / "A424+2mm.nii.gz"), labels=labels) / "labels.tsv"))
        == 424
    )
    with pytest.raises(UserError, match="found none for 120;"):
        make(tmp_path, image=str(sources / "A424.nii.gz"), labels=labels)
