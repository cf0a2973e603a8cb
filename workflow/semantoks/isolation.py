"""Run one function on many inputs, each in a process of its own, so that a crash costs one result only."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


class CrashError(RuntimeError):
    """The process of one input ended without a result, e.g. by a signal."""


def run_isolated(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, description: str
) -> list[Result | CrashError]:
    """Call ``function`` on every item, ``workers`` at a time.

    Parameters
    ----------
    function : a function of a module (it is pickled where processes are not forked).
    items : inputs, picklable.
    workers : number of processes at a time.
    description : text of the progress display on stderr.

    Returns
    -------
    One result per item, in their order; :class:`CrashError` for an item whose process was killed. An exception that
    ``function`` raises is raised here.
    """
    # forking takes milliseconds and shares what is loaded; it is safe because this process starts no threads
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    results: dict[int, Result | CrashError] = {}
    running: dict[Connection, tuple[int, Any]] = {}
    with tqdm(total=len(items), desc=description, disable=None) as progress:
        while len(results) < len(items):
            while len(running) < workers and len(results) + len(running) < len(items):
                number = len(results) + len(running)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_send_result, args=(function, items[number], sender))
                process.start()
                sender.close()
                running[receiver] = (number, process)
            for receiver in wait(list(running)):
                assert isinstance(receiver, Connection)
                number, process = running.pop(receiver)
                results[number] = _receive(receiver, process)
                progress.update()
    return [results[number] for number in range(len(items))]


def _send_result(function: Callable[[Any], Any], item: Any, sender: Connection) -> None:
    try:
        sender.send((True, function(item)))
    except Exception as error:
        sender.send((False, error))


def _receive(receiver: Connection, process: Any) -> Any:
    try:
        succeeded, value = receiver.recv()
    except EOFError:
        process.join()
        return CrashError(_why(process.exitcode))
    process.join()
    if not succeeded:
        raise value
    return value


def _why(exit_code: int) -> str:
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {exit_code}"
