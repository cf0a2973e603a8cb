"""Folders that a container must see: the repository, the results, and wherever the configuration says that data lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from semantoks.settings import Settings

DATA_KEYS = {"path", "derivatives", "image", "labels", "folder", "names", "file", "denoising", "participants"}
DATA_KEYS |= {"transform", "template_mask"}
"""Keys of the configuration and of cohorts whose texts may be paths."""


def container_binds(settings: Settings, repository: Path, start: Path) -> list[Path]:
    """Existing folders to bind, none inside another.

    Parameters
    ----------
    start : folder that relative paths start from, as an absolute path.

    Notes
    -----
    Data folders are often links; the places they lead to are bound as well as the links. Of a data folder inside an
    annexed dataset the files lie in the annex, which is above it.
    """
    places = [repository, start, start / settings.results, *(start / path for path in _paths(settings))]
    folders = set()
    for place in places:
        for path in (place, place.resolve(), *_annexes(place)):
            existing = next(parent for parent in (path, *path.parents) if parent.is_dir())
            if path.exists() or existing == path.parent:
                folders.add(existing)
    folders.discard(Path("/"))
    return sorted(folder for folder in folders if not any(parent in folders for parent in folder.parents))


def _annexes(place: Path) -> Iterator[Path]:
    """Git annexes of the datasets around a folder, where links in it lead and where they really are."""
    for path in (place, place.resolve()):
        for annex in (folder / ".git" / "annex" for folder in path.parents):
            if annex.is_dir():
                yield from (annex, annex.resolve())


def _paths(settings: Settings) -> Iterable[str]:
    yield from _texts({key: settings.values[key] for key in ("atlas", "networks", "parcellate")})
    for cohort in settings.cohorts:
        yield from _texts({key: cohort.settings[key] for key in ("source", "participants")})


def _texts(values: Any, key: str = "") -> Iterable[str]:
    """Texts below keys that name data."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _texts(value, str(name))
    elif isinstance(values, str) and key in DATA_KEYS and values:
        yield values
