"""Files that the configuration and the cohort files name: each must be there before the job graph is made from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from semantoks.atlas_recipes import TEMPLATEFLOW
from semantoks.denoise import load_strategy
from semantoks.errors import UserError
from semantoks.settings import Settings

_KEYS = {
    "atlas": ("image", "labels", "transform"),
    "networks": ("image", "names", "file"),
    "parcellate": ("template_mask",),
}


def check_files(settings: Settings) -> None:
    """Refuse a configuration that names files which are not there, all of them in one message.

    Raises
    ------
    UserError
        Naming keys and paths; also for a denoising strategy that is neither known nor a readable file.
    """
    missing = _missing_folders(settings)
    missing += [
        f"{key}: expected a file, found {found} at {path}"
        for key, path in _named_files(settings)
        if path is not None and (found := _instead_of_a_file(Path(path))) is not None
    ]
    if missing:
        raise UserError(
            "\nerror: ".join(f"{line}; correct the path (relative ones start in {Path.cwd()})" for line in missing)
        )
    if any(not cohort.imports_timeseries for cohort in settings.cohorts):
        try:
            load_strategy(settings.section("parcellate")["denoising"])
        except UserError as error:
            raise UserError(f"key 'parcellate.denoising': {error}") from None
    if any(cohort.source["type"] == "bids" for cohort in settings.cohorts):
        from semantoks.fmriprep_outputs import read_bids_filter  # with nibabel, for which others need not wait

        try:
            read_bids_filter(settings.section("fmriprep")["bids_filter_file"])
        except UserError as error:
            raise UserError(f"key 'fmriprep.bids_filter_file': {error}") from None


def _missing_folders(settings: Settings) -> list[str]:
    folder = settings.section("atlas")["folder"]
    if folder is None or Path(folder).is_dir():
        return []
    return [
        f"key 'atlas.folder': expected a folder with the atlas's sources, found {_what_is(Path(folder))} at {folder}"
    ]


def _named_files(settings: Settings) -> Iterator[tuple[str, str | None]]:
    """Key and path of every file that may be named; None where it is not."""
    for section, keys in _KEYS.items():
        for key in keys:
            path = settings.section(section)[key]
            yield f"key '{section}.{key}'", None if path == TEMPLATEFLOW else path
    if any(cohort.source["type"] == "bids" for cohort in settings.cohorts):
        yield "key 'fmriprep.bids_filter_file'", settings.section("fmriprep")["bids_filter_file"]
    for cohort in settings.cohorts:
        own = cohort.settings
        yield f"cohort {cohort.name}: key 'participants.path'", (own["participants"] or {}).get("path")
        yield f"cohort {cohort.name}: key 'split_file'", own["split_file"]
        for name, table in own["features"].items():
            yield f"cohort {cohort.name}: key 'features.{name}.path'", table["path"]


def _instead_of_a_file(path: Path) -> str | None:
    """What lies where a file should; None for a file."""
    return None if path.is_file() else _what_is(path)


def _what_is(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "a link to nothing (annexed data not fetched?)"
    return "a folder" if path.is_dir() else "a file" if path.exists() else "nothing"
