"""Which device and precision to compute with."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from semantoks.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device of a setting; ``auto`` is a GPU (under torchrun this process's own), else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: expected auto, cpu or cuda, found {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device: expected auto, cpu or cuda, found {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device: expected a GPU, found none that torch can use; set it to auto or cpu")
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """float32 or bfloat16; ``auto`` takes bfloat16 where the device multiplies it in hardware."""
    if name == "auto":
        fast = (
            torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_multiplies_bf16()
        )
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if name == "bf16" else torch.float32


def cpu_multiplies_bf16() -> bool:
    """Whether the processor has AVX-512-bf16 or AMX instructions (Linux; elsewhere false)."""
    path = Path("/proc/cpuinfo")
    flags = path.read_text().split() if path.is_file() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags


def compute_reproducibly(device: torch.device) -> None:
    """Let a GPU sum in the same order every time; before its first use. A CPU does with the same number of threads.

    An operation that cannot is an error of torch's, not a warning: with warnings only, some that can would not.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True)


def keep_freed_memory() -> None:
    """Let the C library (glibc; others are left alone) keep what a step frees for the next one.

    By default it returns large tensors to the system, which hands them out again zeroed, page by page: about a tenth
    of a training step on a CPU.
    """
    most = ctypes.c_int(2**31 - 1)
    mmap_max, trim_threshold, arenas_max = -4, -1, -8  # malloc.h
    try:
        set_option = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    set_option(mmap_max, 0)
    set_option(trim_threshold, most)
    set_option(arenas_max, 1)  # other threads' arenas map memory whatever mmap_max says
