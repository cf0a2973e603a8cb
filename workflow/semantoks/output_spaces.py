"""What fMRIPrep's ``--output-spaces`` asks for: the volumes, by the entities in their names."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

NO_SPACE_OF_ITS_OWN = {"bold": "func", "boldref": "func"}
"""Words for the run's own space that fMRIPrep refuses, and the one it knows."""

_OWN = {"func", "run", "sbref", *NO_SPACE_OF_ITS_OWN}
"""Words for the run's own space, in which volumes have no entity ``space``."""

_ANATOMICAL = {"anat", "T1w"}
"""Words for the participant's anatomical space, which is ``space-T1w`` in names."""

_NO_VOLUMES = {"fsLR", "onavg", "T2w", "session", "individual", "dwi", "asl", "petref"}
"""Spaces, beside FreeSurfer's (``fs…``), in which fMRIPrep writes no BOLD volumes: surfaces, and other modalities."""


class Volume(NamedTuple):
    """Entities of a volume; ``space`` None is the run's own, ``res`` None the run's own grid."""

    space: str | None
    cohort: str | None = None
    res: str | None = None

    @property
    def pattern(self) -> str:
        """The part of file names, from ``_space``, as a pattern; without a resolution any, or none, is written."""
        if self.space is None:
            return ""
        named = f"_space-{self.space}" + (f"_cohort-{self.cohort}" if self.cohort else "")
        if self.space == "T1w":
            return named
        return f"{named}_res-{self.res}" if self.res else f"{named}*"


def volumes(spaces: Sequence[str]) -> list[Volume]:
    """The volumes that output spaces such as ``MNIPediatricAsym:cohort-3:res-1:res-2`` ask for, each once.

    As fMRIPrep reads them: values of one modifier are alternatives, of which each is written.
    """
    found: list[Volume] = []
    for text in spaces:
        name, *modifiers = text.split(":")
        if name in _OWN:
            found.append(Volume(None))
        elif name in _ANATOMICAL:
            found.append(Volume("T1w"))
        elif name not in _NO_VOLUMES and not name.startswith("fs"):
            cohorts, resolutions = _values(modifiers, "cohort"), _values(modifiers, "res", "resolution")
            found += [Volume(name, *both) for both in itertools.product(cohorts, resolutions)]
    return list(dict.fromkeys(found))


def _values(modifiers: Sequence[str], *keys: str) -> list[str | None]:
    """Values of a modifier; fMRIPrep's word ``native`` is no resolution, and stands in no name."""
    pairs = [modifier.split("-", 1) for modifier in modifiers]
    return [None if value == "native" else value for key, value in pairs if key in keys] or [None]
