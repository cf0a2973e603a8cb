"""Fetching the files that atlases are made of, and the checksums in their lock."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from atlas_cases import DEFAULTS
from semantoks import atlas_recipes, atlas_sources
from semantoks.atlas_recipes import BUCKNER, BUCKNER_TO_2009C, Source
from semantoks.errors import UserError
from semantoks.files import sha256


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
    assert f"sha256:{atlas_sources.fetch(source, home / 'got' / 'known.nii')}" == source.checksum
    assert (home / "got" / "known.nii").read_bytes() == b"known.nii"
    (home / "home" / "known.nii").write_bytes(b"changed")
    with pytest.raises(
        UserError, match=r"expected sha256:\w+, found sha256:\w+; it is another copy than the one that was checked"
    ):
        atlas_sources.fetch(source, home / "again.nii")
    with pytest.raises(UserError, match=r"found no answer .*give the folder with it as 'atlas.folder'"):
        atlas_sources.fetch(Source("x", "http://localhost:9/x", "sha256:0", ""), home / "x")
    assert sorted(path.name for path in home.iterdir()) == ["got", "home", "lock"], "nothing half-fetched stays"


def test_an_md5_serves_where_the_home_of_a_file_publishes_no_other(home: Path) -> None:
    checksum = hashlib.md5(b"new.nii").hexdigest()
    lock = home / "lock"
    lock.write_text(lock.read_text().replace("sha256: unresolved", f"md5: {checksum}"))
    source = atlas_recipes.source_of("new.nii", lock)
    assert source.checksum == f"md5:{checksum}"
    assert atlas_sources.fetch(source, home / "new.nii") == sha256(home / "home" / "new.nii")
    assert atlas_sources.pin(home / "got", lock) == [], "it is known"
    (home / "home" / "new.nii").write_bytes(b"changed")
    with pytest.raises(UserError, match=rf"expected md5:{checksum}, found md5:\w+; it is another copy"):
        atlas_sources.fetch(source, home / "new.nii")


def test_pins_writes_the_checksums_that_the_lock_lacks(home: Path) -> None:
    assert atlas_sources.pin(home / "got", home / "lock") == ["new.nii"]
    assert atlas_recipes.source_of("new.nii", home / "lock").checksum == f"sha256:{sha256(home / 'home' / 'new.nii')}"
    assert atlas_sources.pin(home / "got", home / "lock") == []


def test_pins_keeps_what_it_found_when_a_file_is_not_to_be_had(home: Path) -> None:
    lock = home / "lock"
    lock.write_text(lock.read_text() + "  gone.nii: {home: here, below: home/, sha256: unresolved}\n")
    with pytest.raises(UserError, match=r"1 checksums found, 1 files not fetched; the first: file://.*gone.nii"):
        atlas_sources.pin(home / "got", lock)
    assert atlas_recipes.source_of("new.nii", lock).checksum == f"sha256:{sha256(home / 'home' / 'new.nii')}"
    assert atlas_sources.pin(home / "got", lock, ["new.nii"]) == []
    with pytest.raises(UserError, match=r"expected the file other.nii, found none"):
        atlas_sources.pin(home / "got", lock, ["other.nii"])


def test_files_to_fetch_are_those_of_a_known_name_without_folder() -> None:
    assert atlas_recipes.needed_files(DEFAULTS | {"name": "schaefer400-tian3-buckner7"}) == [
        "Schaefer2018_400Parcels_7Networks_order_Tian_Subcortex_S3_MNI152NLin6Asym_2mm.nii.gz",
        "Schaefer2018_400Parcels_7Networks_order_Tian_Subcortex_S3_label.txt",
        BUCKNER,
    ]
    warped = DEFAULTS | {
        "name": "schaefer400-tian3-buckner7",
        "space": "MNI152NLin2009cAsym",
        "transform": "templateflow",
    }
    assert atlas_recipes.needed_files(warped)[-2:] == [BUCKNER, BUCKNER_TO_2009C]
    assert atlas_recipes.needed_files(warped | {"transform": None})[-1] == BUCKNER
    assert BUCKNER_TO_2009C not in atlas_recipes.needed_files(warped | {"space": "MNI152NLin6Asym"})
    for own in ({"folder": "/atlases"}, {"labels": "own.tsv"}, {"name": "own", "image": "own.nii.gz"}):
        assert atlas_recipes.needed_files(DEFAULTS | {"name": "schaefer400-tian3-buckner7"} | own) == []


def test_every_source_of_the_lock_has_a_home_and_a_checksum_or_none() -> None:
    for name, source in atlas_recipes.read_sources().items():
        assert source.url.startswith("https://"), name
        assert re.fullmatch("unresolved|sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", source.checksum), name
    assert BUCKNER_TO_2009C in atlas_recipes.read_sources()
