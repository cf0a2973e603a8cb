"""Atlases known by name: which files they are made of, in which space, and where each file is at home.

Names: ``schaefer<100…1000>[-17networks][-tian<1…4>][-buckner7]``, ``tian<1…4>``, ``a424``, ``cc200``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from semantoks.errors import UserError

LOCK = Path(__file__).resolve().parents[2] / "resources" / "atlases.lock"
NLIN6, NLIN2009C = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
BUCKNER = "atl-Buckner7_space-MNI_dseg.nii"
BUCKNER_TO_2009C = "tpl-MNI152NLin2009cAsym_from-MNI152NLin6Asym_mode-image_xfm.h5"
UNRESOLVED = "unresolved"
_NAME = re.compile(
    r"schaefer(?P<cortex>\d+)(?P<seventeen>-17networks)?(?:-tian(?P<with_tian>[1-4]))?(?P<buckner>-buckner7)?"
    r"|tian(?P<tian>[1-4])|(?P<single>a424|cc200)"
)
_SINGLE = {"a424": "A424+2mm.nii.gz", "cc200": "CC200.nii.gz"}


@dataclass(frozen=True)
class Recipe:
    """What an atlas of a known name consists of.

    Attributes
    ----------
    cortex : number of Schaefer parcels, 0 without cortex.
    networks : 7 or 17, the order of those parcels.
    subcortex : scale of the Tian atlas, 0 without.
    cerebellum : whether Buckner's seven networks follow.
    single : name of an atlas that is one image without table (``a424``, ``cc200``), else None.
    """

    cortex: int = 0
    networks: int = 7
    subcortex: int = 0
    cerebellum: bool = False
    single: str | None = None

    def image(self, space: str, resolution: int) -> str:
        """Name of the label image of cortex and subcortex in a space.

        Raises
        ------
        UserError
            When there is none in that space.
        """
        if self.single:
            return _in_space(space, {NLIN6: _SINGLE[self.single]}, self.single)
        if self.cortex and self.subcortex:
            stem = self._combined
            images = {
                NLIN6: f"{stem}_{NLIN6}_{resolution}mm.nii.gz",
                NLIN2009C: f"{stem}_3T_{NLIN2009C}_{resolution}mm.nii.gz",
            }
            return _in_space(space, images, stem)
        if self.cortex:
            return _in_space(space, {NLIN6: f"{self._schaefer}_FSLMNI152_{resolution}mm.nii.gz"}, self._schaefer)
        stem = f"Tian_Subcortex_S{self.subcortex}_3T"
        image = f"{stem}_1mm.nii.gz" if resolution == 1 else f"{stem}.nii"
        return _in_space(space, {NLIN6: image, NLIN2009C: f"{stem}_2009cAsym.nii.gz"}, stem)

    @property
    def table(self) -> str | None:
        """Name of the label table of cortex and subcortex; None for an atlas without."""
        if self.single:
            return None
        if self.cortex and self.subcortex:
            return f"{self._combined}_label.txt"
        return f"{self._schaefer}.txt" if self.cortex else f"Tian_Subcortex_S{self.subcortex}_3T_label.txt"

    def files(self, space: str, resolution: int) -> list[str]:
        """Names of all files that the atlas is made of in a space; the transform of the cerebellum is optional."""
        cerebellum = [BUCKNER] if self.cerebellum else []
        return [self.image(space, resolution), *([self.table] if self.table else []), *cerebellum]

    @property
    def _schaefer(self) -> str:
        return f"Schaefer2018_{self.cortex}Parcels_{self.networks}Networks_order"

    @property
    def _combined(self) -> str:
        return f"{self._schaefer}_Tian_Subcortex_S{self.subcortex}"


def recipe_of(name: str) -> Recipe | None:
    """The recipe of an atlas's name, None for a name that stands for the user's own image and table."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    if match["single"]:
        return Recipe(single=match["single"])
    cortex = int(match["cortex"] or 0)
    if match["cortex"] and cortex not in range(100, 1001, 100):
        raise UserError(f"key 'atlas.name': expected Schaefer's 100, 200, … 1000 parcels, found {cortex}")
    networks = 17 if match["seventeen"] else 7
    return Recipe(cortex, networks, int(match["with_tian"] or match["tian"] or 0), bool(match["buckner"]))


def needed_files(settings: dict[str, Any]) -> list[str]:
    """Files of the configured atlas that have to be fetched: none for an own one, or with a folder of them at hand.

    Parameters
    ----------
    settings : section ``atlas`` of the configuration.
    """
    recipe = None if settings["image"] or settings["labels"] or settings["folder"] else recipe_of(settings["name"])
    return recipe.files(settings["space"], settings["resolution"]) if recipe else []


@dataclass(frozen=True)
class Source:
    """A file of the lock: name, address, SHA-256 (or ``unresolved``) and licence."""

    name: str
    url: str
    sha256: str
    licence: str


def read_sources(path: Path = LOCK) -> dict[str, Source]:
    """All files of the lock by name."""
    lock = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = {}
    for name, entry in lock["files"].items():
        home = lock["homes"][entry["home"]]
        found[name] = Source(name, home["url"] + entry.get("below", "") + name, entry["sha256"], home["licence"])
    return found


def source_of(name: str, path: Path = LOCK) -> Source:
    """The file of the lock with this name.

    Raises
    ------
    UserError
        When the lock has no such file.
    """
    sources = read_sources(path)
    if name not in sources:
        raise UserError(
            f"resources/atlases.lock: expected the file {name}, found none: no copy of it was checked. Give image and "
            "label table of the whole atlas under a name of its own (docs/atlases.md)"
        )
    return sources[name]


def _in_space(space: str, images: dict[str, str], what: str) -> str:
    if space not in images:
        raise UserError(f"key 'atlas.space': expected {' or '.join(images)} for {what}, found {space!r}")
    return images[space]
