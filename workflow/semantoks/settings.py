"""The configuration: read, checked against the schemas, completed with defaults, one object for the whole workflow."""

from __future__ import annotations

import copy
import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from semantoks.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
SCHEMAS = REPOSITORY / "workflow" / "schemas"
SECTIONS = ("fmriprep", "atlas", "networks", "parcellate", "qc", "shards", "embed", "probe", "supervised", "tables")


RECORDING_KEYS = (
    *("source", "tasks", "entities", "space", "resolution", "tr", "already_done"),
    *("participants", "site_column", "mean_fd_column"),
)
"""Keys of a cohort that decide what becomes of a recording. Not what is predicted, and not ``include`` and
``exclude``: they decide who is in the lists of the batches, and one participant more must not redo all others."""

FMRIPREP_KEYS = (
    *("image", "version", "output_spaces", "freesurfer", "freesurfer_folder", "bids_filter_file", "random_seed"),
    *("per_session", "extra_arguments"),
)
"""Keys of the section ``fmriprep`` that decide about results; of the others a change reruns nothing."""

PROBE_KEYS = ("participants", "phenotypes", "site_column", "site_group", "family_column", "confounds")
"""Keys of a cohort that decide about what is predicted."""

TEST = "test"
"""Role of a cohort on which the models of another one are tested."""


@dataclass(frozen=True)
class Cohort:
    """One cohort: its name and its validated settings (see ``config/README.md`` for the keys)."""

    name: str
    settings: Mapping[str, Any]

    @property
    def source(self) -> Mapping[str, Any]:
        """Where the data are: ``type``, ``path`` and the keys of that type."""
        source: Mapping[str, Any] = self.settings["source"]
        return source

    @property
    def imports_timeseries(self) -> bool:
        """Whether the cohort brings extracted time series instead of images."""
        return self.source["type"] in ("hdf5", "files")

    @property
    def wanted_runs(self) -> dict[str, list[str | None]]:
        """Entity → labels of the runs that the cohort uses; entities without restriction are left out."""
        tasks = self.settings["tasks"]
        return {**self.settings["entities"], **({} if tasks is None else {"task": tasks})}

    @property
    def runs_json(self) -> str:
        """``wanted_runs`` as JSON, in the form in which the stage ``fmriprep`` receives them."""
        return json.dumps(self.wanted_runs, sort_keys=True)

    def probe_json(self, **sections: Any) -> str:
        """What probes need to know of the cohort, with further sections, as JSON."""
        chosen = {key: self.settings[key] for key in PROBE_KEYS}
        return json.dumps({"name": self.name, **chosen, **sections}, sort_keys=True)

    def json(self, keys: Sequence[str] = ()) -> str:
        """Name and settings (all, or those keys) as JSON, in the form in which stages receive them."""
        chosen = {key: self.settings[key] for key in keys or self.settings}
        return json.dumps({"name": self.name, **chosen}, sort_keys=True)


@dataclass(frozen=True)
class Encoder:
    """One encoder to train, or to leave as initialised, with one seed.

    Its name is ``<name>_seed-<seed>``, or ``<name>-random_seed-<seed>`` as initialised.
    """

    name: str
    seed: int
    untrained: bool
    cohorts: tuple[str, ...]
    settings: Mapping[str, Any]

    def json(self) -> str:
        """Settings of the pretrain stage as JSON."""
        return json.dumps(self.settings, sort_keys=True)


