"""Networks of parcels: by name, by overlap, from a table."""

from __future__ import annotations

import colorsys
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic_images as synthetic
from conftest import REPOSITORY
from semantoks import atlas, networks
from semantoks.errors import UserError
from semantoks.files import read_text_table
from semantoks.label_images import write_label_image

DEFAULTS: dict[str, Any] = {
    "method": "labels",
    "image": None,
    "space": synthetic.SPACE,
    "names": None,
    "drop_labels": [],
    "minimum_share": 0.1,
    "unassigned_name": "Unassigned",
    "file": None,
}
YEO = REPOSITORY / "resources" / "yeo7.tsv"


def assign(folder: Path, /, **changes: Any) -> pd.DataFrame:
    output = folder / "networks.tsv"
    networks.main(["--settings", json.dumps(DEFAULTS | changes), "--atlas", str(folder), "--output", str(output)])
    return read_text_table(output)


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    return synthetic.atlas_folder(tmp_path / "atlas")


def real_atlas(where: Path, /, **changes: Any) -> Path:
    defaults = {"space": synthetic.SPACE, "folder": None, "resolution": 2, "image": None, "labels": None}
    settings = json.dumps(defaults | {"drop_labels": [], "empty_labels": []} | changes)
    atlas.main(["--settings", settings, "--output-folder", str(where / "atlas")])
    return where / "atlas"


def test_names_tell_the_network(boxes: Path) -> None:
    table = assign(boxes)
    assert table["name"].tolist() == synthetic.NAMES
    assert table["network"].tolist() == ["Vis", "Default", "Vis", "Subcortex", "Cerebellum"]
    assert table["share"].astype(float).tolist() == [1] * 5
    assert table.columns.tolist()[4:] == ["Vis", "Default", "Subcortex", "Cerebellum"]


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("7Networks_LH_SalVentAttn_FrOperIns_2", "SalVentAttn"),
        ("17Networks_RH_DefaultA_pCunPCC_1", "DefaultA"),
        ("LH_Cont_Par_1", "Cont"),
        ("NAc-shell-lh", "Subcortex"),
        ("Buckner_Limbic", "Cerebellum"),
        ("Precuneus", None),
    ],
)
def test_patterns_of_names(name: str, network: str | None) -> None:
    assert networks.from_names(pd.Series([name])).tolist() == [network]


def test_a_network_column_goes_before_names_and_an_unknown_name_is_an_error(boxes: Path) -> None:
    labels = read_text_table(boxes / "labels.tsv")
    labels.assign(network=list("XYXYZ")).to_csv(boxes / "labels.tsv", sep="\t", index=False)
    assert assign(boxes)["network"].tolist() == list("XYXYZ")
    labels.assign(name=["Precuneus", *labels["name"][1:]]).to_csv(boxes / "labels.tsv", sep="\t", index=False)
    with pytest.raises(UserError, match="found none for 'Precuneus'"):
        assign(boxes)


def test_one_network_for_all_and_one_for_each(boxes: Path) -> None:
    assert assign(boxes, method="single")["network"].unique().tolist() == ["All"]
    assert assign(boxes, method="each")["network"].tolist() == synthetic.NAMES


def test_a_table_is_matched_by_name_not_by_order(boxes: Path, tmp_path: Path) -> None:
    rows = pd.DataFrame({"name": synthetic.NAMES, "network": list("ABACD")})
    path = tmp_path / "own.tsv"
    rows[::-1].to_csv(path, sep="\t", index=False)
    assert assign(boxes, method="file", file=str(path))["network"].tolist() == list("ABACD")
    rows[1:].to_csv(path, sep="\t", index=False)
    with pytest.raises(UserError, match=r"found none for '7Networks_LH_Vis_1' \(1 in all\)"):
        assign(boxes, method="file", file=str(path))
    pd.concat([rows, rows[:1]]).to_csv(path, sep="\t", index=False)
    with pytest.raises(UserError, match="'7Networks_LH_Vis_1' twice"):
        assign(boxes, method="file", file=str(path))
    with pytest.raises(UserError, match=r"networks\.file"):
        assign(boxes, method="file")


def network_image(path: Path) -> str:
    """Network 1 covers box 1 wholly and a quarter of box 2; network 2 three voxels of box 3; 9 is stray."""
    image = np.zeros(synthetic.SHAPE, dtype=np.int32)
    image[1:5, 1:5, 1:5] = 1
    image[1:5, 8:12, 1] = 1
    image[7, 1, 1:4] = 2
    image[0, 0, 0] = 9
    write_label_image(path, image, synthetic.affine())
    return str(path)


