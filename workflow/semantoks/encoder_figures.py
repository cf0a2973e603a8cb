"""Figures of an encoder: ``<encoder>_training.png``, curves of its pretraining, and ``<encoder>_learned.png``, what its
tokenizer and network embedding have become.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from semantoks.drawing import new_figure, save
from semantoks.errors import UserError, run_command
from semantoks.model.encoder import Encoder
from semantoks.model.encoder_folder import build_encoder, load_encoder
from semantoks.model.tokenizer import SemanticTokenizer

FREQUENCIES = 65
"""Points of a frequency response from 0 to the Nyquist frequency."""


def read_metrics(path: Path) -> pd.DataFrame:
    """Metrics of a training, one row per logged step.

    Raises
    ------
    UserError
        When the file is missing, a line is no JSON, or ``step`` is missing.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected the metrics of a pretraining, found no file; run pretrain")
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: expected one JSON object per line, found {error}") from None
    table = pd.DataFrame(lines)
    if len(table) and "step" not in table:
        raise UserError(f"{path}: expected the key 'step' in every line, found {list(table.columns)}")
    return table


TRAINING_PANELS = (
    ("loss", (("loss", "total"), ("cls_loss", "CLS"), ("ttr_loss", "TTR"), ("token_loss", "tokens"))),
    ("teacher-student similarity", (("similarity", "similarity"),)),
    ("coding rate", (("coding_rate", "coding rate"),)),
    ("effective rank of CLS projections", (("effective_rank", "effective rank"),)),
    ("sd of CLS projections", (("feature_sd", "student"), ("teacher_feature_sd", "teacher"))),
    ("cosine of two tokens of a crop", (("token_cosine", "token cosine"),)),
    ("gradient norm", (("gradient_norm", "gradient norm"),)),
    ("learning rate", (("learning_rate", "learning rate"),)),
    ("TTR weight", (("ttr_weight", "TTR weight"),)),
)


