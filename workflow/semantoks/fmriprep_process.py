"""Running fMRIPrep to its end: its output passed on, a request to stop passed to it, no container left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV)
_KILLED = {code for number in _SIGNALS for code in (-number, 128 + number, 256 - number)}
"""Exit codes of a killed command: as Python, shells and containers, and Python's own exit say it."""
_OUT_OF_MEMORY = re.compile(r"MemoryError|Cannot allocate memory|BrokenProcessPool|oom[-_ ]?kill|Out of memory", re.I)
_ERROR_LINE = re.compile(r"error\b|exception|no space left|unable to find|not found|denied|is required", re.I)
_LAST_LINES = 200
_SECRET = re.compile(r"TOKEN|SECRET|PASS(W|PHRASE|$|_)|\w_PWD$|_PAT$|CREDENTIAL|(API|ACCESS|AUTH|PRIVATE)_?KEY", re.I)
GRACE = 10.0
"""Seconds between the request to stop and the end by force; schedulers wait half a minute before they kill."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, the last lines of its output, and whether the user stopped it (Ctrl-C)."""

    code: int
    last_lines: tuple[str, ...]
    interrupted: bool = False

    @property
    def killed_or_out_of_memory(self) -> bool:
        """Whether more memory may help."""
        told = any(_OUT_OF_MEMORY.search(line) for line in self.last_lines)
        return self.code in _KILLED or (self.code != 0 and told)

    @property
    def reason(self) -> str:
        """The exit code and the last line that tells of an error, or the last line at all."""
        telling = [line for line in self.last_lines if _ERROR_LINE.search(line)] or list(self.last_lines)
        what = "killed (memory or time limit?)" if self.code in _KILLED else f"exit code {self.code}"
        return f"{what}: {telling[-1].strip()}" if telling else what


def run_and_show(
    command: list[str], variables: Mapping[str, str | None], end: Callable[[], None] = lambda: None
) -> Ended:
    """Run a command, passing its output on.

    A request to stop (SIGTERM, SIGINT) goes to the command and everything it started. fMRIPrep is process 1 of its
    container and as such does not hear SIGTERM: what still runs after :data:`GRACE` seconds is ended by force.

    Parameters
    ----------
    variables : environment variables beside the present ones; None takes one away.
    end : ends what the command started but is no child of it, i.e. its containers.
    """
    last_lines: deque[str] = deque(maxlen=_LAST_LINES)
    process = subprocess.Popen(
        command,
        env=clean_environment(variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    with process, _passing_on(process.pid, end) as asked:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.strip():
                last_lines.append(line)
    return Ended(process.returncode, tuple(last_lines), signal.SIGINT in asked)


@contextlib.contextmanager
def _passing_on(group: int, end: Callable[[], None]) -> Iterator[list[int]]:
    """Pass requests to stop on to a process group, and end it by force when it does not listen; the requests."""
    asked: list[int] = []

    def send(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)

    def by_force() -> None:
        end()
        send(signal.SIGKILL)

    def stop(number: int, _: FrameType | None) -> None:
        asked.append(number)
        send(signal.SIGTERM)
        if len(asked) == 1:
            timer.start()

    timer = threading.Timer(GRACE, by_force)
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def end_containers(engine: str, work: Path) -> None:
    """End containers of this machine that have the work folder bound: an attempt that was killed leaves them running.

    Nothing to do for engines whose containers are ordinary child processes (Apptainer) or absent.
    """
    if engine not in ("docker", "podman"):
        return
    query = [engine, "ps", "--quiet", "--filter", f"volume={work}"]
    running = subprocess.run(query, capture_output=True, text=True).stdout.split()
    if running:
        print(f"ending {len(running)} container(s) left with {work}", flush=True)
        subprocess.run([engine, "kill", *running], capture_output=True)


def clean_environment(variables: Mapping[str, str | None]) -> dict[str, str]:
    """This environment with further variables (None: without), and without what leads Python to our packages."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    return {name: value for name, value in (inherited | dict(variables)).items() if value is not None}


def secret_variables() -> list[str]:
    """Names of variables of this environment that by their names hold secrets."""
    return sorted(name for name in os.environ if _SECRET.search(name))