@dataclass(frozen=True)
class Settings:
    """The validated configuration with every default filled in."""

    values: Mapping[str, Any]
    cohorts: tuple[Cohort, ...]

    @property
    def results(self) -> Path:
        """Folder of all outputs."""
        return Path(self.values["results_dir"])

    def section(self, name: str) -> dict[str, Any]:
        """One section of the configuration, e.g. ``parcellate``."""
        section: dict[str, Any] = copy.deepcopy(self.values[name])
        return section

    @property
    def fmriprep_deciding(self) -> dict[str, Any]:
        """The keys of the section ``fmriprep`` that decide about results."""
        return {key: self.section("fmriprep")[key] for key in FMRIPREP_KEYS}

    @property
    def fmriprep_running(self) -> dict[str, Any]:
        """All other keys of the section ``fmriprep``: where and how it runs."""
        return {key: value for key, value in self.section("fmriprep").items() if key not in FMRIPREP_KEYS}

    def json(self, name: str, **further: Any) -> str:
        """One section as JSON, with further keys, in the form in which stages receive it."""
        return json.dumps(self.section(name) | further, sort_keys=True)

    def cohort(self, name: str) -> Cohort:
        """The cohort of that name."""
        return next(cohort for cohort in self.cohorts if cohort.name == name)

    @property
    def pretrain_cohorts(self) -> list[str]:
        """Names of the cohorts that are pretrained on unless an encoder says otherwise."""
        return [cohort.name for cohort in self.cohorts if cohort.settings["role"] in ("pretrain", "both")]

    @property
    def encoders(self) -> dict[str, Encoder]:
        """All encoders by name: trained ones and, as references, those that stay as initialised."""
        found = {}
        for name, settings in self.values["pretrain"]["encoders"].items():
            own = {key: value for key, value in settings.items() if key not in ("cohorts", "seeds", "random_seeds")}
            cohorts = tuple(settings.get("cohorts", self.pretrain_cohorts))
            for untrained, seeds in ((False, settings["seeds"]), (True, settings["random_seeds"])):
                for seed in seeds:
                    full = f"{name}{'-random' if untrained else ''}_seed-{seed}"
                    found[full] = Encoder(full, seed, untrained, cohorts, own)
        return found

    @property
    def trained_encoders(self) -> list[str]:
        """Names of the encoders that are really trained."""
        return [name for name, encoder in self.encoders.items() if not encoder.untrained]

    def encoder(self, name: str) -> Encoder:
        """The encoder of that full name."""
        return self.encoders[name]

    @property
    def probe_cohorts(self) -> list[str]:
        """Names of the cohorts that are probed: with a role for it and at least one phenotype."""
        roles = ("probe", "both", TEST)
        return [c.name for c in self.cohorts if c.settings["role"] in roles and c.settings["phenotypes"]]


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
    values = _validated(_expand_variables(config, where), config_schema(), where)
    cohorts = [_load_cohort(entry, where) for entry in values["cohorts"]]
    names = [cohort.name for cohort in cohorts]
    if len(set(names)) < len(names):
        raise UserError(f"{where}: key 'cohorts': expected different names, found {names}; rename a cohort's file")
    for encoder, settings in values["pretrain"]["encoders"].items():
        unknown = set(settings.get("cohorts", names)) - set(names)
        if unknown:
            raise UserError(
                f"{where}: key 'pretrain.encoders.{encoder}.cohorts': expected some of {names}, found "
                f"{sorted(unknown)}; add them to 'cohorts' or remove them here"
            )
    for cohort in cohorts:
        _check_features(cohort, values)
        _check_fitted_on(cohort, cohorts)
    if set(values["probe"]["protocols"]) == {"learning-curve"}:
        raise UserError(
            f"{where}: key 'probe.protocols': expected random or leave-site-out, too, found learning-curve alone; the "
            "table of results has no other rows"
        )
    settings = Settings(values, tuple(cohorts))
    _check_inductive(settings, where)
    strangers = sorted(set(values["supervised"]["encoders"]) - set(settings.encoders))
    if strangers:
        raise UserError(
            f"{where}: key 'supervised.encoders': expected some of {sorted(settings.encoders)}, found {strangers}"
        )
    return settings


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


def config_schema() -> dict[str, Any]:
    """The JSON schema of the configuration, put together from the schemas of the sections."""
    schema = _read_yaml(SCHEMAS / "config.schema.yaml")
    for section in SECTIONS:
        schema["properties"][section] |= _read_yaml(SCHEMAS / f"{section}.schema.yaml")
        if section not in schema["required"]:
            schema["properties"][section]["default"] = {}
    encoder = _read_yaml(SCHEMAS / "pretrain.schema.yaml")
    encoder["properties"] |= _read_yaml(SCHEMAS / "encoder.schema.yaml")
    schema["properties"]["pretrain"]["properties"]["encoders"]["additionalProperties"] = encoder
    return schema


