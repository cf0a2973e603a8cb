"""Finding a cohort's recordings: a listing of files, without opening images.

The job graph is made from this listing; :mod:`semantoks.index` reads headers and sidecars later.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import bids2table
import numpy as np
import pandas as pd

from semantoks.errors import UserError
from semantoks.imported_recordings import file_recordings, hdf5_recordings

Item = TypeVar("Item")
Result = TypeVar("Result")

ENTITIES = ["task", "acq", "ce", "rec", "dir", "run", "echo", "part", "space", "res", "desc"]
"""BIDS entities kept as text columns: ``run-01`` is not ``run-1``."""

NOT_IN_ID = ("space", "cohort", "res", "den", "desc")
"""Entities of a file that say how it was processed, not which recording it is (``cohort`` belongs to the space)."""

COLUMNS = ["participant_id", "session_id", "recording_id", *ENTITIES, "paths", "exclude_reason"]
"""Columns of a listing; ``paths`` is a tuple whose first entry is the image or the (first) time-series file."""

OLD_NAME = re.compile(r"(sub-\w[\w+-]*)_bold_(space-[A-Za-z0-9]+)_preproc(\.nii(?:\.gz)?)")
"""Preprocessed volumes of fMRIPrep 1.0 and 1.1: ``sub-01_task-rest_bold_space-MNI152NLin2009cAsym_preproc.nii.gz``."""

CONFOUNDS = ("desc-confounds_timeseries", "desc-confounds_regressors", "bold_confounds")
"""Endings of confounds tables: fMRIPrep 20.2 and later, 1.2 to 20.1, 1.0 and 1.1."""

NO_VOLUMES = "no desc-preproc_bold"
"""How the reason of a recording begins of which fMRIPrep left something, but no volumes that are wanted."""

BESIDE = ("_mask.nii.gz", "_mask.nii", "_brainmask.nii.gz", "_brainmask.nii", ".tsv")
"""Endings of masks and confounds."""


def list_recordings(cohort: Mapping[str, Any]) -> pd.DataFrame:
    """List the recordings of a cohort, one row each, sorted by ``recording_id``.

    Parameters
    ----------
    cohort : validated cohort settings with ``name``.

    Raises
    ------
    UserError
        Missing folder, no recording, several files for one recording, the same recording twice.
    """
    source = cohort["source"]
    if not Path(source["path"]).exists():
        kind = {"bids": "a BIDS folder", "fmriprep": "a folder of fMRIPrep derivatives", "hdf5": "an HDF5 file"}
        raise UserError(
            f"cohort {cohort['name']}: key 'source.path': expected {kind.get(source['type'], 'a folder')}, "
            f"found nothing at {source['path']}; correct the path or the environment variable in it"
        )
    listing = {
        "bids": _list_raw,
        "fmriprep": list_derivatives,
        "hdf5": lambda cohort: _listing(hdf5_recordings(cohort["source"])),
        "files": lambda cohort: _listing(file_recordings(cohort["source"])),
    }[source["type"]](cohort)
    if source["type"] in ("hdf5", "files"):
        listing = _wanted_runs(listing, cohort)
    listing = _selected_participants(listing, cohort)
    if listing.empty or listing["exclude_reason"].str.startswith(NO_VOLUMES).eq(True).all():
        raise UserError(
            f"cohort {cohort['name']}: expected recordings in {source['path']}, found none that fit; "
            f"{_what_is_there(cohort)}check 'tasks', 'entities', 'space', 'include' and 'exclude' of the cohort file"
        )
    check_unique(listing, cohort["name"])
    return listing.sort_values("recording_id", ignore_index=True)


def list_derivatives(
    cohort: Mapping[str, Any], path: str | None = None, participants: Sequence[str] | None = None
) -> pd.DataFrame:
    """List ``desc-preproc`` volumes of fMRIPrep in the cohort's space; other descriptions do not count.

    ``paths`` holds image, brain mask and confounds table, the last two empty text where absent. A recording of which
    there are only volumes of another space or resolution, or only confounds, is a row with that reason.
    """
    images = _bids_images(Path(path or cohort["source"]["path"]), cohort, participants)
    if images.empty:
        return images
    volumes = images[images["desc"] == "preproc"]
    wanted = volumes["space"] == cohort["space"]
    if cohort["resolution"] is not None:
        wanted &= volumes["res"] == cohort["resolution"]
    found = _without_single_echoes(pd.concat([volumes[wanted], images[images["image"] == ""]]))
    columns = [found[name] for name in ("image", "recording_id", "beside")]
    found["paths"] = [(image, *_beside(image, name, there)) for image, name, there in zip(*columns, strict=True)]
    # fMRIPrep keeps `part-mag` in its names; a recording is called the same before and after it
    found["recording_id"] = found["recording_id"].str.replace("_part-mag", "", regex=False)
    others = pd.concat([volumes[~wanted], images[images["desc"] == "confounds"]])
    found = pd.concat([found, _without_volumes(others, set(found["recording_id"]), cohort)])
    found["part"] = None
    return found[COLUMNS]


def _without_volumes(others: pd.DataFrame, found: set[str], cohort: Mapping[str, Any]) -> pd.DataFrame:
    """One row for each recording of which there are only volumes of another space or grid, or only confounds.

    ``others``: those volumes and confounds tables; ``found``: recordings that have what is wanted.
    """
    others = others[others["exclude_reason"].isna() & ~others["part"].isin(["phase", "real", "imag"])].copy()
    others["recording_id"] = others["recording_id"].str.replace(r"_(echo|part)-[A-Za-z0-9]+", "", regex=True)
    others = others[~others["recording_id"].isin(found)]
    if others.empty:
        return others.assign(paths=None)
    confounds = others["desc"] == "confounds"
    named = others["space"].fillna("the run's own space") + (":res-" + others["res"]).fillna("")
    there = (
        named.mask(confounds).groupby(others["recording_id"]).agg(lambda names: ", ".join(sorted(set(names.dropna()))))
    )
    rows = others.drop_duplicates("recording_id").copy()
    wanted = cohort["space"] + (f":res-{cohort['resolution']}" if cohort["resolution"] else "")
    rows["exclude_reason"] = [
        f"{NO_VOLUMES} in {wanted}; there is {there[name] or 'a confounds table only (did fMRIPrep break off?)'}"
        for name in rows["recording_id"]
    ]
    rows[["space", "res", "desc", "echo"]] = None
    rows["paths"] = [("",)] * len(rows)
    return rows


def _beside(image: str, recording_id: str, there: frozenset[str]) -> tuple[str, str]:
    """Paths of the brain mask and the confounds table that belong to an image, empty where absent.

    ``there``: names of the files in the image's folder.
    """
    folder, name = os.path.split(image)
    stem, _, packed = name.partition(".nii")
    endings = [f".nii{packed}", ".nii.gz", ".nii"]  # its own first: two programs may have written image and mask
    masks = [re.sub("_desc-preproc_bold$", "_desc-brain_mask", stem) + ending for ending in endings]
    masks += [re.sub("_preproc$", "_brainmask", stem) + ending for ending in endings]
    confounds = [f"{recording_id}_{ending}.tsv" for ending in CONFOUNDS]
    chosen = (next((name for name in names if name in there), None) for names in (masks, confounds))
    mask_path, confounds_path = (os.path.join(folder, name) if name else "" for name in chosen)
    return mask_path, confounds_path


def _list_raw(cohort: Mapping[str, Any]) -> pd.DataFrame:
    images = _bids_images(Path(cohort["source"]["path"]), cohort)
    if images.empty:
        return images
    images = images[images["space"].isna() & images["desc"].isna()]
    images = images[~images["part"].isin(["phase", "real", "imag"])]
    check_unique(images.assign(paths=images["image"].map(lambda image: (image,))), cohort["name"])
    # Echoes (and magnitude parts) of a run are one recording: fMRIPrep combines them.
    images["recording_id"] = images["recording_id"].str.replace(r"_(echo|part)-[A-Za-z0-9]+", "", regex=True)
    images = images.sort_values("image")
    paths = images.groupby("recording_id")["image"].agg(tuple)
    images = images.drop_duplicates("recording_id")
    images["paths"] = list(paths.loc[images["recording_id"]])
    images[["echo", "part"]] = None
    return images[COLUMNS]


def _bids_images(root: Path, cohort: Mapping[str, Any], participants: Sequence[str] | None = None) -> pd.DataFrame:
    """BOLD images of a BIDS folder with their entities as text, tasks and entities filtered.

    ``beside`` holds the names of the masks and confounds in the image's folder. A folder that is a link to nothing is
    one row with its reason and without ``image``.
    """
    # fMRIPrep that failed for everyone has not made its folder
    folders = _bids_folders(root, "sub") if root.exists() else []
    if participants is not None:
        folders = [folder for folder in folders if folder.name.removeprefix("sub-") in set(participants)]
    rows = [row for found in _in_threads(_images_of_participant, folders) for row in found]
    images = pd.DataFrame(rows, columns=[*COLUMNS[:-2], "image", "beside", "exclude_reason"], dtype=object)
    gone = images["image"] == ""
    return pd.concat([_wanted_runs(images[~gone], cohort), images[gone]])


def _wanted_runs(listing: pd.DataFrame, cohort: Mapping[str, Any]) -> pd.DataFrame:
    """The rows whose entities are those of the cohort's ``tasks`` and ``entities``."""
    wanted = {"task": cohort["tasks"], **cohort["entities"]}
    for entity, labels in wanted.items():
        if labels is not None:
            column = listing["session_id" if entity == "ses" else entity]
            listing = listing[[entity_fits(label, labels) for label in column]]
    return listing.copy()


