"""One function on many inputs, each in a process of its own: a crash costs one result."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from semantoks.errors import UserError
from semantoks.isolation import CrashError, run_isolated


def crash_on_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 3:
        os._exit(7)
    return 10 * number


def test_a_crash_costs_one_result() -> None:
    results = run_isolated(crash_on_two, [1, 2, 3, 4], workers=2, description="test")
    assert (results[0], results[3]) == (10, 40)
    assert isinstance(results[1], CrashError)
    assert "SIGKILL" in str(results[1])
    assert "exit code 7" in str(results[2])


def kill_at_first(note: Path) -> str:
    if not note.exists():
        note.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return note.name


def test_a_process_that_is_killed_by_chance_has_a_second_attempt(tmp_path: Path) -> None:
    (tmp_path / "calm").touch()
    names = ["victim", "calm", "another"]
    assert run_isolated(kill_at_first, [tmp_path / name for name in names], workers=2, description="test") == names


def refuse(number: int) -> int:
    raise UserError(f"number {number}")


def test_an_error_in_isolation_is_raised_outside() -> None:
    with pytest.raises(UserError, match="number 5"):
        run_isolated(refuse, [5], workers=1, description="test")
