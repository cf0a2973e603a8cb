"""Where the frames of a corpus lie: on the device, in the host's memory, or in a file that crops are read from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from semantoks.errors import UserError
from semantoks.objectives.parallel import wait_for_all

Place = Literal["device", "host", "disk"]


def choose_place(wanted: str, n_bytes: int, device: torch.device) -> Place:
    """Where ``n_bytes`` of frames go: as asked for, or ``auto`` the first place of which they take at most half.

    Half of the GPU's free memory, half of what this process and its neighbours of one training may still take of the
    host's, otherwise disk.
    """
    if wanted != "auto":
        assert wanted in ("device", "host", "disk")
        return wanted  # type: ignore[return-value]
    if device.type == "cuda" and n_bytes <= torch.cuda.mem_get_info(device)[0] / 2:
        return "device"
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if neighbours * n_bytes <= free_memory() / 2:
        return "device" if device.type == "cpu" else "host"
    return "disk"


def free_memory(root: Path = Path("/")) -> float:
    """Bytes that this process may still take: what the machine, the control group and the Slurm job leave.

    Infinite where none of them says (not Linux).
    """
    limits = [float("inf")]
    meminfo = root / "proc/meminfo"
    if meminfo.is_file():
        lines = (line.split() for line in meminfo.read_text().splitlines())
        limits += [1024.0 * int(line[1]) for line in lines if line[0] == "MemAvailable:"]
    membership = root / "proc/self/cgroup"
    own = membership.read_text().splitlines()[-1].split(":")[-1].lstrip("/") if membership.is_file() else ""
    for group in (root / "sys/fs/cgroup" / own, root / "sys/fs/cgroup"):
        most, used = group / "memory.max", group / "memory.current"
        if most.is_file() and used.is_file() and most.read_text().strip() != "max":
            limits.append(float(most.read_text()) - float(used.read_text()))
    if os.environ.get("SLURM_MEM_PER_NODE", "").isdigit():
        limits.append(2.0**20 * int(os.environ["SLURM_MEM_PER_NODE"]))
    return min(limits)


def make_frames(
    shape: tuple[int, int], on_disk: bool, fill: Callable[[np.ndarray | None], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Frames float16 [frame, ROI] as ``fill`` writes them, and what it returns.

    On disk, the first process of each node writes a file in the folder for temporary files (``TMPDIR``), and all map
    it: the system reads what crops touch, keeps it while there is memory to spare, and shares it between processes.
    The file has no name any more when this returns, so that nothing is left behind however the processes end.

    Parameters
    ----------
    fill : writes into zeros of ``shape``; given None it has only to return its value.
    """
    if not on_disk:
        # numpy asks for huge pages and touches nothing before it is written, which halves the time
        target = np.zeros(shape, dtype=np.float16)
        return target, fill(target)
    path = Path(tempfile.gettempdir()) / f"semantoks-corpus-{os.getppid()}-{os.environ.get('TORCHELASTIC_RUN_ID', 0)}"
    leads = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        written = _reserved(path, shape) if leads else None
        returned = fill(written)
        if written is not None:
            written.flush()
        wait_for_all()
        mapped = np.memmap(path, dtype=np.float16, mode="r", shape=shape)
        wait_for_all()
    except OSError as error:
        raise UserError(
            f"{path}: expected room for the corpus ({2 * shape[0] * shape[1] / 1e9:.1f} GB), found: {error.strerror}; "
            "set TMPDIR to a folder with more, on a disk of the node"
        ) from None
    finally:
        if leads:
            path.unlink(missing_ok=True)
    return mapped, returned


def _reserved(path: Path, shape: tuple[int, int]) -> np.memmap:
    """Zeros in a file with all its room taken: a mapped file that finds the disk full kills the process."""
    with path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, 2 * shape[0] * shape[1])
    return np.memmap(path, dtype=np.float16, mode="r+", shape=shape)
