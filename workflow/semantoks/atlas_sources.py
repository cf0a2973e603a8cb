"""Fetching the files that atlases are made of, each compared with its checksum in ``resources/atlases.lock``."""

from __future__ import annotations

import argparse
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from semantoks.atlas_recipes import LOCK, UNRESOLVED, Source, read_sources, source_of
from semantoks.errors import UserError, run_command
from semantoks.files import replacing, sha256, write_text

_SECONDS = 60


def fetch(source: Source, path: Path) -> str:
    """Download a file to ``path``; its SHA-256.

    Raises
    ------
    UserError
        When the place cannot be reached, or the file is another than the one that was checked.
    """
    with replacing(path) as temporary:
        try:
            with urllib.request.urlopen(source.url, timeout=_SECONDS) as answer, temporary.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise UserError(
                f"{source.url}: expected {source.name}, found no answer ({error}); fetch it where there is a network, "
                "and give the folder with it as 'atlas.folder'"
            ) from None
        found = sha256(temporary)
        if source.sha256 not in (found, UNRESOLVED):
            raise UserError(
                f"{source.url}: expected SHA-256 {source.sha256}, found {found}; it is another copy than the one whose "
                "labels were checked"
            )
    return found


def checked_source(path: Path) -> str:
    """SHA-256 of a source file, equal to the one in ``resources/atlases.lock``.

    Raises
    ------
    UserError
        The file is missing, has no known checksum, or is another copy than the one that was checked.
    """
    source = source_of(path.name)
    if source.sha256 == UNRESOLVED:
        raise UserError(
            f"resources/atlases.lock: expected the checksum of {path.name}, found 'unresolved'; run `make pins` where "
            "there is a network, or give image and label table under a name of their own"
        )
    if not path.is_file():
        raise UserError(f"{path}: expected a source of the atlas, found no file; get it from {source.url}")
    found = sha256(path)
    if found != source.sha256:
        raise UserError(
            f"{path}: expected SHA-256 {source.sha256}, found {found}; it is another copy than the one whose labels "
            "were checked. To use it, give image and label table of the whole atlas under a name of its own"
        )
    return found


def pin(folder: Path, path: Path = LOCK) -> list[str]:
    """Fetch every file whose checksum the lock lacks into ``folder`` and write the checksums; names of those files."""
    text = path.read_text(encoding="utf-8")
    pinned = []
    for source in read_sources(path).values():
        if source.sha256 == UNRESOLVED:
            checksum = fetch(source, folder / source.name)
            text = re.sub(rf"(?m)^(  {re.escape(source.name)}: .*sha256: ){UNRESOLVED}", rf"\g<1>{checksum}", text)
            pinned.append(source.name)
    write_text(path, text)
    return pinned


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: fetch one file (``--output``), or fill in the checksums of the lock (``--pin``)."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.atlas_sources", description=__doc__)
    parser.add_argument("--output", type=Path, help="file to fetch; its name is that in the lock")
    parser.add_argument("--pin", type=Path, help="folder: fetch all files without checksum into it")
    arguments = parser.parse_args(argv)
    if (arguments.output is None) == (arguments.pin is None):
        parser.error("give either --output or --pin")
    if arguments.pin:
        pinned = pin(arguments.pin)
        print(f"checksums found: {', '.join(pinned) or 'none was missing'}")
        return
    source = source_of(arguments.output.name)
    if source.sha256 == UNRESOLVED:
        raise UserError(
            f"resources/atlases.lock: expected the checksum of {source.name}, found 'unresolved'; run `make pins` "
            "where there is a network"
        )
    fetch(source, arguments.output)
    print(f"{source.name}: from {source.url}; {source.licence}")


if __name__ == "__main__":
    run_command(main)
