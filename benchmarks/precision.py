"""Whether training in bfloat16 follows training in float32: loss curves of the same seed, data order, views and masks.

    PYTHONPATH=workflow python benchmarks/precision.py --shards results/demo/shards/*.parquet --figure precision.png

Prints the largest and the mean difference of the smoothed losses beside their sd over steps, and draws both curves.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from semantoks.drawing import new_figure, save
from semantoks.encoder_figures import read_metrics
from semantoks.pretrain import pretrain
from semantoks.training.settings import PRESETS, resolve_settings

CURVES = {"loss": "loss", "coding_rate": "coding rate", "gradient_norm": "gradient norm"}
WINDOW = 10


def train(arguments: argparse.Namespace, precision: str) -> pd.DataFrame:
    """Metrics of every step of one training."""
    settings = resolve_settings(
        {
            "preset": arguments.preset,
            "optimiser": {"epochs": arguments.epochs, "batch": arguments.batch},
            "run": {
                "precision": precision,
                "device": arguments.device,
                "threads": arguments.threads,
                "log_every": 1,
            },
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        pretrain(arguments.shards, settings, 0, Path(folder) / precision)
        return read_metrics(Path(folder) / precision / "metrics.jsonl")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", nargs="+", type=Path, required=True)
    parser.add_argument("--preset", default="small", choices=sorted(PRESETS))
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves the choice to torch")
    parser.add_argument("--figure", type=Path, default=Path("precision.png"))
    arguments = parser.parse_args(argv)
    curves = {precision: train(arguments, precision) for precision in ("float32", "bf16")}
    figure, axes = new_figure(11, 3.4, 1, len(CURVES), simulated=False)
    for axis, (key, label) in zip(axes.flat, CURVES.items(), strict=True):
        smooth = {name: table[key].rolling(WINDOW, center=True, min_periods=1).mean() for name, table in curves.items()}
        difference = np.abs(smooth["bf16"] - smooth["float32"])
        spread = smooth["float32"].std()
        print(f"{label}: difference {difference.max():.4f} at most, {difference.mean():.4f} mean; sd {spread:.4f}")
        for name, values in smooth.items():
            axis.plot(curves[name]["step"], values, linestyle="-" if name == "float32" else "--", label=name)
        axis.set_xlabel("step")
        axis.set_ylabel(f"{label}, mean of {WINDOW} steps")
    axes.flat[0].legend(frameon=False)
    save(figure, arguments.figure)
    print(f"{len(curves['float32'])} steps; {arguments.figure}")


if __name__ == "__main__":
    main()
