"""Environment variables by which the main process tells Apptainer, and its jobs, what only it knows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_ATTEMPTS, _BINDS = "SEMANTOKS_ATTEMPTS", "APPTAINER_BIND"


def bind_in_containers(folders: Iterable[Path]) -> None:
    """Let containers see these folders beside those that the user binds."""
    own = os.environ.get(_BINDS)
    os.environ[_BINDS] = ",".join([*map(str, folders), *([own] if own else [])])


def attempts(retries: int | None) -> int:
    """How often a job is submitted at most.

    Parameters
    ----------
    retries : of the main process; None in a job, which learns the number from its environment.
    """
    if retries is not None:
        os.environ[_ATTEMPTS] = str(retries + 1)
    return int(os.environ.get(_ATTEMPTS, 1))
