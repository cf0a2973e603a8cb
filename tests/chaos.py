"""Random kills: ``make chaos`` runs the small study again and again and kills one of its processes at random moments.

Every kill is followed by another run in the same folder. After each of them, whatever has its final name must be what
an undisturbed run makes, byte for byte; when a study is finished it must be complete, with nothing else beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from conftest import REPOSITORY
from processes import descendants, kill, name_of
from small_study import (
    command,
    different_files,
    environment,
    run,
    same_results,
    simulate_cohort,
    write_study,
)


@dataclass
class Chaos:
    """What happened: who was killed, how often a lock was found and a study finished."""

    killed: Counter[str] = field(default_factory=Counter)
    locks: int = 0
    studies: int = 0

    def __str__(self) -> str:
        victims = ", ".join(f"{name} {count}" for name, count in self.killed.most_common())
        kills = sum(self.killed.values())
        return f"{kills} kills ({victims}), {self.locks} stale locks, {self.studies} studies finished, all equal"


def chaos(reference: Path, folder: Path, kills: int, seed: int, longest: float) -> Chaos:
    """Kill at random moments until that many kills are done and the study is finished.

    Parameters
    ----------
    reference : a finished study.
    folder : empty; studies are written into it.
    longest : seconds that a run is left alone at most before its next kill.
    """
    happened, draw = Chaos(), random.Random(seed)
    while sum(happened.killed.values()) < kills:
        study = folder / f"study-{happened.studies}"
        write_study(study, (reference / "data/demo").resolve())
        while not disturbed_run(study, happened, draw, kills, longest):
            assert different_files(study, reference) == [], f"after {happened}"
        same_results(study, reference)
        happened.studies += 1
    return happened


def disturbed_run(study: Path, happened: Chaos, draw: random.Random, kills: int, longest: float) -> bool:
    """One run of the study with at most one kill; whether it came to its end undisturbed."""
    unlock(study, happened)
    with open(study / "snakemake.out", "wb") as log:
        words = command(study, "--cores", "2")
        process = subprocess.Popen(words, env=environment(study), stdout=log, stderr=log, cwd=REPOSITORY)
    if sum(happened.killed.values()) < kills:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, longest))
        if process.poll() is None:
            victim = draw.choice(sorted(descendants({process.pid})))
            name = name_of(victim)
            if kill(victim):
                happened.killed[name] += 1
                process.wait()
                return False
    assert process.wait() == 0, (study / "snakemake.out").read_text()
    return True


def unlock(study: Path, happened: Chaos) -> None:
    """Take away the lock of a killed run, after the message that says how."""
    if not any((study / ".snakemake/locks").glob("*")):
        return
    refused = run(study)
    assert refused.returncode != 0
    for words in ("Directory cannot be locked", "--unlock"):
        assert words in refused.stderr
    happened.locks += 1
    assert run(study, "--unlock").returncode == 0


def main() -> None:
    """Command line of ``make chaos``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of moments and victims (default %(default)s)")
    parser.add_argument("--longest", type=float, default=30, help="seconds before a kill at most (default %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        simulate_cohort(folder / "cohort")
        write_study(folder / "reference", folder / "cohort")
        undisturbed = run(folder / "reference")
        assert undisturbed.returncode == 0, undisturbed.stderr
        print(chaos(folder / "reference", folder, arguments.kills, arguments.seed, arguments.longest))


if __name__ == "__main__":
    main()
