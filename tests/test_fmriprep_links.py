"""Links that leave the dataset: what is bound for them, and where inside the container they lead."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from semantoks.errors import UserError
from semantoks.fmriprep_links import link_binds

DATA = Path("/data")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A dataset whose BIDS folder ``rawdata`` is a part of it, with a git annex above."""
    for name in ("rawdata/sub-01/func", "rawdata/sub-01/anat", ".git/annex/objects/a/k1", ".git/annex/objects/b/k2"):
        (tmp_path / name).mkdir(parents=True)
    for key in ("a/k1", "b/k2"):
        (tmp_path / ".git/annex/objects" / key / "image").write_text("image")
    return tmp_path.resolve()


def link(study: Path, name: str, target: str | Path) -> Path:
    """A link in the BIDS folder; where targets are relative, it is made as git annex makes it."""
    path = study / "rawdata" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def binds(study: Path, *files: Path) -> dict[str, str]:
    """Where on this machine → where inside."""
    return {str(outside): str(inside) for outside, inside in link_binds(study / "rawdata", files)}


def test_an_annex_above_the_bids_folder_is_bound_where_relative_links_lead(study: Path) -> None:
    files = [
        link(study, "sub-01/func/bold.nii.gz", "../../../.git/annex/objects/a/k1/image"),
        link(study, "sub-01/ses-1/func/bold.nii.gz", "../../../../.git/annex/objects/b/k2/image"),
        link(study, "task-rest_bold.json", "../.git/annex/objects/a/k1/image"),
    ]
    assert binds(study, *files) == {str(study / ".git/annex"): "/.git/annex"}


def test_targets_of_absolute_links_are_bound_where_they_lie(study: Path) -> None:
    (study / "elsewhere").mkdir()
    (study / "elsewhere/T1w.json").write_text("{}")
    (study / "rawdata/sub-01/func/real.nii.gz").write_text("image")
    files = [
        link(study, "sub-01/func/a_bold.nii.gz", study / ".git/annex/objects/a/k1/image"),
        link(study, "sub-01/func/b_bold.nii.gz", study / ".git/annex/objects/b/k2/image"),
        link(study, "sub-01/anat/T1w.json", study / "elsewhere/T1w.json"),
        link(study, "sub-01/anat/copy.nii.gz", study / "rawdata/sub-01/func/real.nii.gz"),
    ]
    places = (".git/annex", "elsewhere", "rawdata/sub-01/func")
    assert binds(study, *files) == {str(study / name): str(study / name) for name in places}


def test_links_inside_the_bids_folder_need_nothing(study: Path) -> None:
    (study / "rawdata/.git/annex/objects/x").mkdir(parents=True)
    (study / "rawdata/.git/annex/objects/x/image").write_text("image")
    (study / "rawdata/sub-01/func/real.nii.gz").write_text("image")
    files = [
        link(study, "sub-01/func/bold.nii.gz", "../../.git/annex/objects/x/image"),
        link(study, "sub-01/anat/copy.nii.gz", "../func/real.nii.gz"),
        study / "rawdata/sub-01/func/real.nii.gz",
    ]
    assert binds(study, *files) == {}


def test_links_on_the_way_are_followed(study: Path) -> None:
    """An annex on another disk, a submodule's ``.git``, a file that is a link to a link, a folder that is a link."""
    disk = study / "disk"
    (study / ".git/annex/objects").rename(disk)
    (study / ".git/annex/objects").symlink_to(disk)
    first = link(study, "sub-01/func/bold.nii.gz", "../../../.git/annex/objects/a/k1/image")
    assert binds(study, first) == {str(disk / "a/k1"): "/.git/annex/objects/a/k1"}
    (study / "module/annex/objects/c").mkdir(parents=True)
    (study / "module/annex/objects/c/image").write_text("image")
    (study / "rawdata/.git").symlink_to("../module")
    second = link(study, "sub-01/func/other_bold.nii.gz", "../../.git/annex/objects/c/image")
    assert binds(study, second) == {str(study / "module/annex"): "/module/annex"}
    (study / "pool").mkdir()
    (study / "pool/image").symlink_to("../disk/b/k2/image")
    third = link(study, "sub-01/func/third_bold.nii.gz", "../../../pool/image")
    assert binds(study, third) == {str(study / "pool"): "/pool", str(disk / "b/k2"): "/disk/b/k2"}
    (study / "scans/func").mkdir(parents=True)
    (study / "scans/func/bold.nii.gz").write_text("image")
    folder = link(study, "sub-02", "../scans")
    assert binds(study, folder, folder / "func/bold.nii.gz") == {str(study / "scans"): "/scans"}


def test_a_file_beside_the_bids_folder_is_bound_alone(study: Path) -> None:
    """Its folder would be the root of the container."""
    (study / "image.nii.gz").write_text("image")
    path = link(study, "sub-01/func/bold.nii.gz", "../../../image.nii.gz")
    assert binds(study, path) == {str(study / "image.nii.gz"): "/image.nii.gz"}


@pytest.mark.parametrize(("folder", "name"), [("data", "image"), ("usr", ""), ("out", "")])
def test_a_link_to_what_is_another_thing_inside_is_refused(study: Path, folder: str, name: str) -> None:
    (study / folder).mkdir()
    if name:
        (study / folder / name).write_text("image")
    path = link(study, "sub-01/func/bold.nii.gz", f"../../../{folder}/{name}".rstrip("/"))
    with pytest.raises(UserError, match=rf"found one to {re.escape(str(study))}/{folder}.*be /{folder}.* taken; make"):
        binds(study, path)


def test_links_to_nothing_and_in_circles_bind_nothing(study: Path) -> None:
    path = link(study, "sub-01/func/bold.nii.gz", "bold.nii.gz")
    nothing = link(study, "sub-01/func/nothing.nii.gz", "../../../absent/image")
    assert binds(study, path, nothing) == {}


def test_every_link_leads_to_the_same_content_where_the_places_are_bound(study: Path, tmp_path: Path) -> None:
    """The container's root, made of links: each file is found by following its own link text from ``/data``."""
    (study / ".git/annex/objects/a/k1/image").write_text("first")
    files = [
        link(study, "sub-01/func/bold.nii.gz", "../../../.git/annex/objects/a/k1/image"),
        link(study, "sub-01/ses-1/func/bold.nii.gz", "../../../../.git/annex/objects/b/k2/image"),
    ]
    for outside, inside in link_binds(study / "rawdata", files):
        for file in files:
            place = os.path.normpath(DATA / file.relative_to(study / "rawdata").parent / os.readlink(file))
            found = outside / Path(place).relative_to(inside)
            assert found.read_text() == file.read_text()
