"""Write the tables of keys in ``config/README.md`` from the schemas, so that the two cannot disagree."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from semantoks.config_schemas import REPOSITORY, cohort_schema, config_schema
from semantoks.errors import run_command
from semantoks.files import write_text

PAGE = REPOSITORY / "config" / "README.md"
MARKER = "<!-- The tables below are made from workflow/schemas by `make docs`. -->"


def reference() -> str:
    """Every key of the configuration and of a cohort file as Markdown tables."""
    parts = ["## Keys of the configuration", table(config_schema()), "## Keys of a cohort file", table(cohort_schema())]
    return "\n\n".join(parts) + "\n"


def table(schema: Mapping[str, Any]) -> str:
    """One Markdown table of all keys below a schema."""
    lines = ["| key | default | what it is |", "|---|---|---|"]
    for key, entry in entries(schema, ""):
        default = f"`{json.dumps(entry['default'])}`" if "default" in entry and not is_section(entry) else ""
        text = " ".join(str(entry.get("description", "")).split()).replace("|", "\\|")
        choices = [value for value in entry.get("enum", ()) if value is not None]
        if choices and not all(str(choice) in text for choice in choices):
            text += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
        lines.append(f"| `{key}` | {default} | {text} |")
    return "\n".join(lines)


def is_section(schema: Mapping[str, Any]) -> bool:
    """Whether a schema is an object with keys of its own."""
    return bool(schema.get("properties"))


def entries(schema: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All keys below a schema, depth first, with their dotted names."""
    properties = dict(schema.get("properties", {}))
    for branch in schema.get("oneOf", ()):
        for key, entry in branch.get("properties", {}).items():
            if "description" in entry:
                properties.setdefault(key, entry)
    for key, entry in properties.items():
        yield f"{prefix}{key}", entry
        yield from entries(entry, f"{prefix}{key}.")
    further = schema.get("additionalProperties")
    if isinstance(further, Mapping) and further.get("properties"):
        yield from entries(further, f"{prefix}<name>.")


def page() -> str:
    """The whole page: the hand-written part up to the marker, then the tables."""
    written = PAGE.read_text(encoding="utf-8").split(MARKER)[0]
    return f"{written}{MARKER}\n\n{reference()}"


def main(argv: Sequence[str] | None = None) -> None:
    """Rewrite the tables of the page."""
    argparse.ArgumentParser(prog="python -m semantoks.config_reference", description=__doc__).parse_args(argv)
    write_text(PAGE, page())


if __name__ == "__main__":
    run_command(main)