def entity_fits(label: str | None, allowed: Sequence[str | None]) -> bool:
    """Whether a file's label of an entity (None without it) is wanted; as for fMRIPrep, null is absence, ``*`` any."""
    return label in allowed or (label is not None and "*" in allowed)


def _bids_folders(parent: Path, entity: str) -> list[Path]:
    """Folders ``sub-…`` or ``ses-…``, by name; one whose label BIDS forbids is an error, not silently left out."""
    try:
        with os.scandir(parent) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if entry.name.startswith(f"{entity}-") and (entry.is_dir() or _leads_nowhere(Path(entry)))
            )
    except OSError as error:
        raise UserError(
            f"{parent}: expected a folder that can be read, found: {error.strerror}; correct path or permissions"
        ) from None
    bad = [name for name in names if not re.fullmatch(rf"{entity}-[A-Za-z0-9+]+", name)]
    if bad:
        kind = "participant" if entity == "sub" else "session"
        raise UserError(
            f"{parent}: expected {kind} folders named {entity}-<letters and digits>, found "
            f"{', '.join(map(repr, bad[:5]))}; rename them (BIDS labels are alphanumeric)"
        )
    return [parent / name for name in names]


def _images_of_participant(folder: Path) -> list[dict[str, Any]]:
    """BOLD images in the ``func`` folders of a participant; nothing else (``figures``, ``log``, …) is looked into."""
    participant = folder.name.removeprefix("sub-")
    if _leads_nowhere(folder):
        return [_missing_row(folder, participant, None)]
    rows = []
    for parent in (folder, *_bids_folders(folder, "ses")):
        func = parent / "func"
        gone = next((path for path in (parent, func) if _leads_nowhere(path)), None)
        if gone is not None:
            session = parent.name.removeprefix("ses-") if parent != folder else None
            rows.append(_missing_row(gone, participant, session))
        elif func.is_dir():
            try:
                names = sorted(os.listdir(func))
            except OSError as error:
                raise UserError(
                    f"{func}: expected a folder that can be read, found: {error.strerror}; correct its permissions"
                ) from None
            beside = frozenset(name for name in names if name.endswith(BESIDE))
            images = [
                name for name in names if name.endswith(("_bold.nii.gz", "_bold.nii")) or OLD_NAME.fullmatch(name)
            ]
            found = [_image_row(func / name, participant, beside) for name in images]
            rows += [*found, *_lone_confounds(func, participant, beside, {row["recording_id"] for row in found})]
    return rows


