"""A hash of the code a stage uses, so that editing code makes its results stale, visibly."""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


@functools.cache
def code_version(stage: str) -> str:
    """First 16 digits of the SHA-256 over a stage's module and every module of the package it imports.

    Parameters
    ----------
    stage : module name inside the package, e.g. ``parcellate``.
    """
    digest = hashlib.sha256()
    for path in sorted(_closure(_module_path(f"semantoks.{stage}"))):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _closure(path: Path) -> set[Path]:
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += _imported(current)
    return found


@functools.cache
def _imported(path: Path) -> list[Path]:
    paths = [_find(name) for name in _imported_names(path) if name.split(".")[0] == "semantoks"]
    return [found for found in paths if found is not None]


def _imported_names(path: Path) -> list[str]:
    """Everything that a file imports, dotted."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def _find(name: str) -> Path | None:
    """File of a module of the package; None for names that are functions or classes."""
    base = PACKAGE.joinpath(*name.split(".")[1:])
    candidates = [base / "__init__.py"] if base.is_dir() else [base.with_suffix(".py")]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _module_path(name: str) -> Path:
    path = _find(name)
    assert path is not None, f"no module {name}"
    return path
