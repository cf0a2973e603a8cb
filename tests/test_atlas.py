"""Atlases of the user: every form of label table, and what is wrong with an image or table."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import synthetic_images as synthetic
from atlas_cases import make
from nilearn.image import resample_to_img
from semantoks.errors import UserError
from semantoks.files import read_json, read_text_table, sha256
from semantoks.label_images import on_grid, read_label_image, read_label_table, share_inside, write_label_image


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


def test_a_stray_label_inside_an_image_without_table_can_be_dropped(tmp_path: Path, image: str) -> None:
    folder = make(tmp_path, image=image, drop_labels=[3])
    written = read_text_table(folder / "labels.tsv")
    assert written["index"].tolist() == ["1", "2", "4", "5"], "the others keep their numbers in the image"
    assert written["name"].tolist() == ["boxes_1", "boxes_2", "boxes_4", "boxes_5"]
    stored, _ = read_label_image(folder / "atlas.nii.gz")
    labels = synthetic.atlas_labels()
    np.testing.assert_array_equal(stored, np.where(labels == 3, 0, labels))
    write_label_image(image, np.where(labels == 4, 90, labels), synthetic.affine())
    with pytest.raises(UserError, match="found 1 to 90 without 4; renumber"):
        make(tmp_path, image=image, drop_labels=[3])
    with pytest.raises(UserError, match="found 1 to 5 without 4; renumber"):
        make(tmp_path, image=image, drop_labels=[90, 3])
    assert len(read_text_table(make(tmp_path, image=image, drop_labels=[90, 5]) / "labels.tsv")) == 3


def test_a_dropped_parcel_of_a_table_leaves_its_number_free(tmp_path: Path, image: str) -> None:
    written = read_text_table(make(tmp_path, image=image, labels=table(tmp_path, FIVE), drop_labels=[2]) / "labels.tsv")
    assert written[["index", "name"]].values.tolist() == [["1", "a"], ["3", "c"], ["4", "d"], ["5", "e"]]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"drop_labels": [7, 8]},
            r"key 'atlas.drop_labels': expected labels of .*labels.tsv, found 7, 8, which it lacks",
        ),
        ({"empty_labels": [9]}, r"key 'atlas.empty_labels': expected labels of .*labels.tsv, found 9, which it lacks"),
        ({"drop_labels": [1, 2, 3, 4, 5]}, r"key 'atlas.drop_labels': expected some labels to be left of 5, found all"),
    ],
)
def test_declared_labels_that_change_nothing_or_everything_are_errors(
    tmp_path: Path, image: str, keys: dict[str, list[int]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path, image=image, labels=table(tmp_path, FIVE), **keys)


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
