"""Kill random processes of the workflow at random moments, run it again, and see whether anything is wrong.

`make chaos` does it 50 times and prints what it saw; `make test-slow` three times. Whatever is killed - snakemake, a
shell, a stage - the next run must either go on by itself or say how to unlock the folder, and the results must in
the end equal those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from conftest import REPOSITORY
from small_study import EXPECTED, command, copy_study, environment, run, simulate_cohort, write_study

COMPARED = ["tables/*.tsv", "tables/*.md", "pretrain/*/weights.safetensors", "pretrain/*/metrics.jsonl"]
COMPARED += ["demo/*/part-*.parquet", "demo/splits.parquet", "demo/probes/*.parquet", "demo/embeddings/*.parquet"]
"""Files that do not depend on when they were made; JSON of provenance inside is the same, too."""


@dataclass
class Observations:
    """What happened: kills by kind of process, complete passes, runs that a lock refused, and what was wrong."""

    killed: Counter[str] = field(default_factory=Counter)
    passes: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


def descendants(process: int) -> list[int]:
    """A process and all processes below it."""
    found = [process]
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            found += descendants(int(child))
    return found


def kind(process: int) -> str:
    """A word for what a process is: snakemake, a stage, or its shell."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_text().split("\0")
    except OSError:
        return "gone"
    modules = [words[place + 1] for place, word in enumerate(words[:-1]) if word == "-m"]
    return modules[0] if modules else Path(words[0]).name


def kill_one(study: Path, chance: random.Random, longest: float, seen: Observations) -> bool:
    """Start a run, kill one of its processes after a random time, wait for its end; False when it ended before."""
    log = study / "snakemake.log"
    with log.open("wb") as file:
        started = subprocess.Popen(
            command(study, "--cores", "2"), cwd=REPOSITORY, env=environment(study), stdout=file, stderr=file
        )
    moment = time.monotonic() + chance.uniform(0, longest)
    while time.monotonic() < moment and started.poll() is None:
        time.sleep(0.02)
    killed = started.poll() is None
    if killed:
        victim = chance.choice(descendants(started.pid))
        name = kind(victim)
        try:
            os.kill(victim, signal.SIGKILL)
            seen.killed[name] += 1
        except ProcessLookupError:
            killed = False
    # a run that lost a job goes on with others and then fails; one that was killed leaves its jobs behind
    started.wait()
    after_run(study, log.read_text(errors="replace"), seen)
    return killed


def after_run(study: Path, log: str, seen: Observations) -> None:
    """A lock that a killed run left must be explained, and is then removed as explained."""
    if "Directory cannot be locked" in log:
        seen.refused += 1
        if "--unlock" not in log:
            seen.wrong.append(f"a lock without advice: {log[-500:]}")
        unlocked = run(study, "--unlock")
        if unlocked.returncode:
            seen.wrong.append(f"cannot be unlocked: {unlocked.stderr[-500:]}")
    if "Traceback" in log:
        seen.wrong.append(f"a traceback: {log[log.index('Traceback') :][:2000]}")


def finish(study: Path, seen: Observations) -> None:
    """Run to the end, undisturbed; a lock of the last killed run may have to be removed first."""
    for _ in range(2):
        done = run(study)
        after_run(study, done.stdout + done.stderr, seen)
        if done.returncode == 0:
            return
    seen.wrong.append(f"does not finish: {(done.stdout + done.stderr)[-2000:]}")


def differences(study: Path, reference: Path) -> list[str]:
    """What is missing, different or left over in the results of a study."""
    results, expected = study / "results", reference / "results"
    wrong = [f"missing: {name}" for name in EXPECTED if not (results / name).is_file()]
    for pattern in COMPARED:
        for path in expected.glob(pattern):
            own = results / path.relative_to(expected)
            if not own.is_file() or own.read_bytes() != path.read_bytes():
                wrong.append(f"different: {own.relative_to(results)}")
    wrong += [f"half-written: {path.relative_to(results)}" for path in results.rglob(".*") if path.is_file()]
    wrong += [f"left over: {path.relative_to(results)}" for path in results.glob("checkpoints/*/*")]
    return wrong


def chaos(reference: Path, folder: Path, kills: int, seed: int, longest: float, seconds: float = 1e9) -> Observations:
    """Kill that often (or for that long), each time on the way to complete results; start over when complete.

    Parameters
    ----------
    reference : a finished study.
    folder : where to work; must not exist.
    longest : a kill comes at a random moment of the first ``longest`` seconds of a run.
    seconds : start no further kill after this time.
    """
    chance, seen, end = random.Random(seed), Observations(), time.monotonic() + seconds
    copy_study(reference, folder)
    while sum(seen.killed.values()) < kills and time.monotonic() < end:
        for leftover in (folder / "results", folder / ".snakemake"):
            shutil.rmtree(leftover, ignore_errors=True)
        for _ in range(chance.randint(2, 8)):
            if sum(seen.killed.values()) >= kills or time.monotonic() >= end:
                break
            if not kill_one(folder, chance, longest, seen):
                break
        finish(folder, seen)
        seen.passes += 1
        seen.wrong += differences(folder, reference)
    return seen


def main() -> None:
    """Command line of `make chaos`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how often (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and victims (default %(default)s)")
    parser.add_argument("--longest", type=float, default=30, help="seconds until a kill (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=1e6, help="start no further kill after this time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate_cohort(folder / "cohort")
        write_study(folder / "reference", folder / "cohort")
        done = run(folder / "reference")
        assert done.returncode == 0, done.stdout + done.stderr
        seen = chaos(
            folder / "reference",
            folder / "study",
            arguments.kills,
            arguments.seed,
            arguments.longest,
            60 * arguments.minutes,
        )
    victims = ", ".join(f"{number} {name}" for name, number in seen.killed.most_common())
    print(f"{sum(seen.killed.values())} kills ({victims}), {seen.passes} times to complete results,")
    print(f"{seen.refused} runs refused by a lock with advice; wrong: {len(seen.wrong)}")
    print("\n".join(seen.wrong))
    sys.exit(bool(seen.wrong))


if __name__ == "__main__":
    main()