def cohort_schema() -> dict[str, Any]:
    """The JSON schema of a cohort file, with the schema of a phenotype inside."""
    schema = _read_yaml(SCHEMAS / "cohort.schema.yaml")
    schema["properties"]["phenotypes"]["additionalProperties"] = _read_yaml(SCHEMAS / "phenotype.schema.yaml")
    return schema


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
    content = _read_yaml(path)
    return Cohort(path.stem, _validated(_expand_variables(content, str(path)), cohort_schema(), str(path)))


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


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: expected YAML, found {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, found {type(content).__name__}")
    return dict(content)


def _validated(values: Mapping[str, Any], schema: dict[str, Any], where: str) -> dict[str, Any]:
    filled: dict[str, Any] = _with_defaults(copy.deepcopy(dict(values)), schema)
    errors = sorted(
        _leaves(Draft202012Validator(schema).iter_errors(filled)), key=lambda error: list(map(str, error.path))
    )
    if errors:
        raise UserError("\n".join(dict.fromkeys(_message(error, where) for error in errors)))
    return filled


def _with_defaults(value: Any, schema: Mapping[str, Any]) -> Any:
    """Fill in defaults, downwards; of a ``oneOf`` the branch whose constants fit the value."""
    if not isinstance(value, dict):
        return value
    for branch in schema.get("oneOf", ()):
        constants = {k: s["const"] for k, s in branch.get("properties", {}).items() if "const" in s}
        if all(value.get(key) == constant for key, constant in constants.items()):
            _with_defaults(value, branch)
    for key, subschema in schema.get("properties", {}).items():
        if key not in value and "default" in subschema:
            value[key] = copy.deepcopy(subschema["default"])
        if key in value:
            value[key] = _with_defaults(value[key], subschema)
    further = schema.get("additionalProperties")
    if isinstance(further, Mapping):
        for key in value.keys() - schema.get("properties", {}).keys():
            value[key] = _with_defaults(value[key], further)
    return value


def _leaves(errors: Iterator[ValidationError]) -> Iterator[ValidationError]:
    """Errors, with those of a ``oneOf`` replaced by the errors of the branch that was meant."""
    for error in errors:
        if error.validator == "oneOf":
            branches: dict[int, list[ValidationError]] = {}
            for child in error.context or ():
                branches.setdefault(int(child.schema_path[0]), []).append(child)
            meant = [found for found in branches.values() if not any(c.validator == "const" for c in found)]
            yield from meant[0] if len(meant) == 1 else []
        else:
            yield error


def _message(error: ValidationError, where: str) -> str:
    keys = ".".join(map(str, error.absolute_path))
    inside = f"key '{keys}': " if keys else ""
    schema: Any = error.schema
    instance: Any = error.instance
    if error.validator == "additionalProperties":
        unknown = [key for key in instance if key not in schema["properties"]]
        prefix = f"{keys}." if keys else ""
        return "\n".join(f"{where}: unknown key '{prefix}{key}'; {_nearest(key, schema)}" for key in unknown)
    if error.validator == "required":
        missing = [key for key in schema["required"] if key not in instance]
        return (
            f"{where}: {inside}expected the key {', '.join(map(repr, missing))}, found none; add it (config/README.md)"
        )
    return f"{where}: {inside}{error.message}"


def _nearest(key: str, schema: Mapping[str, Any]) -> str:
    """Advice on an unknown key: the nearest valid one here or in a section below, else all that are valid here."""
    known = list(schema["properties"])
    below = {path.rsplit(".", 1)[-1]: path for path in _dotted(schema)}
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6) or [
        below[name] for name in difflib.get_close_matches(key, below, n=1, cutoff=0.6)
    ]
    return f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(sorted(known))}"


def _dotted(schema: Mapping[str, Any]) -> Iterator[str]:
    for key, entry in schema.get("properties", {}).items():
        yield key
        yield from (f"{key}.{further}" for further in _dotted(entry))
