"""Fetching the files that atlases are made of, each compared with its checksum in ``resources/atlases.lock``."""

from __future__ import annotations

import argparse
import hashlib
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
        found = checksum_like(source.checksum, temporary)
        if source.checksum not in (found, UNRESOLVED):
            raise UserError(
                f"{source.url}: expected {source.checksum}, found {found}; it is another copy than the one that was "
                "checked"
            )
        return sha256(temporary)


def checksum_like(wanted: str, path: Path) -> str:
    """Checksum of a file in the notation of the lock, of the same kind as ``wanted``; SHA-256 if that is unresolved."""
    kind = "sha256" if wanted == UNRESOLVED else wanted.partition(":")[0]
    with path.open("rb") as file:
        return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"


def fetch_source(path: Path) -> Source:
    """Download a file of the lock to ``path``, which has its name; what the lock says about it.

    Raises
    ------
    UserError
        As :func:`fetch`, and when the checksum is not known.
    """
    source = source_of(path.name)
    if source.checksum == UNRESOLVED:
        raise UserError(
            f"resources/atlases.lock: expected the checksum of {source.name}, found 'unresolved'; "
            f"{_how_to_pin(source.name)}"
        )
    fetch(source, path)
    return source


def checked_source(
    path: Path, instead: str = "give image and label table of the whole atlas under a name of its own"
) -> str:
    """SHA-256 of a source file whose checksum is the one in ``resources/atlases.lock``.

    Parameters
    ----------
    path : the file; its name is that in the lock.
    instead : what to do with another copy.

    Raises
    ------
    UserError
        The file is missing, has no known checksum, or is another copy than the one that was checked.
    """
    source = source_of(path.name)
    if source.checksum == UNRESOLVED:
        raise UserError(
            f"resources/atlases.lock: expected the checksum of {path.name}, found 'unresolved'; "
            f"{_how_to_pin(path.name)}, or {instead}"
        )
    if not path.is_file():
        raise UserError(f"{path}: expected a source of the atlas, found no file; get it from {source.url}")
    found = checksum_like(source.checksum, path)
    if found != source.checksum:
        raise UserError(
            f"{path}: expected {source.checksum}, found {found}; it is another copy than the one that was checked. To "
            f"use it, {instead}"
        )
    return sha256(path)


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
        if source.checksum != UNRESOLVED:
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
