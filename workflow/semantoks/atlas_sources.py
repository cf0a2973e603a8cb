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


def fetch_source(path: Path) -> Source:
    """Download a file of the lock to ``path``, which has its name; what the lock says about it.

    Raises
    ------
    UserError
        As :func:`fetch`, and when the checksum is not known.
    """
    source = source_of(path.name)
    if source.sha256 == UNRESOLVED:
        raise UserError(
            f"resources/atlases.lock: expected the checksum of {source.name}, found 'unresolved'; "
            f"{_how_to_pin(source.name)}"
        )
    fetch(source, path)
    return source


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
            f"resources/atlases.lock: expected the checksum of {path.name}, found 'unresolved'; "
            f"{_how_to_pin(path.name)}, or give image and label table under a name of their own"
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


def _how_to_pin(name: str) -> str:
    """What to do about one file; `make pins` fetches hundreds."""
    command = f"PYTHONPATH=workflow python -m semantoks.atlas_sources --pin data/atlases --files {name}"
    return f"where there is a network run `{command}`"


def pin(folder: Path, path: Path = LOCK, names: Sequence[str] | None = None) -> list[str]:
    """Fetch files whose checksum the lock lacks into ``folder`` and write each checksum; the names of those files.

    Parameters
    ----------
    names : only these files; None for all.

    Raises
    ------
    UserError
        For files that could not be fetched, at the end: what could be is written.
    """
    sources = read_sources(path)
    wanted = [source_of(name, path) for name in names] if names else list(sources.values())
    pinned, failed = [], []
    for source in wanted:
        if source.sha256 != UNRESOLVED:
            continue
        try:
            checksum = fetch(source, folder / source.name)
        except UserError as error:
            failed.append(str(error))
            continue
        line = rf"(?m)^(  {re.escape(source.name)}: .*sha256: ){UNRESOLVED}"
        write_text(path, re.sub(line, rf"\g<1>{checksum}", path.read_text(encoding="utf-8")))
        pinned.append(source.name)
    if failed:
        raise UserError(f"{len(pinned)} checksums found, {len(failed)} files not fetched; the first: {failed[0]}")
    return pinned


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: fetch one file (``--output``), or fill in the checksums of the lock (``--pin``)."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.atlas_sources", description=__doc__)
    parser.add_argument("--output", type=Path, help="file to fetch; its name is that in the lock")
    parser.add_argument("--pin", type=Path, help="folder: fetch all files without checksum into it")
    parser.add_argument("--files", nargs="+", help="with --pin: only these files")
    arguments = parser.parse_args(argv)
    if (arguments.output is None) == (arguments.pin is None):
        parser.error("give either --output or --pin")
    if arguments.pin:
        pinned = pin(arguments.pin, names=arguments.files)
        print(f"checksums found: {', '.join(pinned) or 'none was missing'}")
        return
    source = fetch_source(arguments.output)
    print(f"{source.name}: from {source.url}; {source.licence}")


if __name__ == "__main__":
    run_command(main)
