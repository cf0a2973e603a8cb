"""Checkpoints of a training: atomic, at intervals and on stop signals, resumed bit for bit (on a CPU)."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

import torch
from torch import nn

from semantoks.errors import UserError
from semantoks.files import replacing
from semantoks.objectives.parallel import any_process, process_rank
from semantoks.training.corpus import Corpus
from semantoks.training.settings import PretrainSettings


def training_fingerprint(
    settings: PretrainSettings, corpus: Corpus, seed: int, precision: torch.dtype, shards: Iterable[str]
) -> str:
    """12 hexadecimal digits that change with whatever changes the numbers of a training; ``shards``: their SHA-256."""
    what = settings.as_dict()
    what["run"] = {"precision": str(precision), "shards": sorted(shards)}
    scans = corpus.table.assign(n_frames=corpus.lengths.cpu().numpy()).sort_values(["cohort", "recording_id"])
    what |= {"seed": seed, "roi_names": corpus.roi_names, "networks": corpus.networks.labels, "source": corpus.source}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    digest.update(scans.to_csv(index=False).encode())
    return digest.hexdigest()[:12]


class Checkpoints:
    """The newest state of one training in a folder; trainings with other settings or data have other files.

    Parameters
    ----------
    folder : no declared output of the workflow, which would delete it on failure; None keeps no checkpoints.
    fingerprint : see :func:`training_fingerprint`.
    minutes : between checkpoints.
    """

    def __init__(self, folder: Path | None, fingerprint: str, minutes: float) -> None:
        self._path = None if folder is None else folder / f"checkpoint-{fingerprint}.pt"
        self._seconds, self._saved_at = 60 * minutes, time.monotonic()

    @contextlib.contextmanager
    def alone(self, device: torch.device) -> Iterator[bool]:
        """Let no other run of this training be at work meanwhile; whether one was waited for and has finished.

        A workflow that is killed leaves its training behind, which goes on: two in one folder would mix their files.
        """
        with contextlib.ExitStack() as stack:
            finished = False
            if self._path is not None and process_rank() == 0:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                lock = self._path.with_suffix(".lock")
                # whoever finishes deletes the lock, whoever is killed leaves it
                finished = _lock(stack.enter_context(lock.open("w"))) and not lock.exists()
                for half_written in self._path.parent.glob(f".{self._path.name}.*"):
                    half_written.unlink()
            (finished,) = any_process([finished], device)
            yield finished

    @property
    def due(self) -> bool:
        """Whether the interval has passed."""
        return self._path is not None and time.monotonic() - self._saved_at >= self._seconds

    def save(self, next_step: int, objective: nn.Module, optimiser: torch.optim.Optimizer, **further: Any) -> None:
        """Replace the file; a process killed meanwhile leaves the previous one whole."""
        self._saved_at = time.monotonic()
        if self._path is None or process_rank():
            return
        state = {"next_step": next_step, "objective": objective.state_dict(), "optimiser": optimiser.state_dict()}
        with replacing(self._path) as temporary:
            torch.save(state | further, temporary)

    def restore(self, objective: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        """Load the newest state in place; returns ``next_step`` and what else was saved, 0 without a checkpoint."""
        if self._path is None or not self._path.is_file():
            return {"next_step": 0}
        try:
            state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{self._path}: expected a checkpoint, found {error}; delete it to start over") from None
        objective.load_state_dict(state.pop("objective"))
        optimiser.load_state_dict(state.pop("optimiser"))
        return state

    def remove(self) -> None:
        """Delete the files of a finished training."""
        if self._path is not None and not process_rank():
            self._path.unlink(missing_ok=True)
            self._path.with_suffix(".lock").unlink(missing_ok=True)


def _lock(file: IO[str]) -> bool:
    """Lock a file until it is closed, or its process ends in whatever way; whether another process had it before."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{file.name}: waiting for another run of this training, which was left behind", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)
        return True
    except OSError as error:  # some network file systems have no locks
        print(f"note: {file.name}: no lock against other runs of this training ({error})", file=sys.stderr)
    return False


class StopSignals:
    """Notes SIGTERM (save, then stop) and SIGUSR1 (save, go on), as a scheduler sends them before it preempts.

    Processes of one training may get them steps apart, or only one of them: what they do together is agreed upon.
    """

    def __init__(self) -> None:
        self.save = self.stop = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.save = True
        self.stop = self.stop or number == signal.SIGTERM

    def told(self, device: torch.device) -> tuple[bool, bool]:
        """Whether any process was told to save since the last call, and to stop; waits for all processes."""
        mine = self.save, self.stop
        if self.save:
            self.save = False
        save, stop = any_process(mine, device)
        return save, stop

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
