"""The schemas of the configuration: put together, filled in with defaults, and what a reader is told of an error."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from semantoks.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
SCHEMAS = REPOSITORY / "workflow" / "schemas"
SECTIONS = ("fmriprep", "atlas", "networks", "parcellate", "qc", "shards", "embed", "probe", "supervised", "tables")


def config_schema() -> dict[str, Any]:
    """The JSON schema of the configuration, put together from the schemas of the sections."""
    schema = read_yaml(SCHEMAS / "config.schema.yaml")
    for section in SECTIONS:
        schema["properties"][section] |= read_yaml(SCHEMAS / f"{section}.schema.yaml")
        if section not in schema["required"]:
            schema["properties"][section]["default"] = {}
    encoder = read_yaml(SCHEMAS / "pretrain.schema.yaml")
    encoder["properties"] |= read_yaml(SCHEMAS / "encoder.schema.yaml")
    schema["properties"]["pretrain"]["properties"]["encoders"]["additionalProperties"] = encoder
    return schema


def cohort_schema() -> dict[str, Any]:
    """The JSON schema of a cohort file, with the schema of a phenotype inside."""
    schema = read_yaml(SCHEMAS / "cohort.schema.yaml")
    schema["properties"]["phenotypes"]["additionalProperties"] = read_yaml(SCHEMAS / "phenotype.schema.yaml")
    return schema


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises
    ------
    UserError
        When it is no YAML, or something else than keys and values.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: expected YAML, found {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, found {type(content).__name__}")
    return dict(content)


def validated(values: Mapping[str, Any], schema: dict[str, Any], where: str) -> dict[str, Any]:
    """Values with all defaults of a schema filled in.

    Raises
    ------
    UserError
        One line for each key that is unknown (with the nearest known one), missing, or has another type or value.
    """
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