def _lone_confounds(
    func: Path, participant: str, beside: frozenset[str], recordings: set[str]
) -> Iterator[dict[str, Any]]:
    """Rows of the confounds tables in a folder without an image of their recording."""
    for name in sorted(beside):
        ending = next((ending for ending in CONFOUNDS if name.endswith(f"_{ending}.tsv")), None)
        stem = name.removesuffix(f"_{ending}.tsv")
        if ending and stem not in recordings:
            yield _image_row(func / f"{stem}_desc-confounds_timeseries.tsv", participant, beside)


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _missing_row(folder: Path, participant: str, session: str | None) -> dict[str, Any]:
    """Stands for the recordings in a folder that is a link to nothing."""
    row: dict[str, Any] = dict.fromkeys([*COLUMNS[:-2], "image"], None)
    name = f"sub-{participant}" + (f"_ses-{session}" if session else "")
    reason = f"{folder} is a link to nothing (data not fetched, or a disk that is not mounted?)"
    row |= {"participant_id": participant, "session_id": session, "recording_id": name, "exclude_reason": reason}
    return row | {"image": "", "beside": frozenset()}


def _image_row(image: Path, participant: str, beside: frozenset[str]) -> dict[str, Any]:
    name = OLD_NAME.sub(r"\1_\2_desc-preproc_bold\3", image.name)
    parts = name.split("_")[:-1]
    wrong = [part for part in parts if not re.fullmatch(r"[a-zA-Z]+-[A-Za-z0-9+]+", part)]
    entities = bids2table.parse_bids_entities(image.with_name(name))
    reason = f"its name is not BIDS: {', '.join(map(repr, wrong))}" if wrong else None
    if reason is None and entities.get("sub") != participant:
        reason = f"its name is not that of the participant {participant}"
    return {
        "participant_id": participant,
        "session_id": entities.get("ses"),
        "recording_id": "_".join(part for part in parts if part.split("-")[0] not in NOT_IN_ID),
        **{entity: entities.get(entity) for entity in ENTITIES},
        "image": str(image),
        "beside": beside,
        "exclude_reason": reason,
    }


