"""Links of a dataset that leave its folder: what a container must see, and where, so that they lead somewhere in it.

Inside a container the dataset lies elsewhere, so a relative link leads elsewhere, too: ``../../../.git/annex/x`` in
``<dataset>/sub-01/func``, bound as ``/data``, leads to ``/.git/annex/x``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from semantoks.errors import UserError
from semantoks.fmriprep_command import INSIDE

_DATA = Path(INSIDE["bids"])
_TAKEN = {Path(path) for path in ("/", "/opt/freesurfer", "/templateflow", "/usr/local", *INSIDE.values())}
_TAKEN |= {Path("/bin"), Path("/boot"), Path("/dev"), Path("/etc"), Path("/home"), Path("/lib"), Path("/lib64")}
_TAKEN |= {Path("/opt"), Path("/proc"), Path("/root"), Path("/run"), Path("/sbin"), Path("/sys"), Path("/tmp")}
_TAKEN |= {Path("/usr"), Path("/var")}
"""Folders inside the container that nothing may be bound over; a single file in them may."""
_MOST_LINKS = 40
"""Links to follow one after the other, as Linux has it."""


def link_binds(bids: Path, files: Iterable[Path]) -> list[tuple[Path, Path]]:
    """What to bind, and where inside, so that the files can be read through their links.

    Parameters
    ----------
    bids : folder of the dataset.
    files : files of the dataset, links or not; also in linked folders.

    Returns
    -------
    Pairs of a path of this machine and a path inside, sorted, none inside another. A git annex, which keeps every file
    in a folder of its own, is bound whole.

    Raises
    ------
    UserError
        A link would lead to what is another thing inside the container: the dataset, a folder of the system.
    """
    passed = {pair for file in files for pair in _outside(bids, file)}
    binds = {bind for outside, inside in passed if (bind := _to_bind(outside, inside))[0].exists()}
    for outside, inside in binds:
        if inside in _TAKEN:
            raise UserError(f"{bids}: {_misled(outside, inside)}")
    return sorted(bind for bind in binds if not any(_within(bind, other) for other in binds))


def _outside(bids: Path, file: Path) -> Iterator[tuple[Path, Path]]:
    """Folders with links, and the file itself, that lie outside the dataset: path here, path inside the container.

    The way is followed name by name as the container's system will do it: links in the dataset are seen by it, links
    on the way to a place outside are not, because a folder is bound there.
    """
    root = bids.resolve()
    here, inside = root, _DATA
    names, links = list(file.relative_to(bids).parts), 0
    while names:
        name = names.pop(0)
        if name == "..":
            here, inside = here.parent, inside.parent
            continue
        here, inside = here / name, inside / name
        in_dataset = inside.is_relative_to(_DATA)
        if in_dataset and not here.is_relative_to(root):
            raise UserError(f"{file}: {_misled(here, inside)}")
        if not here.is_symlink():
            continue
        if not in_dataset and names:
            here = here.resolve()
            continue
        links += 1
        if links > _MOST_LINKS:
            return
        target = Path(os.readlink(here))
        here, inside = here.parent, inside.parent
        if not in_dataset:
            yield here, inside
        if target.is_absolute():
            here = inside = Path("/")
        names = [*(part for part in target.parts if part != "/"), *names]
    if not inside.is_relative_to(_DATA):
        yield here, inside


def _to_bind(outside: Path, inside: Path) -> tuple[Path, Path]:
    """A git annex for what lies in it, else the folder, or the file where nothing may be bound over its folder."""
    if "annex" in inside.parts:
        depth = len(inside.parts) - inside.parts.index("annex") - 1
        if outside.parts[-depth - 1 :] == inside.parts[-depth - 1 :]:
            return ([outside, *outside.parents][depth], [inside, *inside.parents][depth])
    if outside.is_dir() or inside.parent in _TAKEN:
        return outside, inside
    return outside.parent, inside.parent


def _within(bind: tuple[Path, Path], other: tuple[Path, Path]) -> bool:
    outside, inside = bind
    return bind != other and inside.is_relative_to(other[1]) and other[0] / inside.relative_to(other[1]) == outside


def _misled(outside: Path, inside: Path) -> str:
    return (
        f"expected links that can be followed in a container, found one to {outside}, which would be {inside} there, "
        "and that is taken; make it an absolute link (or a relative one, if it is absolute), put the file itself "
        "there, or use engine 'native'"
    )
