"""Stage ``fmriprep``: preprocess one participant with fMRIPrep, and say in a status file how it ended.

Whoever is finished already is recognised by the outputs and not run again. What fMRIPrep made is never deleted, unless
``retention`` asks for it.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from semantoks.container_images import find_image
from semantoks.errors import UserError, run_command
from semantoks.files import read_json, write_json
from semantoks.fmriprep_command import FmriprepSettings, Job, build_command
from semantoks.fmriprep_database import knows
from semantoks.fmriprep_links import link_binds
from semantoks.fmriprep_outputs import Target, derivatives_version, input_files, problems, raw_runs, read_bids_filter
from semantoks.fmriprep_prepare import check_ready, licence_file, prepare, subjects_folder
from semantoks.fmriprep_process import Ended, end_containers, run_and_show, secret_variables
from semantoks.fmriprep_retention import keep_used, there_before

_DID_NOT_START = {125, 126, 127}
"""Exit codes of engines that could not start the image, and of fMRIPrep without a valid licence or its tools."""


@dataclass(frozen=True)
class Attempt:
    """Which submission of this job this is, of how many; only the last one turns a kill into a failure."""

    number: int
    of: int

    @property
    def last(self) -> bool:
        """Whether no further attempt will follow."""
        return self.number >= self.of


def preprocess(
    settings: FmriprepSettings,
    job: Job,
    attempt: Attempt,
    status_file: Path,
    run: Callable[[list[str], Mapping[str, str | None]], Ended],
    prepared: bool = True,
) -> dict[str, Any]:
    """Run fMRIPrep for one target unless it is finished; the content of the status file.

    Parameters
    ----------
    status_file : where the caller will write it. Beside it ``.attempt.json`` is there while fMRIPrep runs: who finds it
        knows that an attempt never came to its end.
    run : executes a command with further environment variables (None: without).
    prepared : whether templates and ``fsaverage`` are known to be ready; else they are made ready now.

    Raises
    ------
    UserError
        For what is wrong for every participant alike: licence, image, engine, paths.
    SystemExit
        With the command's exit code, when it was killed or ran out of memory and another attempt follows, or when the
        user stopped it.
    """
    if not raw_runs(job.bids, job.target):
        return _status(job, "failed", "no BOLD run fits the participant, session, tasks, entities and filter")
    journal = status_file.with_suffix(".attempt.json")
    killed = read_json(journal) if journal.is_file() else None
    if not problems(job.derivatives, job.bids, job.target):
        journal.unlink(missing_ok=True)
        return _status(job, "done", None)
    if killed and killed["last"]:
        journal.unlink()
        return _status(job, "failed", f"killed from outside: {_scheduler_state(killed['slurm_job'])}")
    command, variables = command_of(settings, job)
    check_ready(settings)
    if not prepared:
        prepare(settings, job.derivatives, job.bids)
    if settings.before_command:
        before = run(*_own_command(settings.before_command, job))
        if before.code:
            return _status(job, "failed", f"key 'fmriprep.before_command': {before.reason}")
    if broken := _broken_links(job):
        return _status(job, "failed", f"{broken[0]} is a link to nothing (annexed data not fetched?)")
    for folder in (job.derivatives, job.work, job.work / "home", job.work / "tmp"):
        folder.mkdir(parents=True, exist_ok=True)
    end_containers(settings.engine, job.work)
    subjects = None if settings.freesurfer_folder else subjects_folder(settings, job.derivatives)
    earlier = there_before(_record(status_file), attempt.number == 1, job.derivatives, job.target, subjects)
    write_json(journal, {"last": attempt.last, "slurm_job": os.environ.get("SLURM_JOB_ID")})
    ended = run(command, variables)
    end_containers(settings.engine, job.work)
    journal.unlink()
    status = _judge(ended, job, attempt, shlex.join(command))
    if status["status"] == "done":
        status["there_before"] = _keep(settings, job, subjects, earlier)
    if settings.after_command and run(*_own_command(settings.after_command, job)).code:
        print(f"key 'fmriprep.after_command' failed for {job.target.name}; its result stands", file=sys.stderr)
    return status


def _keep(settings: FmriprepSettings, job: Job, subjects: Path | None, earlier: set[Path]) -> list[str]:
    """Delete of a finished target what ``retention`` does not keep; what of its runs was there before, relative."""
    if settings.retention != "all":
        deleted = keep_used(job.derivatives, job.bids, job.target, subjects, earlier)
        print(f"retention {settings.retention!r}: {len(deleted)} files of {job.target.name} deleted")
    return sorted(str(path.relative_to(job.derivatives)) for path in earlier if path.parent.name == "func")


def _own_command(line: str, job: Job) -> tuple[list[str], dict[str, str]]:
    """A command line of the user for one participant; what it may need comes as environment variables."""
    variables = {"PARTICIPANT": job.target.participant, "SESSION": job.target.session or ""}
    return ["bash", "-c", line], variables | {"BIDS": str(job.bids), "DERIVATIVES": str(job.derivatives)}


def _judge(ended: Ended, job: Job, attempt: Attempt, command: str) -> dict[str, Any]:
    """Status of a run that came to its end."""
    if ended.interrupted:
        print("stopped by the user: it will run again when asked again", file=sys.stderr)
        raise SystemExit(130)
    if ended.code in _DID_NOT_START:
        raise UserError(f"{job.target.name}: fMRIPrep did not start ({ended.reason}); the command was: {command}")
    if ended.killed_or_out_of_memory and not attempt.last:
        print(f"killed or out of memory ({ended.reason}): another attempt follows", file=sys.stderr)
        raise SystemExit(ended.code if ended.code > 0 else 128 - ended.code)
    missing = problems(job.derivatives, job.bids, job.target)
    first = "; ".join(missing[:3]) + (f" ({len(missing)} in all)" if len(missing) > 3 else "")
    if ended.code:
        return _status(job, "failed", f"{ended.reason} | {first or 'all outputs are there'}", command)
    if missing:
        return _status(job, "incomplete", f"fMRIPrep ended without error, but: {first}", command)
    shutil.rmtree(job.work, ignore_errors=True)
    return _status(job, "done", None, command)


def command_of(settings: FmriprepSettings, job: Job) -> tuple[list[str], dict[str, str | None]]:
    """The command for a job, and the environment variables it needs or (None) must not see.

    FreeSurfer writes its environment into ``scripts/recon-all.env``; containers do not have ours.
    """
    database = settings.bids_database_folder
    if database and not knows(Path(database), job.bids, job.target):
        told = f"{database}: no database of {job.bids} with all BOLD images of {job.target.name}"
        print(f"{told}, so this job reads the dataset itself", file=sys.stderr)
        settings = replace(settings, bids_database_folder=None)
    image = None if settings.engine == "native" else find_image(settings.image, settings.version)
    linked = [] if settings.engine == "native" else _linked(job)
    command, variables = build_command(settings, job, licence_file(settings), image, linked)
    hidden = secret_variables() if settings.engine == "native" else []
    return command, {**dict.fromkeys(hidden), **variables}


def _broken_links(job: Job) -> list[Path]:
    return [path for path in input_files(job.bids, job.target) if path.is_symlink() and not path.exists()]


def _linked(job: Job) -> list[tuple[Path, Path]]:
    """Places outside the BIDS folder that links of the target's files, or of the dataset's own, lead to."""
    own = [path for path in job.bids.iterdir() if path.suffix in (".json", ".tsv")]
    return link_binds(job.bids, [*own, *input_files(job.bids, job.target)])


def _status(job: Job, status: str, reason: str | None, command: str | None = None) -> dict[str, Any]:
    """Content of the status file; ``command`` is what was run, ``version`` what the derivatives say.

    ``there_before`` is for runs of the target that were there before fMRIPrep ran; null where it did not finish it.
    """
    return {
        "participant": job.target.participant,
        "session": job.target.session,
        "status": status,
        "reason": reason,
        "command": command,
        "version": derivatives_version(job.derivatives),
        "runs": raw_runs(job.bids, job.target),
        "there_before": None,
    }


def _record(status_file: Path) -> Path:
    """What was there before the first attempt; it goes when the status is written."""
    return status_file.with_suffix(".before.json")


def _scheduler_state(slurm_job: str | None) -> str:
    """What the scheduler says about a job that never came to its end."""
    if slurm_job is None:
        return "no word from a scheduler; memory, time limit, or the machine went down"
    if shutil.which("sacct"):
        query = ["sacct", "--noheader", "--parsable2", "--allocations", "--format", "State", "--jobs", slurm_job]
        answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        if answer:
            return f"Slurm job {slurm_job}: {answer.splitlines()[0]}"
    return f"Slurm job {slurm_job}, whose state is unknown"


def _label(value: str, prefix: str) -> str:
    """A label without its prefix; what BIDS forbids never reaches a command line."""
    label = value.removeprefix(prefix)
    if not re.fullmatch(r"[A-Za-z0-9+]+", label):
        raise UserError(f"label {value!r}: expected letters and digits (BIDS), with or without {prefix!r}")
    return label


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.fmriprep", description=__doc__)
    parser.add_argument("--settings", type=json.loads, required=True, help="keys that decide about results, as JSON")
    parser.add_argument("--running", type=Path, help="file with all other keys of the section (JSON)")
    parser.add_argument("--cohort", required=True, help="name of the cohort, which is part of its folders")
    parser.add_argument("--bids", type=Path, required=True, help="BIDS folder")
    parser.add_argument("--participant", required=True, help="label, or `sub-<label>_ses-<label>`")
    parser.add_argument("--session", help="label, for one job per session")
    parser.add_argument("--runs", type=json.loads, default={}, help="entity → labels of the runs needed, as JSON")
    parser.add_argument("--output-derivatives", type=Path, required=True, help="folder for what fMRIPrep writes")
    parser.add_argument("--work", type=Path, required=True, help="folder for work folders (key work_folder wins)")
    parser.add_argument("--status", type=Path, required=True, help="status file to write (JSON)")
    parser.add_argument("--threads", type=int, default=8, help="threads of the job (default %(default)s)")
    parser.add_argument("--mem-mb", type=int, default=16000, help="memory of the job in MB (default %(default)s)")
    parser.add_argument("--attempt", type=int, default=1, help="which submission of the job this is")
    parser.add_argument("--attempts", type=int, default=1, help="how many submissions there are at most")
    parser.add_argument("--prepared", type=Path, help="file that fmriprep_prepare left")
    parser.add_argument("--dry-run", action="store_true", help="print the command and do nothing")
    arguments = parser.parse_args(argv)
    settings = FmriprepSettings(**arguments.settings, **(read_json(arguments.running) if arguments.running else {}))
    settings = settings.of_cohort(arguments.cohort)
    name, _, session_name = arguments.participant.partition("_")
    participant = _label(name, "sub-")
    session = _label(session_name or arguments.session, "ses-") if session_name or arguments.session else None
    chosen = read_bids_filter(settings.bids_filter_file)
    target = Target(participant, session, tuple(settings.output_spaces), chosen, arguments.runs)
    work = Path(settings.work_folder) if settings.work_folder else arguments.work
    job = Job(
        target,
        arguments.bids.absolute(),
        arguments.output_derivatives.absolute(),
        work.absolute() / target.name,
        arguments.threads,
        arguments.mem_mb,
    )
    if arguments.dry_run:
        command, variables = command_of(settings, job)
        given = [f"{key}={value}" for key, value in variables.items() if value is not None]
        print(shlex.join([*given, *command]))
        try:
            check_ready(settings)
        except UserError as error:
            print(f"this would not start: {error}", file=sys.stderr)
        return
    prepared = arguments.prepared is None or read_json(arguments.prepared)["problem"] is None
    attempt = Attempt(arguments.attempt, arguments.attempts)
    run = functools.partial(run_and_show, end=functools.partial(end_containers, settings.engine, job.work))
    status = preprocess(settings, job, attempt, arguments.status, run, prepared)
    write_json(arguments.status, status)
    _record(arguments.status).unlink(missing_ok=True)
    print(f"{target.name}: {status['status']}" + (f" ({status['reason']})" if status["reason"] else ""))


if __name__ == "__main__":
    run_command(main)
