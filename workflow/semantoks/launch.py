"""Start a training in one process or several, on one machine or on the nodes of a Slurm job."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from semantoks.errors import UserError, run_command

TRAINING = "semantoks.pretrain"
WARNING = "--signal=TERM@120"
"""Two minutes before the time limit Slurm sends SIGTERM: the training writes a checkpoint and stops."""


def training_resources(gpus: int, nodes: int) -> dict[str, Any]:
    """Resources of a training job, by the names that Snakemake's Slurm plugin knows.

    Parameters
    ----------
    gpus : per node; 0 trains on the CPU, in one process per node.
    nodes : of the job.

    Returns
    -------
    On one node the plugin starts the job with its own srun; on several, ``mpi`` makes it leave that to :func:`command`.
    """
    resources: dict[str, Any] = {"nodes": nodes, "processes": max(gpus, 1), "slurm_extra": WARNING}
    if nodes == 1:
        return resources | {"gpu": gpus}
    resources |= {"mpi": "srun", "tasks": nodes}
    # `gpu` would be a total that Slurm may spread unevenly, and `tasks` a number per GPU
    return resources | ({"gres": f"gpu:{gpus}", "tasks_per_gpu": 0} if gpus else {})


def command(
    arguments: Sequence[str], nodes: int, processes: int, threads: int, environment: Mapping[str, str]
) -> list[str]:
    """The command of a training, one word each.

    Parameters
    ----------
    arguments : of ``python -m semantoks.pretrain``.
    nodes, processes : number of nodes, and of processes on each.
    threads : CPU cores per node.
    environment : variables, for the number of the Slurm job.

    Raises
    ------
    UserError
        For several nodes outside of a Slurm job.
    """
    if nodes * processes == 1:
        return [sys.executable, "-m", TRAINING, *arguments]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes)]
    torchrun += ["--nproc-per-node", str(processes)]
    if nodes == 1:
        return [*torchrun, "--standalone", "-m", TRAINING, *arguments]
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        raise UserError(
            f"key 'pretrain.nodes': expected a Slurm job of {nodes} nodes, found none; "
            "run `snakemake --profile slurm`, or set it to 1"
        )
    # this process runs on the job's first node, where the others meet; the port follows the job's number so that
    # two jobs on one node do not meet
    meeting = f"{socket.gethostname()}:{20000 + int(job) % 10000}"
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-id", job, "--rdzv-endpoint", meeting]
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={threads}"]
    return [*srun, "--kill-on-bad-exit=1", *torchrun, "-m", TRAINING, *arguments]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; this process becomes the training, so that the scheduler's signals reach it."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.launch", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1, help="nodes of the Slurm job (default %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="processes per node (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU cores per node (default %(default)s)")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="-- and the arguments of semantoks.pretrain")
    given = parser.parse_args(argv)
    words = command(given.arguments[1:], given.nodes, given.processes, given.threads, os.environ)
    os.environ["OMP_NUM_THREADS"] = str(max(1, given.threads // given.processes))
    os.execvp(words[0], words)


if __name__ == "__main__":
    run_command(main)
