"""Atlases known by name: which files they are made of, in which space, and where each file is at home.

Names: ``schaefer<100…1000>[-17networks][-tian<1…4>][-buckner7]``, ``tian<1…4>``, ``a424``, ``cc200``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from semantoks.errors import UserError

LOCK = Path(__file__).resolve().parents[2] / "resources" / "atlases.lock"
NLIN6, NLIN2009C = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
BUCKNER = "atl-Buckner7_space-MNI_dseg.nii"
BUCKNER_TO_2009C = "tpl-MNI152NLin2009cAsym_from-MNI152NLin6Asym_mode-image_xfm.h5"
UNRESOLVED = "unresolved"
TEMPLATEFLOW = "templateflow"
"""As `atlas.transform` and `parcellate.template_mask`: TemplateFlow's own file, found or fetched."""
Found = TypeVar("Found")
_NAME = re.compile(
    r"schaefer(?P<cortex>\d+)(?P<seventeen>-17networks)?(?:-tian(?P<with_tian>[1-4]))?(?P<buckner>-buckner7)?"
    r"|tian(?P<tian>[1-4])|(?P<single>a424|cc200)"
)
_SINGLE = {"a424": "A424+2mm.nii.gz", "cc200": "CC200.nii.gz"}
_COMBINED_UP_TO = 400
"""Up to so many parcels, in 7-network order, the authors of the Tian atlas publish images of both together."""


@dataclass(frozen=True)
class Part:
    """A published label image and its table; ``subcortex_first``: it numbers the subcortex before the cortex."""

    image: str
    table: str | None
    subcortex_first: bool = False


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

    def parts(self, space: str, resolution: int) -> list[Part]:
        """What cortex and subcortex are made of in a space, in the order of precedence.

        Raises
        ------
        UserError
            When there is no image in that space or resolution.
        """
        if self.single:
            image = _in_space(space, {NLIN6: _SINGLE[self.single]}, self.single)
            return [Part(_in_resolution(resolution, {2: image}, self.single), None)]
        if self.subcortex and self.cortex and self.cortex <= _COMBINED_UP_TO and self.networks == 7:
            return [self._combined(space, resolution)]
        cortex = [self._cortex(space, resolution)] if self.cortex else []
        return cortex + ([self._subcortex(space, resolution, alone=not cortex)] if self.subcortex else [])

    def files(self, space: str, resolution: int) -> list[str]:
        """Names of all files that the atlas is made of in a space; the transform of the cerebellum is optional."""
        names = [name for part in self.parts(space, resolution) for name in (part.image, part.table) if name]
        return names + ([BUCKNER] if self.cerebellum else [])

    def _combined(self, space: str, resolution: int) -> Part:
        stem = f"Schaefer2018_{self.cortex}Parcels_7Networks_order_Tian_Subcortex_S{self.subcortex}"
        images = {
            NLIN6: f"{stem}_{NLIN6}_{resolution}mm.nii.gz",
            NLIN2009C: f"{stem}_3T_{NLIN2009C}_{resolution}mm.nii.gz",
        }
        return Part(_in_space(space, images, stem), f"{stem}_label.txt", subcortex_first=True)

    def _cortex(self, space: str, resolution: int) -> Part:
        """Schaefer's own images (CBIG), or TemplateFlow's with TemplateFlow's table."""
        stem = f"Schaefer2018_{self.cortex}Parcels_{self.networks}Networks_order"
        label = f"atlas-Schaefer2018_desc-{self.cortex}Parcels{self.networks}Networks_dseg"
        parts = {
            NLIN6: Part(f"{stem}_FSLMNI152_{resolution}mm.nii.gz", f"{stem}.txt"),
            NLIN2009C: Part(f"tpl-{NLIN2009C}_res-0{resolution}_{label}.nii.gz", f"tpl-{NLIN2009C}_{label}.tsv"),
        }
        return _in_space(space, parts, stem)

    def _subcortex(self, space: str, resolution: int, alone: bool) -> Part:
        """Tian's images; in 2009cAsym there is one of 2 mm, which goes onto the grid of the cortex unless alone."""
        stem = f"Tian_Subcortex_S{self.subcortex}_3T"
        other = f"{stem}_2009cAsym.nii.gz"
        images = {
            NLIN6: {1: f"{stem}_1mm.nii.gz", 2: f"{stem}.nii"},
            NLIN2009C: {2: other} if alone else {1: other, 2: other},
        }
        image = _in_resolution(resolution, _in_space(space, images, stem), f"{stem} in {space}")
        return Part(image, f"{stem}_label.txt")


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
    if recipe is None:
        return []
    warped = recipe.cerebellum and settings["space"] == NLIN2009C and settings["transform"] == TEMPLATEFLOW
    return recipe.files(settings["space"], settings["resolution"]) + ([BUCKNER_TO_2009C] if warped else [])


@dataclass(frozen=True)
class Source:
    """A file of the lock: name, address, checksum (``sha256:…``, ``md5:…`` or ``unresolved``) and licence."""

    name: str
    url: str
    checksum: str
    licence: str


def read_sources(path: Path = LOCK) -> dict[str, Source]:
    """All files of the lock by name."""
    lock = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = {}
    for name, entry in lock["files"].items():
        home = lock["homes"][entry["home"]]
        found[name] = Source(name, home["url"] + entry.get("below", "") + name, _checksum(entry), home["licence"])
    return found


def _checksum(entry: Mapping[str, str]) -> str:
    (kind,) = {"sha256", "md5"}.intersection(entry)
    return UNRESOLVED if entry[kind] == UNRESOLVED else f"{kind}:{entry[kind]}"


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


def _in_space(space: str, images: dict[str, Found], what: str) -> Found:
    if space not in images:
        raise UserError(f"key 'atlas.space': expected {' or '.join(images)} for {what}, found {space!r}")
    return images[space]


def _in_resolution(resolution: int, images: dict[int, str], what: str) -> str:
    if resolution not in images:
        raise UserError(
            f"key 'atlas.resolution': expected {' or '.join(map(str, images))} for {what}, found {resolution}"
        )
    return images[resolution]
