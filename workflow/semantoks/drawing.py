"""What all figures of results share: a grid of axes, the words for simulated data, files without a time stamp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from semantoks.files import replacing

SIMULATED = "SIMULATED DATA"


def new_figure(
    width: float, height: float, rows: int, columns: int, simulated: bool, **further: Any
) -> tuple[Figure, Any]:
    """A figure with a grid of axes [rows, columns]; sizes in inches; says so when the data are simulated."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained", dpi=130, **further
    )
    if simulated:
        figure.suptitle(SIMULATED, color="#b00020", fontweight="bold")
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write a PNG by renaming, with nothing in it that differs between runs."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    plt.close(figure)
