"""The template's own brain mask, which shows by its overlap with those of recordings whether normalisation failed.

It lies in the folder of the atlas's sources, or is fetched. Where it is not to be had nothing is compared; that is no
reason to stop, but another file of its name is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from semantoks.atlas_recipes import source_of
from semantoks.atlas_sources import checked_source, fetch_source
from semantoks.errors import UserError, run_command
from semantoks.files import sha256, write_json


def mask_name(space: str) -> str:
    """The file of TemplateFlow with the brain mask of a template, of 2 mm."""
    return f"tpl-{space}_res-02_desc-brain_mask.nii.gz"


def find_mask(space: str, folder: Path | None, fetched: Path) -> dict[str, str | None]:
    """Where the brain mask of a template is: in ``folder`` if it lies there, else in ``fetched``, where it is put.

    Returns
    -------
    path and sha256; or both None and a note that says why.

    Raises
    ------
    UserError
        When what lies in ``folder`` under the mask's name is another copy.
    """
    name = mask_name(space)
    if checksum_of(space) is None:
        note = f"no brain mask of the template {space} is known; give one as 'parcellate.template_mask'"
        return {"path": None, "sha256": None, "note": note}
    if folder is not None and (folder / name).is_file():
        checksum = checked_source(folder / name, "give it as 'parcellate.template_mask'")
        return {"path": str(folder / name), "sha256": checksum, "note": None}
    try:
        fetch_source(fetched / name)
    except UserError as error:
        return {"path": None, "sha256": None, "note": str(error)}
    return {"path": str(fetched / name), "sha256": sha256(fetched / name), "note": None}


def checksum_of(space: str) -> str | None:
    """Checksum that the mask of a template must have; None for a template that the lock does not have."""
    try:
        return source_of(mask_name(space)).checksum
    except UserError:
        return None


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the step before the stage ``parcellate``."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.template_mask", description=__doc__)
    parser.add_argument(
        "--settings", type=json.loads, required=True, help="space and folder of section `atlas`, as JSON"
    )
    parser.add_argument("--fetched", type=Path, required=True, help="folder for a mask that has to be fetched")
    parser.add_argument("--output", type=Path, required=True, help="where the mask is (JSON)")
    arguments = parser.parse_args(argv)
    folder = arguments.settings["folder"]
    found = find_mask(arguments.settings["space"], None if folder is None else Path(folder), arguments.fetched)
    write_json(arguments.output, found)
    print(found["path"] or f"no recording is compared with the template: {found['note']}")


if __name__ == "__main__":
    run_command(main)
