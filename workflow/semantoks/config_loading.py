"""Reading the configuration: checked against the schemas, completed with defaults, and its keys against each other."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semantoks.config_schemas import REPOSITORY, cohort_schema, config_schema, read_yaml, validated
from semantoks.errors import UserError
from semantoks.output_spaces import NO_SPACE_OF_ITS_OWN, volumes
from semantoks.settings import OF_COHORT, TEST, Cohort, Settings


def load_settings(config: Mapping[str, Any], where: str = "config") -> Settings:
    """Check a configuration and its cohort files and fill in the defaults.

    Parameters
    ----------
    config : the configuration as read from YAML, e.g. Snakemake's ``config``.
    where : name of the file it came from, for messages.

    Raises
    ------
    UserError
        Unknown or misspelt keys (with the nearest valid one), wrong types or values, missing cohort files.
    """
    values = validated(_expand_variables(config, where), config_schema(), where)
    settings = Settings(values, tuple(_load_cohort(entry, where) for entry in values["cohorts"]))
    check_settings(settings, where)
    return settings


def _load_cohort(entry: str, where: str) -> Cohort:
    is_path = entry.endswith((".yaml", ".yml"))
    candidates = (
        [Path(entry)] if is_path else [folder / f"config/cohorts/{entry}.yaml" for folder in (Path(), REPOSITORY)]
    )
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        near = difflib.get_close_matches(entry, [p.stem for p in (REPOSITORY / "config/cohorts").glob("*.yaml")], n=1)
        raise UserError(
            f"{where}: key 'cohorts': expected a cohort file for {entry!r}, found none at {candidates[0]}"
            + (f"; did you mean {near[0]!r}?" if near else "; write one (config/README.md, 'A cohort')")
        )
    if not re.fullmatch(r"[A-Za-z0-9_-]+", path.stem):
        raise UserError(f"{path}: expected a file name of letters, digits, '-' and '_', found {path.stem!r}; rename it")
    content = read_yaml(path)
    return Cohort(path.stem, validated(_expand_variables(content, str(path)), cohort_schema(), str(path)))


def _expand_variables(value: Any, where: str, keys: tuple[str, ...] = ()) -> Any:
    """Replace ``${NAME}`` in every text except descriptions."""
    if isinstance(value, Mapping):
        return {key: _expand_variables(item, where, (*keys, str(key))) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand_variables(item, where, keys) for item in value]
    if isinstance(value, str) and keys[-1:] != ("description",):
        for name in re.findall(r"\$\{(\w+)\}", value):
            if name not in os.environ:
                raise UserError(
                    f"{where}: key '{'.'.join(keys)}': expected the environment variable {name} to hold a path, "
                    f"found it unset; run `export {name}=/the/path` or write the path into the file"
                )
            value = value.replace(f"${{{name}}}", os.environ[name])
    return value


def check_settings(settings: Settings, where: str) -> None:
    """Refuse keys that do not fit each other, which schemas cannot say.

    Raises
    ------
    UserError
        Naming the key, what was expected and what was found.
    """
    names = [cohort.name for cohort in settings.cohorts]
    if len(set(names)) < len(names):
        raise UserError(f"{where}: key 'cohorts': expected different names, found {names}; rename a cohort's file")
    for cohort in settings.cohorts:
        _check_features(cohort, settings.values)
        _check_fitted_on(cohort, settings.cohorts)
        _check_output_spaces(cohort, settings.section("fmriprep")["output_spaces"], where)
    if set(settings.values["probe"]["protocols"]) == {"learning-curve"}:
        raise UserError(
            f"{where}: key 'probe.protocols': expected random or leave-site-out, too, found learning-curve alone; the "
            "table of results has no other rows"
        )
    _check_labels_of_atlas(settings.values["atlas"], where)
    _check_encoders(settings, names, where)
    _check_inductive(settings, where)
    _check_freesurfer_folder(settings, where)


def _check_labels_of_atlas(atlas: Mapping[str, Any], where: str) -> None:
    """Refuse labels to drop, or to be empty, of an atlas that is made from its sources: they would change nothing."""
    own = bool(atlas["image"] or atlas["labels"])
    for key, needed in (("drop_labels", own), ("empty_labels", atlas["image"] and atlas["labels"])):
        if atlas[key] and not needed:
            which = "'image' or 'labels'" if key == "drop_labels" else "'image' and 'labels'"
            raise UserError(
                f"{where}: key 'atlas.{key}': expected none without {which} of an atlas of your own, found "
                f"{atlas[key]}; remove the key, or give {which}"
            )


def _check_output_spaces(cohort: Cohort, spaces: Sequence[str], where: str) -> None:
    """Refuse output spaces of fMRIPrep among which a cohort's own volumes are missing, or are several."""
    if cohort.source["type"] != "bids":
        return
    key = f"{where}: key 'fmriprep.output_spaces'"
    for space in set(spaces) & set(NO_SPACE_OF_ITS_OWN):
        raise UserError(f"{key}: expected what fMRIPrep knows, found {space}; write {NO_SPACE_OF_ITS_OWN[space]}")
    space, resolution = cohort.settings["space"], cohort.settings["resolution"]
    fitting = [volume for volume in volumes(spaces) if volume.space == space and resolution in (None, volume.res)]
    wanted = f"{space}:res-{resolution}" if resolution else space
    own = f"the volumes of cohort {cohort.name} (its keys 'space' and 'resolution': {wanted})"
    if not fitting:
        raise UserError(
            f"{key}: expected {own}, found {', '.join(spaces)}; add {wanted}, or correct the keys of the cohort"
        )
    if len(fitting) > 1:
        raise UserError(
            f"{key}: expected {own} once, found {len(fitting)} that fit in {', '.join(spaces)}; name one resolution "
            "under 'resolution' of the cohort, or leave one here"
        )


