"""What a finished participant of fMRIPrep looks like: expected files, and what is missing or damaged of them."""

from __future__ import annotations

import fnmatch
import functools
import gzip
import itertools
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml

from semantoks.errors import UserError
from semantoks.files import read_json
from semantoks.output_spaces import volumes
from semantoks.recordings import entity_fits

OUTPUTS = Path(__file__).resolve().parents[2] / "resources" / "fmriprep_outputs.yaml"
_READ_FOLDERS = ("anat", "func", "fmap")
_ENTITY_OF_QUERY = {
    "acquisition": "acq",
    "ceagent": "ce",
    "reconstruction": "rec",
    "direction": "dir",
    "session": "ses",
}
"""PyBIDS names of entities, as in a BIDS filter file, and the key in file names where it differs."""


@dataclass(frozen=True)
class Target:
    """Whose outputs are meant: a participant, optionally one session, and what fMRIPrep is asked to write.

    Attributes
    ----------
    participant, session : labels without ``sub-`` and ``ses-``; session None means all.
    spaces : as for ``--output-spaces``, e.g. ``MNI152NLin6Asym:res-2``.
    bids_filter : content of fMRIPrep's ``--bids-filter-file``; empty means everything.
    wanted : entity → labels of the runs that are used later; of the others nothing is expected.
    """

    participant: str
    session: str | None
    spaces: tuple[str, ...]
    bids_filter: Mapping[str, Any]
    wanted: Mapping[str, Sequence[str | None]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``sub-01`` or ``sub-01_ses-1``."""
        return f"sub-{self.participant}" + (f"_ses-{self.session}" if self.session else "")


def read_bids_filter(path: str | None) -> dict[str, dict[str, Any]]:
    """Content of a file for fMRIPrep's ``--bids-filter-file``; everything, if there is none.

    Raises
    ------
    UserError
        When it is not a JSON object of queries (``bold``, ``t1w``, …), each with entities and values.
    """
    if not path:
        return {}
    content: Any = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(query, dict) for query in content.values()):
        raise UserError(
            f'{path}: expected queries with entities as in {{"bold": {{"task": "rest"}}}} (fMRIPrep\'s '
            f"--bids-filter-file), found {content!r}"
        )
    return content


def raw_runs(bids: Path, target: Target) -> list[str]:
    """Raw BOLD runs of the target, by name without echo; phase images are no runs."""
    folder = bids / f"sub-{target.participant}"
    if not folder.is_dir():
        raise UserError(f"{folder}: expected the participant's folder, found none; check label and BIDS folder")
    wanted = target.bids_filter.get("bold", {})
    runs = set()
    for path in folder.rglob("func/*_bold.nii*"):
        entities = _entities(path)
        if entities.get("part") == "phase" or (target.session and entities.get("ses") != target.session):
            continue
        used = all(entity_fits(entities.get(entity), labels) for entity, labels in target.wanted.items())
        if used and all(_fits(entities, query, value) for query, value in wanted.items()):
            runs.add(re.sub(r"_echo-[A-Za-z0-9]+", "", path.name.rsplit("_bold", 1)[0]))
    return sorted(runs)


def input_files(bids: Path, target: Target) -> list[Path]:
    """Images and sidecars that fMRIPrep reads of the target, and folders that are links; links to nothing among them.

    As fMRIPrep does, only ``anat``, ``func`` and ``fmap`` are looked into (and what lies beside the folders), only in
    the target's session, and of BOLD runs those that the filter leaves in.
    """
    participant = bids / f"sub-{target.participant}"
    sessions = [participant / f"ses-{target.session}"] if target.session else participant.glob("ses-*")
    found = []
    for parent in (participant, *sessions):
        folders = [parent / kind for kind in _READ_FOLDERS]
        inside = itertools.chain.from_iterable(folder.glob("*") for folder in (parent, *folders))
        found += [path for path in inside if path.name.endswith((".nii", ".nii.gz", ".json"))]
        found += [folder for folder in (parent, *folders) if folder.is_symlink()]
    return sorted(path for path in found if _is_read(path, target))


def _is_read(path: Path, target: Target) -> bool:
    """Whether the filter and the session leave a file in."""
    entities = _entities(path)
    if target.session and entities.get("ses", target.session) != target.session:
        return False
    is_bold = path.name.split(".")[0].endswith("_bold")
    queries = target.bids_filter.get("bold", {}) if is_bold else {}
    return all(_fits(entities, query, value) for query, value in queries.items())


def _entities(path: Path) -> dict[str, str]:
    return dict(part.split("-", 1) for part in path.name.split("_")[:-1] if "-" in part)


def problems(derivatives: Path, bids: Path, target: Target) -> list[str]:
    """What a finished participant would have and this one has not; empty when finished.

    Of several layouts of file names, the one with the fewest problems counts for a run. Annexed files whose content
    is not at hand count as written.
    """
    return [
        problem
        for run in raw_runs(bids, target)
        for problem in _nearest_layout(_func_folder(derivatives, target, run), run, target)[1]
    ]


def missing_files(derivatives: Path, bids: Path, target: Target) -> list[str]:
    """Names that no file answers to, of what a finished participant would have; contents are not looked at."""
    missing = []
    for run in raw_runs(bids, target):
        folder = _func_folder(derivatives, target, run)
        least = None
        for files in _layouts():
            absent = [name for name, paths in _expected(folder, run, target.spaces, files) if not paths]
            least = absent if least is None or len(absent) < len(least) else least
            if not least:
                break
        missing += least or []
    return missing


def expected_files(derivatives: Path, bids: Path, target: Target) -> list[Path]:
    """The files that are there of those that make the target a finished one."""
    found = []
    for run in raw_runs(bids, target):
        folder = _func_folder(derivatives, target, run)
        files, _ = _nearest_layout(folder, run, target)
        found += [path for _, paths in _expected(folder, run, target.spaces, files) for path in paths]
    return found


def _func_folder(derivatives: Path, target: Target, run: str) -> Path:
    session = re.search(r"_ses-([A-Za-z0-9+]+)", run)
    return derivatives / f"sub-{target.participant}" / (f"ses-{session[1]}" if session else "") / "func"


@functools.cache
def _layouts() -> list[list[str]]:
    return [layout["files"] for layout in yaml.safe_load(OUTPUTS.read_text(encoding="utf-8"))["layouts"]]


def _nearest_layout(folder: Path, run: str, target: Target) -> tuple[list[str], list[str]]:
    """The layout of file names with the fewest problems, and these problems."""
    by_layout = [(files, list(_run_problems(folder, run, target.spaces, files))) for files in _layouts()]
    return min(by_layout, key=lambda found: len(found[1]))


def derivatives_version(derivatives: Path) -> str | None:
    """fMRIPrep's version as its ``dataset_description.json`` tells it (``PipelineDescription`` before 20.2).

    None where the file is missing or does not tell it.
    """
    path = derivatives / "dataset_description.json"
    if not path.is_file():
        return None
    description = read_json(path)
    candidates = [*(description.get("GeneratedBy") or []), description.get("PipelineDescription") or {}]
    versions = [one.get("Version") for one in candidates if str(one.get("Name", "")).lower() == "fmriprep"]
    return next((str(version) for version in versions if version), None)


def _fits(entities: Mapping[str, str], query: str, value: Any) -> bool:
    """Whether a file's entities satisfy one line of a BIDS filter; what is no entity (suffix, …) does not matter here.

    As in fMRIPrep, null asks for absence and ``*`` for presence; runs and echoes are compared as numbers.
    """
    if query in ("datatype", "suffix", "extension", "part"):
        return True
    found = entities.get(_ENTITY_OF_QUERY.get(query, query))
    allowed = value if isinstance(value, list) else [value]
    if found is None:
        return None in allowed
    return any(
        choice == "*" or (choice is not None and str(choice) in (found, found.lstrip("0"))) for choice in allowed
    )


def _expected(folder: Path, run: str, spaces: Sequence[str], files: Sequence[str]) -> Iterator[tuple[str, list[Path]]]:
    """Every name that a layout asks for, and the files that answer to it."""
    present = sorted(os.listdir(folder)) if folder.is_dir() else []
    for file in files:
        for space in [volume.pattern for volume in volumes(spaces)] if "{space}" in file else [""]:
            wanted = file.format(run=run, space=space)
            yield wanted, [folder / name for name in present if fnmatch.fnmatchcase(name, wanted)]


def _run_problems(folder: Path, run: str, spaces: Sequence[str], files: Sequence[str]) -> Iterator[str]:
    frames = None
    for wanted, paths in _expected(folder, run, spaces, files):
        if not paths:
            yield f"no {wanted}"
        for path in paths:
            if not path.exists():
                continue
            if path.suffix == ".tsv":
                if frames is not None and _rows(path) != frames:
                    yield f"{path.name} has {_rows(path)} rows for {frames} volumes"
                continue
            shape, damage = _shape_or_damage(path)
            if damage:
                yield f"{path.name} is {damage}"
            elif len(shape) == 4:
                frames = shape[3]


def _shape_or_damage(path: Path) -> tuple[tuple[int, ...], str | None]:
    """Shape of an image, and what is wrong with the file; a cut gzip stream is mostly seen without reading it all."""
    try:
        image = nib.load(path)
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, zlib.error) as error:
        return (), f"unreadable ({error})"
    size = int(image.dataobj.offset) + int(np.prod(image.shape)) * image.get_data_dtype().itemsize
    if path.suffix != ".gz":
        return image.shape, None if path.stat().st_size >= size else "cut short"
    with path.open("rb") as file:
        file.seek(-4, 2)
        stored = int.from_bytes(file.read(4), "little")
    # gzip ends with the size of its content modulo 2**32, unless it has several members
    if stored != size % 2**32 and _content_size(path) < size:
        return (), "cut short"
    return image.shape, None


def _content_size(path: Path) -> int:
    """Uncompressed bytes of a gzip file, 0 when it is damaged."""
    size = 0
    try:
        with gzip.open(path) as stream:
            while block := stream.read(1 << 22):
                size += len(block)
    except (OSError, EOFError, zlib.error):
        return 0
    return size


def _rows(table: Path) -> int:
    """Rows of a TSV without its header."""
    with table.open("rb") as file:
        return sum(1 for line in file if line.strip()) - 1