def training(metrics: pd.DataFrame, name: str, simulated: bool = False) -> Figure:
    """Losses, collapse monitors and schedules against the step; the TTR phase is shaded.

    Parameters
    ----------
    metrics : one row per logged step; columns that are absent leave their panel out.
    name : the encoder's name.
    """
    metrics = _where_computed(metrics)
    known = [(title, [(key, label) for key, label in lines if key in metrics]) for title, lines in TRAINING_PANELS]
    panels = [(title, lines) for title, lines in known if lines]
    figure, axes = new_figure(10.5, 2.7 * -(-len(panels) // 3) + 0.3, -(-len(panels) // 3), 3, simulated)
    phase = metrics.loc[metrics["ttr_weight"] > 0, "step"] if "ttr_weight" in metrics else pd.Series(dtype=float)
    window = max(1, len(metrics) // 50)
    for axis, (title, lines) in zip(axes.flat, panels, strict=False):
        if len(phase):
            label = "TTR phase" if axis is axes.flat[0] else None
            axis.axvspan(phase.min(), phase.max(), color="#fff0c2", zorder=0, label=label)
        for number, (key, label) in enumerate(lines):
            known_steps = metrics[["step", key]].dropna()
            smooth = known_steps[key].astype(float).rolling(window, center=True, min_periods=1).mean()
            if window > 1:
                axis.plot(known_steps["step"], known_steps[key], color=f"C{number}", alpha=0.2, linewidth=0.7)
            axis.plot(known_steps["step"], smooth, color=f"C{number}", linewidth=1.4, label=label)
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylabel(title, fontsize=8)
        axis.tick_params(labelsize=8)
        if axis is axes.flat[0] or len(lines) > 1:
            axis.legend(frameon=False, fontsize=7)
    axes.flat[0].set_title(name, fontsize=9, loc="left")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    return figure


def _where_computed(metrics: pd.DataFrame) -> pd.DataFrame:
    """Losses only of the steps that compute them: TTR while it has weight, tokens in masked steps."""
    metrics = metrics.copy()
    for loss, switch in (("ttr_loss", "ttr_weight"), ("token_loss", "masked")):
        if loss in metrics and switch in metrics:
            metrics[loss] = metrics[loss].where(metrics[switch].astype(float) > 0)
    return metrics


class Learned(NamedTuple):
    """What is shown of an encoder's weights.

    Attributes
    ----------
    networks : names of the rows of ``embedding``.
    embedding : network embedding, [N, D].
    filters : taps of the tokenizer's temporal filters by network, [channels, taps].
    initial_filters : the same before training.
    tr : seconds between samples, None when the shards have several TRs.
    """

    networks: tuple[str, ...]
    embedding: npt.NDArray[np.float64]
    filters: dict[str, npt.NDArray[np.float64]]
    initial_filters: dict[str, npt.NDArray[np.float64]]
    tr: float | None


def read_learned(folder: Path) -> Learned:
    """Weights of a folder of the stage pretrain, beside those it started from, which its seed gives again."""
    loaded = load_encoder(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(loaded.config["seed"])
        initial = build_encoder(loaded.config)
    encoder = loaded.encoder
    semantic = isinstance(encoder.tokenizer, SemanticTokenizer)
    names = encoder.networks.names if semantic else tuple(loaded.config["roi_names"])
    embedding = encoder.network_embedding.numpy().astype(np.float64)
    tr = (loaded.config.get("shard_settings") or {}).get("tr")
    return Learned(tuple(names), embedding, _filters(encoder), _filters(initial), tr)


def _filters(encoder: Encoder) -> dict[str, npt.NDArray[np.float64]]:
    return {name: taps.detach().numpy().astype(np.float64) for name, taps in encoder.tokenizer.filters().items()}


def cosine_similarity(embedding: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Cosine of each two rows, [N, N]."""
    units = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    product: npt.NDArray[np.float64] = units @ units.T
    return product


def principal_axes(embedding: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Coordinates [N, 2] of the rows on their first two principal axes, and the axes' shares of variance."""
    left, scale, _ = np.linalg.svd(embedding - embedding.mean(axis=0), full_matrices=False)
    coordinates, share = np.zeros((len(embedding), 2)), np.zeros(2)
    n_axes = min(2, len(scale))
    coordinates[:, :n_axes] = left[:, :n_axes] * scale[:n_axes]
    share[:n_axes] = scale[:n_axes] ** 2 / max(float((scale**2).sum()), 1e-30)
    return coordinates, share


def gain(taps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Amplitude response |H(f)| of filters [channels, taps] at ``FREQUENCIES`` points from 0 to Nyquist."""
    response: npt.NDArray[np.float64] = np.abs(np.fft.rfft(taps, n=2 * (FREQUENCIES - 1), axis=-1))
    return response


def learned(weights: Learned, name: str, simulated: bool = False) -> Figure:
    """Network embedding (cosine, principal axes) and temporal filters (gain; change against initialisation)."""
    figure, axes = new_figure(10.5, 9.0, 2, 2, simulated)
    _draw_similarity(axes[0, 0], weights)
    _draw_principal_axes(axes[0, 1], weights)
    _draw_gain(axes[1, 0], weights)
    _draw_gain_change(axes[1, 1], weights)
    axes[0, 0].set_title(f"{name}: similarity of network embeddings", fontsize=9, loc="left")
    return figure


def _draw_similarity(axis: Axes, weights: Learned) -> None:
    cosine = cosine_similarity(weights.embedding)
    others = cosine[~np.eye(len(cosine), dtype=bool)]
    limit = max(0.1, float(np.abs(others).max())) if others.size else 1.0
    image = axis.imshow(cosine, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    _name_networks(axis, weights.networks)
    _colour_bar(image, axis, "cosine (diagonal is 1)")


def _colour_bar(image: AxesImage, axis: Axes, label: str) -> None:
    bar = axis.figure.colorbar(image, ax=axis, shrink=0.8)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _name_networks(axis: Axes, names: Sequence[str], both: bool = True) -> None:
    """Names of the networks at the ticks, or only their number where they would not be legible."""
    if len(names) > 60:
        axis.set_ylabel("network", fontsize=8)
        if both:
            axis.set_xlabel("network", fontsize=8)
        return
    size = 8 if len(names) <= 20 else 5
    axis.set_yticks(range(len(names)), names, fontsize=size)
    if both:
        axis.set_xticks(range(len(names)), names, fontsize=size, rotation=90)


def _draw_principal_axes(axis: Axes, weights: Learned) -> None:
    coordinates, share = principal_axes(weights.embedding)
    axis.scatter(coordinates[:, 0], coordinates[:, 1], s=22, color="#0072B2")
    if len(weights.networks) <= 60:
        for (x, y), network in zip(coordinates, weights.networks, strict=True):
            axis.annotate(network, (x, y), xytext=(3, 3), textcoords="offset points", fontsize=7)
    axis.margins(x=0.25, y=0.1)
    axis.set_xlabel(f"first principal axis ({share[0]:.0%} of variance)", fontsize=8)
    axis.set_ylabel(f"second principal axis ({share[1]:.0%})", fontsize=8)
    axis.set_title("network embeddings", fontsize=9, loc="left")
    axis.tick_params(labelsize=8)


def _frequencies(tr: float | None) -> tuple[npt.NDArray[np.float64], str]:
    points = np.linspace(0, 0.5, FREQUENCIES)
    return (points, "frequency (cycles per sample)") if tr is None else (points / tr, "frequency (Hz)")


def _draw_gain(axis: Axes, weights: Learned) -> None:
    frequencies, label = _frequencies(weights.tr)
    for filters, words, colour in (
        (weights.initial_filters, "as initialised", "#E69F00"),
        (weights.filters, "pretrained", "#009E73"),
    ):
        low, middle, high = np.quantile(gain(np.concatenate(list(filters.values()))), (0.05, 0.5, 0.95), axis=0)
        axis.fill_between(frequencies, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.plot(frequencies, middle, color=colour, linewidth=1.4, label=f"{words}: median, 5 to 95 % of channels")
    axis.legend(frameon=False, fontsize=7)
    axis.set_ylim(bottom=0)
    axis.set_xlabel(label, fontsize=8)
    axis.set_ylabel("gain of the temporal filters", fontsize=8)
    axis.set_title("frequency response, all networks", fontsize=9, loc="left")
    axis.tick_params(labelsize=8)


def _draw_gain_change(axis: Axes, weights: Learned) -> None:
    frequencies, label = _frequencies(weights.tr)
    change = np.stack(
        [
            20 * np.log10(np.median(gain(taps), axis=0) / np.median(gain(weights.initial_filters[network]), axis=0))
            for network, taps in weights.filters.items()
        ]
    )
    limit = max(0.1, float(np.abs(change).max()))
    extent = (0.0, float(frequencies[-1]), len(change) - 0.5, -0.5)
    image = axis.imshow(change, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto", extent=extent)
    _name_networks(axis, tuple(weights.filters), both=False)
    axis.set_xlabel(label, fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_title("change of the median gain by pretraining", fontsize=9, loc="left")
    _colour_bar(image, axis, "dB")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: the figures of one pretrained encoder."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.encoder_figures", description=__doc__)
    parser.add_argument("--settings", default={}, type=json.loads, help="simulated")
    parser.add_argument("--encoder", required=True, type=Path, help="folder of the stage pretrain")
    parser.add_argument("--output-folder", required=True, type=Path, help="folder of the figures")
    arguments = parser.parse_args(argv)
    folder, simulated = arguments.encoder, bool(arguments.settings.get("simulated"))
    metrics = read_metrics(folder / "metrics.jsonl")
    if metrics.empty:
        raise UserError(f"{folder}: expected the metrics of a pretraining, found none: this encoder was not trained")
    save(training(metrics, folder.name, simulated), arguments.output_folder / f"{folder.name}_training.png")
    save(learned(read_learned(folder), folder.name, simulated), arguments.output_folder / f"{folder.name}_learned.png")


if __name__ == "__main__":
    run_command(main)
