"""The template's brain mask is there without anybody's doing, and its absence stops nobody."""

from __future__ import annotations

import io
import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import nibabel
import numpy as np
import pytest
from semantoks import parcellate, template_mask
from semantoks.atlas_recipes import NLIN6, NLIN2009C
from semantoks.errors import UserError
from semantoks.files import read_json, sha256
from semantoks.label_images import read_mask_image


@pytest.fixture
def original(shared: Path) -> Path:
    """TemplateFlow's own file."""
    return shared / "data/templates" / template_mask.mask_name(NLIN2009C)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_mask_beside_the_sources_of_the_atlas_is_used_where_it_lies(original: Path, tmp_path: Path) -> None:
    found = template_mask.find_mask(NLIN2009C, original.parent, tmp_path)
    assert found == {"path": str(original), "sha256": sha256(original), "note": None}
    assert not list(tmp_path.iterdir())


def test_else_it_is_fetched(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(address: str, timeout: float) -> io.BytesIO:
        asked.append(address)
        return io.BytesIO(original.read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    found = template_mask.find_mask(NLIN2009C, tmp_path, tmp_path / "sources")
    assert asked == [f"https://templateflow.s3.amazonaws.com/tpl-{NLIN2009C}/{original.name}"]
    assert found["note"] is None
    assert found["sha256"] == sha256(found["path"]) == sha256(original)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("space", "note"),
    [
        (NLIN2009C, "found no answer .*no route to host"),
        (NLIN6, "tpl-MNI152NLin6Asym_res-02_desc-brain_mask.nii.gz, found no answer"),
        ("MNIPediatricAsym", "no brain mask of the template MNIPediatricAsym is known; give one as 'parcellate.temp"),
    ],
)
def test_where_there_is_none_the_reason_is_written_down(
    tmp_path: Path, space: str, note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "atlas" / "template_mask.json"
    settings = json.dumps({"space": space, "folder": None})
    template_mask.main(["--settings", settings, "--fetched", str(tmp_path / "sources"), "--output", str(output)])
    template = parcellate.known_template("templateflow", output.parent)
    assert template == read_json(output)
    assert template["path"] is None
    assert re.search(note, template["note"])
    assert "no recording is compared with the template" in capsys.readouterr().out
    assert not list(tmp_path.glob("sources/*"))


def test_another_copy_is_not_the_template(tmp_path: Path) -> None:
    name = template_mask.mask_name(NLIN2009C)
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 3, 3), dtype=np.uint8), np.eye(4)), tmp_path / name)
    with pytest.raises(UserError, match=r"found sha256:\w+; .* give it as 'parcellate.template_mask'"):
        template_mask.find_mask(NLIN2009C, tmp_path, tmp_path / "sources")


def test_a_mask_need_not_be_exactly_one_inside(original: Path, tmp_path: Path) -> None:
    """TemplateFlow's is stored with a slope and reads 1.00000006; half is the limit."""
    mask, affine = read_mask_image(original)
    assert (mask.sum(), affine[0, 0]) == (235840, 2.0)
    assert parcellate.template_dice(mask, affine, str(original)) == 1
    nibabel.save(nibabel.Nifti1Image(np.full((3, 3, 3), 0.5), np.eye(4)), tmp_path / "empty.nii.gz")
    with pytest.raises(UserError, match=r"empty.nii.gz: expected a mask, found no voxel in it"):
        read_mask_image(tmp_path / "empty.nii.gz")
