"""Sums over the processes of a data-parallel training; identities when there is one process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def process_rank() -> int:
    """Index of this process."""
    return distributed.get_rank() if distributed.is_initialized() else 0


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, if it did, each with its own GPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def wait_for_all() -> None:
    """Go on when all processes have come here."""
    if world_size() > 1:
        distributed.barrier()


def any_process(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Each flag, true where it is true in any process; waits for all of them."""
    if world_size() == 1:
        return list(flags)
    noted = torch.tensor(flags, dtype=torch.int32, device=device)
    distributed.all_reduce(noted, op=distributed.ReduceOp.MAX)
    return [bool(flag) for flag in noted.tolist()]


class _Sum(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduced gradient."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        values = values.clone()
        distributed.all_reduce(values)
        return values

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        distributed.all_reduce(gradient)
        return gradient


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum over all processes, differentiable."""
    if world_size() == 1:
        return values
    summed: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return summed


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over processes, in one message; parameters without gradient keep none."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    sizes = [gradient.numel() for gradient in gradients]
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(flat.split(sizes), gradients, strict=True)])