def _without_single_echoes(images: pd.DataFrame) -> pd.DataFrame:
    """Prefer fMRIPrep's combined volume; a run with echo-wise volumes only becomes one excluded row."""
    images = images.copy()
    combined = set(images.loc[images["echo"].isna(), "recording_id"])
    run = images["recording_id"].str.replace(r"_echo-[A-Za-z0-9]+", "", regex=True)
    single = images["echo"].notna()
    images.loc[single, "recording_id"] = run[single]
    images = images[~(single & run.isin(combined))]
    single = images["echo"].notna()
    images.loc[single, "exclude_reason"] = (
        "only echo-wise volumes, no combined desc-preproc_bold; rerun fMRIPrep without --me-output-echos alone"
    )
    lone = images[single].drop_duplicates("recording_id")
    return pd.concat([images[~single], lone])


def _listing(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object).replace({np.nan: None})


def _selected_participants(listing: pd.DataFrame, cohort: Mapping[str, Any]) -> pd.DataFrame:
    present = set(listing["participant_id"])
    for key in ("include", "exclude"):
        labels = [label.removeprefix("sub-") for label in _named_participants(cohort, key)]
        unknown = sorted(set(labels) - present)
        if unknown and present:
            raise UserError(
                f"cohort {cohort['name']}: key '{key}': expected participants of {cohort['source']['path']} such as "
                f"{min(present)}, found {', '.join(unknown[:5])} ({len(unknown)} in all) without recordings; remove "
                "them from the list"
            )
        if cohort[key] is not None and (key == "include" or labels):
            listing = listing[listing["participant_id"].isin(labels) == (key == "include")]
    return listing


def _named_participants(cohort: Mapping[str, Any], key: str) -> list[str]:
    """The list under ``include`` or ``exclude``, or the lines of the text file that stands there."""
    value = cohort[key]
    if not isinstance(value, str):
        return list(value or [])
    try:
        lines = Path(value).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cohort {cohort['name']}: key '{key}': expected a text file with one participant per line at {value}, "
            f"found {error}"
        ) from None
    return [line.strip() for line in lines if line.strip()]


def check_unique(listing: pd.DataFrame, name: str) -> None:
    """Refuse a listing with several files for one recording, naming them."""
    double = listing[listing["recording_id"].duplicated(keep=False)].sort_values("recording_id")
    if not double.empty:
        first = double[double["recording_id"] == double["recording_id"].iloc[0]]
        files = ", ".join(sorted(str(paths[0]) for paths in first["paths"]))
        raise UserError(
            f"cohort {name}: expected one file for {first['recording_id'].iloc[0]}, found {len(first)}: {files}; "
            "choose with 'resolution', 'space' or 'entities' in the cohort file"
        )


def _what_is_there(cohort: Mapping[str, Any]) -> str:
    if cohort["source"]["type"] != "fmriprep":
        return ""
    images = _bids_images(Path(cohort["source"]["path"]), {**cohort, "tasks": None, "entities": {}})
    images = images[images["desc"] == "preproc"]
    spaces, tasks = (sorted(images[column].dropna().unique()) for column in ("space", "task"))
    return f"there are preprocessed volumes in the spaces {spaces} of the tasks {tasks}; " if len(images) else ""


def fingerprints(recordings: Iterable[Sequence[str]]) -> list[str]:
    """Size and modification time of each recording's files, as text that changes with them.

    Of an image, its sidecar belongs to them, and that of its confounds table.
    """
    return _in_threads(_fingerprint, list(recordings))


def _in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """One result per item; network file systems answer many questions at once. Many items are one task of a thread."""
    parts = [items[start : start + 100] for start in range(0, len(items), 100)]
    with ThreadPoolExecutor(16) as pool:
        return [result for part in pool.map(lambda part: [function(item) for item in part], parts) for result in part]


def _fingerprint(paths: Sequence[str]) -> str:
    sidecars = [_sidecar_path(paths[0])]
    if sidecars[0]:
        sidecars += [f"{path.removesuffix('.tsv')}.json" for path in paths[1:] if path.endswith(".tsv")]
    parts = []
    for path in (*paths, *sidecars):
        try:
            status = os.stat(path) if path else None
        except OSError:
            status = None
        parts.append(f"{status.st_size}:{status.st_mtime_ns}" if status else "absent")
    return " ".join(parts)


def _sidecar_path(image: str) -> str:
    """The JSON file beside an image; empty text for other files."""
    stem = re.sub(r"\.nii(\.gz)?$", "", image)
    return "" if stem == image else f"{stem}.json"