def _check_encoders(settings: Settings, names: Sequence[str], where: str) -> None:
    """Refuse encoders of cohorts that are not there, and networks that start from encoders that are not there."""
    for encoder, described in settings.values["pretrain"]["encoders"].items():
        unknown = set(described.get("cohorts", names)) - set(names)
        if unknown:
            raise UserError(
                f"{where}: key 'pretrain.encoders.{encoder}.cohorts': expected some of {names}, found "
                f"{sorted(unknown)}; add them to 'cohorts' or remove them here"
            )
    strangers = sorted(set(settings.values["supervised"]["encoders"]) - set(settings.encoders))
    if strangers:
        raise UserError(
            f"{where}: key 'supervised.encoders': expected some of {sorted(settings.encoders)}, found {strangers}"
        )


def _check_features(cohort: Cohort, values: Mapping[str, Any]) -> None:
    """Refuse own features whose row would carry the name of another."""
    rows = config_schema()["properties"]["probe"]["properties"]["rows"]["items"]["enum"]
    encoders = [f"{name}{kind}" for name in values["pretrain"]["encoders"] for kind in ("", "-random")]
    taken = sorted(set(cohort.settings["features"]) & {*rows, *encoders})
    if taken:
        raise UserError(f"{cohort.name}: features.{taken[0]}: a row of that name exists already; choose another name")


def _check_inductive(settings: Settings, where: str) -> None:
    """Refuse rows in which encoders take turns that are not there, or whose name is taken."""
    encoders = settings.values["pretrain"]["encoders"]
    for row, names in settings.values["probe"]["inductive"].items():
        key = f"{where}: key 'probe.inductive.{row}'"
        unknown = sorted(set(names) - set(encoders))
        if unknown:
            raise UserError(f"{key}: expected some of the encoders {sorted(encoders)}, found {unknown}")
        if row in encoders or row.endswith("-random"):
            raise UserError(f"{key}: an encoder is called so, or might be; choose another name")
        if not set.intersection(*(set(encoders[name]["seeds"]) for name in names)):
            raise UserError(f"{key}: expected a seed that all of {names} have, found none; give them the same seeds")


def _check_freesurfer_folder(settings: Settings, where: str) -> None:
    """Refuse reconstructions of several datasets in one folder: sub-01 of one is not sub-01 of the other."""
    folder = settings.values["fmriprep"]["freesurfer_folder"]
    datasets = {c.name: Path(c.source["path"]).resolve() for c in settings.cohorts if c.source["type"] == "bids"}
    if folder and OF_COHORT not in folder and len(set(datasets.values())) > 1:
        raise UserError(
            f"{where}: key 'fmriprep.freesurfer_folder': expected {OF_COHORT} in it, because participants of "
            f"{', '.join(datasets)}, which are several datasets, may have equal names, found {folder!r}; give each a "
            f"folder of its own, e.g. {folder.rstrip('/')}/{OF_COHORT}"
        )


def _check_fitted_on(cohort: Cohort, cohorts: Sequence[Cohort]) -> None:
    """Refuse a cohort for testing that does not say whose models are tested, or describes other phenotypes."""
    name, key = cohort.settings["fitted_on"], f"{cohort.name}: key 'fitted_on'"
    if cohort.settings["role"] != TEST:
        if name is not None:
            raise UserError(
                f"{key}: expected with role test only, found role {cohort.settings['role']}; change the role"
            )
        return
    known = [c for c in cohorts if c.settings["role"] in ("probe", "both") and c.settings["phenotypes"]]
    fitted = next((one for one in known if one.name == name), None)
    if fitted is None:
        raise UserError(
            f"{key}: expected one of the cohorts that are probed ({[c.name for c in known]}), found {name}; name the "
            "one whose models are tested on this cohort"
        )
    if not cohort.settings["phenotypes"]:
        raise UserError(f"{cohort.name}: key 'phenotypes': expected some of those of {name}, found none; add them")
    for phenotype, described in cohort.settings["phenotypes"].items():
        other = fitted.settings["phenotypes"].get(phenotype)
        same = other and all(described[part] == other[part] for part in ("type", "bins"))
        if not same:
            raise UserError(
                f"{cohort.name}: key 'phenotypes.{phenotype}': expected a phenotype of {name} with its type and bins, "
                f"found {described['type']}, bins {described['bins']}; {name} has "
                f"{sorted(fitted.settings['phenotypes'])}"
            )
