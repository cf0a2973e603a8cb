"""Processes of this machine, as /proc shows them: what tests look at and kill."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def processes() -> list[tuple[int, list[bytes]]]:
    """Process ids and command lines of this machine."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                found.append((int(path.name), (path / "cmdline").read_bytes().replace(b"\0", b" ").split()))
            except OSError:  # it has ended meanwhile
                continue
    return found


def descendants(roots: set[int]) -> set[int]:
    """Processes with all their children, as they are now."""
    parents = {process: parent_of(process) for process, _ in processes()}
    found = set(roots)
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def parent_of(process: int) -> int:
    """The parent of a process; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def kill(process: int) -> bool:
    """Send SIGKILL; false when the process has ended already."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def name_of(process: int) -> str:
    """What a process of the workflow does: ``snakemake``, a stage, or the program's name."""
    words = dict(processes()).get(process, [])
    if b"-m" in words:
        return words[words.index(b"-m") + 1].decode()
    return Path(words[0].decode()).name if words else "ended"
