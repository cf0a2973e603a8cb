"""Names of the units that models predict: participants, or sessions of participants; splits keep families together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from semantoks.errors import UserError


def unit_names(participants: Iterable[str], sessions: Iterable[str | None] | None = None) -> list[str]:
    """``<participant>``, or ``<participant>_ses-<session>`` where a session is given.

    Parameters
    ----------
    participants : labels without ``sub-``.
    sessions : labels without ``ses-``, null for none; None where the unit is the participant.
    """
    if sessions is None:
        return [str(name) for name in participants]
    pairs = zip(participants, sessions, strict=True)
    return [f"{name}_ses-{session}" if isinstance(session, str) else str(name) for name, session in pairs]


def participant_and_session(unit: str, by_session: bool) -> tuple[str, str | None]:
    """The labels in a unit's name."""
    name, _, session = unit.rpartition("_ses-") if by_session else (unit, "", None)
    return (name, session) if name else (unit, None)


def participant_of(text: str, pattern: str | None, path: Path | str) -> str:
    """The participant label in an id cell: the pattern's first group (or whole match), without ``sub-``.

    Raises
    ------
    UserError
        When the pattern does not match.
    """
    if pattern:
        match = re.search(pattern, text)
        if match is None:
            raise UserError(f"{path}: participants.id_pattern {pattern!r} does not match the id {text!r}; correct it")
        text = match.group(1) if match.re.groups else match.group(0)
    return text.strip().removeprefix("sub-")


def session_of(cell: str | None) -> str | None:
    """The session label in a cell, with or without ``ses-``; None where it is empty."""
    return cell.strip().removeprefix("ses-") if isinstance(cell, str) else None


def with_labels(rows: pd.DataFrame, by_session: bool) -> pd.DataFrame:
    """Rows of splits whose column ``participant_id`` names units, with ``participant_id`` and ``session_id``."""
    labels = [participant_and_session(name, by_session) for name in rows["participant_id"]]
    rows = rows.assign(participant_id=[participant for participant, _ in labels])
    sessions = pd.Series([session for _, session in labels], rows.index, dtype="string")
    rows.insert(list(rows.columns).index("participant_id") + 1, "session_id", sessions)
    return rows
