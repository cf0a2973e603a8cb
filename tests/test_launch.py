"""How a training is started: one process, several on a machine, several nodes of a Slurm job."""

from __future__ import annotations

import socket
import sys

import pytest
from semantoks.errors import UserError
from semantoks.launch import command, training_resources

ARGUMENTS = ["--seed", "1"]
TRAINING = ["-m", "semantoks.pretrain", *ARGUMENTS]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def test_one_process_needs_no_launcher():
    assert command(ARGUMENTS, 1, 1, 4, {}) == [sys.executable, *TRAINING]


def test_several_gpus_of_one_machine_are_one_torchrun():
    words = command(ARGUMENTS, nodes=1, processes=4, threads=8, environment={"SLURM_JOB_ID": "7"})
    assert words == [*TORCHRUN, "--nnodes", "1", "--nproc-per-node", "4", "--standalone", *TRAINING]


def test_several_nodes_are_one_torchrun_each_that_meet_on_the_first():
    words = command(ARGUMENTS, nodes=3, processes=2, threads=8, environment={"SLURM_JOB_ID": "123456"})
    start = words.index(sys.executable)
    assert words[:start] == [
        "srun",
        "--nodes=3",
        "--ntasks=3",
        "--ntasks-per-node=1",
        "--cpus-per-task=8",
        "--kill-on-bad-exit=1",
    ]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-id", "123456", "--rdzv-endpoint", f"{socket.gethostname()}:23456"]
    assert words[start:] == [*TORCHRUN, "--nnodes", "3", "--nproc-per-node", "2", *meeting, *TRAINING]


def test_several_nodes_need_slurm():
    with pytest.raises(UserError, match=r"key 'pretrain.nodes': expected a Slurm job of 2 nodes, found none"):
        command(ARGUMENTS, nodes=2, processes=1, threads=1, environment={})


RESOURCES = {
    (0, 1): {"nodes": 1, "processes": 1, "gpu": 0},
    (4, 1): {"nodes": 1, "processes": 4, "gpu": 4},
    (0, 2): {"nodes": 2, "processes": 1, "mpi": "srun", "tasks": 2},
    (4, 2): {"nodes": 2, "processes": 4, "mpi": "srun", "tasks": 2, "gres": "gpu:4", "tasks_per_gpu": 0},
}


@pytest.mark.parametrize(("gpus", "nodes"), RESOURCES)
def test_resources_of_a_training(gpus, nodes):
    assert training_resources(gpus, nodes) == RESOURCES[gpus, nodes] | {"slurm_extra": "--signal=TERM@120"}