def test_overlap_gives_shares_and_a_group_for_what_lies_outside(boxes: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.tsv"
    names.write_text("index\tname\n1\tFirst\n2\tSecond\n")
    overlap = {"method": "overlap", "image": network_image(tmp_path / "n.nii.gz"), "names": str(names)}
    table = assign(boxes, **overlap, drop_labels=[9]).set_index("index")
    assert table.loc[["1", "2", "3", "4", "5"], "network"].tolist() == ["First", "First", *["Unassigned"] * 3]
    assert table.loc[["1", "2", "3"], "share"].astype(float).tolist() == [1, 0.25, 0.0469]
    assert table.loc["3", ["First", "Second"]].astype(float).tolist() == [0, 0.0469]
    lenient = assign(boxes, **overlap, drop_labels=[9], minimum_share=0.04).set_index("index")
    assert lenient.loc["3", "network"] == "Second"
    with pytest.raises(UserError, match=r"found also 9; .*drop_labels"):
        assign(boxes, **overlap)
    with pytest.raises(UserError, match="expected the space of the atlas, MNI152NLin6Asym, found MNI152NLin2009cAsym"):
        assign(boxes, **overlap, space="MNI152NLin2009cAsym")
    with pytest.raises(UserError, match=r"networks\.names"):
        assign(boxes, **(overlap | {"names": None}))
    (boxes / "atlas.nii.gz").unlink()
    with pytest.raises(UserError, match="atlas without image"):
        assign(boxes, **overlap, drop_labels=[9])


def test_the_457_parcels_have_the_published_counts(tmp_path: Path, shared: Path) -> None:
    folder = real_atlas(tmp_path, name="schaefer400-tian3-buckner7", folder=str(shared / "data" / "atlases"))
    table = assign(folder)
    codes, names = pd.factorize(table["network"])
    assert list(names) == [*atlas.YEO_NETWORKS, "Subcortex", "Cerebellum"]
    assert np.bincount(codes).tolist() == [61, 77, 46, 47, 26, 52, 91, 50, 7]
    assert np.bincount(codes[:200]).tolist() == [31, 37, 23, 22, 13, 22, 52]
    assert np.bincount(codes[200:400]).tolist() == [30, 40, 23, 25, 13, 30, 39]
    assert (np.diff(codes[:200]) >= 0).all(), "runs, in the order of the networks"


def test_cc200_by_overlap_leaves_ten_parcels_unassigned(tmp_path: Path, shared: Path) -> None:
    sources = shared / "data" / "atlases"
    folder = real_atlas(tmp_path, name="cc200", image=str(sources / "CC200.nii.gz"))
    overlap = {"method": "overlap", "image": str(sources / "7YeoChoiBuckner.nii.gz"), "names": str(YEO)}
    table = assign(folder, **overlap, drop_labels=[8, 10, 12])
    assert len(table) == 200
    assert (table["network"] == "Unassigned").sum() == 10
    assert set(table["network"]) == {*atlas.YEO_NETWORKS, "Unassigned"}
    with pytest.raises(UserError, match="found also 8, 10, 12;"):
        assign(folder, **overlap)


def test_names_of_the_seventeen_networks_are_those_of_the_parcels_in_that_order(shared: Path) -> None:
    """Colours tell the order: parcels of a network have (nearly) the hue that the network has in the image's table."""
    atlases = shared / "data/atlases"
    names = read_text_table(REPOSITORY / "resources/yeo17.tsv")["name"].tolist()
    colours: dict[str, list[list[float]]] = {}
    for line in (atlases / "Schaefer2018_400Parcels_17Networks_order.txt").read_text().splitlines():
        _, name, *colour, _ = line.split()
        colours.setdefault(networks.from_names(pd.Series([name]))[0], []).append([float(c) / 255 for c in colour])
    assert set(names) == set(colours)
    table = [line.split() for line in (atlases / "atl-Buckner17.lut").read_text().splitlines()]
    for name, (index, *colour, _) in zip(names, table, strict=True):
        assert names.index(name) + 1 == int(index)
        hues = [colorsys.rgb_to_hsv(*np.mean(colours[name], axis=0))[0], colorsys.rgb_to_hsv(*map(float, colour))[0]]
        assert abs((hues[0] - hues[1] + 0.5) % 1 - 0.5) < 0.05, name
