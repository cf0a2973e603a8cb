"""Run one function on many inputs, each in a process of its own, so that a crash costs one result only."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


class CrashError(RuntimeError):
    """The process of one input ended without a result, e.g. by a signal.

    ``killed`` tells that it was ended from outside, by the kernel for want of memory or by somebody.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(_why(exit_code))
        self.killed = -exit_code in (signal.SIGKILL, signal.SIGTERM)


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
    One result per item, in their order; :class:`CrashError` for an item whose process ended without one. A process that
    was killed may have been a chance victim: its item is tried once more at the end, alone. An exception that
    ``function`` raises is raised here.
    """
    results = _run(function, dict(enumerate(items)), workers, description)
    killed = {n: items[n] for n, result in results.items() if isinstance(result, CrashError) and result.killed}
    results |= _run(function, killed, 1, f"{description}, once more")
    return [results[number] for number in range(len(items))]


def _run(
    function: Callable[[Item], Result], items: Mapping[int, Item], workers: int, description: str
) -> dict[int, Result | CrashError]:
    # forking takes milliseconds and shares what is loaded; it is safe because this process starts no threads
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    results: dict[int, Result | CrashError] = {}
    running: dict[Connection, tuple[int, Any]] = {}
    waiting = list(items)
    with tqdm(total=len(items), desc=description, disable=None if items else True) as progress:
        while waiting or running:
            while waiting and len(running) < workers:
                number = waiting.pop(0)
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
    return results


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
        return CrashError(process.exitcode)
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
