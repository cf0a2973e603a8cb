"""How fast this machine trains and encodes, per preset and precision, and where the time of a step goes.

A training step is what the stage does: views, augmentation, masks, both encoders, heads, backward, clipping, AdamW,
teacher update; every other step is masked, TTR is off. Rates are medians after warm-up. Shares of peak count the
arithmetic of the authors' formulation (46.8 GFLOP per scan and step for semantoks-base), whatever is really computed,
against the fastest matrix product measured here. Run it on a quiet machine:

    PYTHONPATH=workflow python benchmarks/pretrain.py --presets semantoks-base small --batch 64
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from semantoks.embed import EmbedSettings, all_crops, encode
from semantoks.files import write_table
from semantoks.model.networks import NetworkTable
from semantoks.model.tokenizer import SemanticTokenizer
from semantoks.objectives.self_distillation import SelfDistillation
from semantoks.pretrain import compile_encoders, make_objective
from semantoks.training.batches import Batches
from semantoks.training.corpus import Corpus, load_corpus
from semantoks.training.device import choose_device, choose_precision, compute_reproducibly, keep_freed_memory
from semantoks.training.optimiser import make_optimiser, optimiser_step
from semantoks.training.sampling import Sampler
from semantoks.training.settings import PRESETS, PretrainSettings, resolve_settings
from semantoks.training.step import forward_backward
from semantoks.weights import PUBLISHED_RUNS

N_FRAMES = 180
UNREGULARISED = {"ttr": 0.0}


@dataclass
class Row:
    """One line of the table."""

    preset: str
    precision: str
    parameters: int
    batch: int
    training: float
    training_share: float
    encoding: float
    encoding_share: float
    peak_gib: float


def write_shards(folder: Path, n_scans: int) -> list[Path]:
    """Shards of random scans with the published network table, 50 scans each."""
    labels = [str(network) for network, length in PUBLISHED_RUNS for _ in range(length)]
    rng, paths = np.random.default_rng(0), []
    for first in range(0, n_scans, 50):
        names = [f"{index:05d}" for index in range(first, min(first + 50, n_scans))]
        table = pd.DataFrame({"cohort": "random", "participant_id": names, "session_id": None, "recording_id": names})
        scans = [rng.standard_normal((len(labels), N_FRAMES), dtype=np.float32).astype("<f2").tobytes() for _ in names]
        table = table.assign(
            n_rois=len(labels), n_frames=N_FRAMES, valid=[[True] * len(labels)] * len(names), bold=scans
        )
        metadata = {
            "atlas": {"name": "random", "sha256": "none"},
            "roi_names": [f"roi-{index}" for index in range(len(labels))],
            "networks": labels,
            "settings": {"tr": 2.0},
        }
        paths.append(folder / f"{first:05d}.parquet")
        write_table(paths[-1], table, metadata)
    return paths


def flops_per_view(settings: PretrainSettings, networks: NetworkTable) -> float:
    """Arithmetic of one forward pass of one crop in the authors' formulation (head twice on all tokens)."""
    model, n_patches = settings.model, settings.views.crop // settings.model.patch
    n_tokens, n_samples = len(networks.names) * n_patches + 1, n_patches * model.patch
    tokenizer = SemanticTokenizer(networks, model.width, model.dense_width, model.patch)
    n_channels = sum(heads * size for heads, size in zip(tokenizer.heads, networks.sizes, strict=True))
    dense = 2 * networks.n_rois * 3 * model.dense_width * n_samples
    long = 2 * n_channels * (16 + model.width - model.dense_width) * n_samples
    linear = 2 * n_tokens * (4 * model.width**2 + 2 * model.width * model.mlp_width)
    attention = 4 * n_tokens**2 * model.width
    head = 2 * (model.width * model.projection_hidden + model.projection_hidden * model.projection_width)
    return dense + long + model.depth * (linear + attention) + head * (2 * n_tokens + len(networks.names))


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several large matrix products."""
    best = 0.0
    for size in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        best = max(best, 2 * size**3 / min(timed(lambda a=a, b=b: a @ b, device, 5)))
    return best


def timed(function: Callable[[], object], device: torch.device, repetitions: int, warm_up: int = 2) -> list[float]:
    """Seconds of each repetition after warm-up."""
    seconds = []
    for repetition in range(warm_up + repetitions):
        synchronise(device)
        start = time.perf_counter()
        function()
        synchronise(device)
        if repetition >= warm_up:
            seconds.append(time.perf_counter() - start)
    return seconds


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Training:
    """A training whose steps can be taken one by one, whole or in parts."""

    def __init__(
        self, corpus: Corpus, settings: PretrainSettings, device: torch.device, precision: torch.dtype
    ) -> None:
        self.settings, self.device, self.precision = settings, device, precision
        self.sampler = Sampler(corpus.table, settings.optimiser.batch, 0, settings.masks.probability)
        self.objective: SelfDistillation = make_objective(settings, corpus, 0).to(device)
        compile_encoders(self.objective, settings, device)
        self.optimiser = make_optimiser(self.objective.trained())
        self.views = Batches(corpus, self.sampler, settings, device)(0, 10**9)

    def step(self, masked: bool) -> None:
        """One whole step, views and masks included; masks are always drawn, and left out of an unmasked step."""
        views = next(self.views)
        if not masked:
            views = views._replace(mask=None)
        forward_backward(self.objective, views, UNREGULARISED, self.settings.optimiser, self.precision)
        optimiser_step(self.optimiser, 1e-4, 0.05, 1.0)
        self.objective.after_step(0.99)

    def parts(self, repetitions: int) -> dict[str, float]:
        """Median seconds of each part of a masked step."""
        device, objective, views = self.device, self.objective, next(self.views)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16)

        def student() -> object:
            with autocast:
                return objective.predictions(views, UNREGULARISED)

        def teacher() -> object:
            with autocast:
                return objective.targets(views, UNREGULARISED)

        def forward_and_backward() -> None:
            forward_backward(objective, views, UNREGULARISED, self.settings.optimiser, self.precision)

        found = {
            "views and masks": timed(lambda: next(self.views), device, repetitions),
            "teacher": timed(teacher, device, repetitions),
            "student": timed(student, device, repetitions),
            "both, losses, backward": timed(forward_and_backward, device, repetitions),
        }
        seconds = {name: statistics.median(values) for name, values in found.items()}
        whole = seconds.pop("both, losses, backward")
        seconds["losses and backward"] = whole - seconds["teacher"] - seconds["student"]
        gradients = [parameter.grad for parameter in objective.student.parameters()]

        def clip_and_update() -> None:
            for parameter, gradient in zip(objective.student.parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimiser_step(self.optimiser, 1e-4, 0.05, 1.0)

        seconds["clip and AdamW"] = statistics.median(timed(clip_and_update, device, repetitions))
        seconds["teacher update"] = statistics.median(timed(lambda: objective.after_step(0.99), device, repetitions))
        return seconds


def measure(
    preset: str,
    precision: torch.dtype,
    peak: float,
    corpus: Corpus,
    arguments: argparse.Namespace,
    device: torch.device,
) -> tuple[Row, dict[str, float]]:
    """Rates of one preset in one precision, and the parts of its step."""
    settings = resolve_settings(
        {
            "preset": preset,
            "optimiser": {"batch": arguments.batch},
            "masks": {"probability": 1.0},
            "run": {"compile": arguments.compile},
        }
    )
    torch.compiler.reset()  # only so many variants of one function are compiled in a process
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    training = Training(corpus, settings, device, precision)
    masked = iter([True, False] * (arguments.repetitions + 2))
    seconds = timed(lambda: training.step(next(masked)), device, 2 * arguments.repetitions, warm_up=2)
    pairs = [(a + b) / 2 for a, b in zip(seconds[::2], seconds[1::2], strict=True)]
    training_rate = training.sampler.batch / statistics.median(pairs)
    memory = _resident_gib()
    if device.type == "cuda":
        memory = (torch.cuda.max_memory_allocated(device) - corpus.frames.nbytes) / 2**30
    parts = training.parts(max(3, arguments.repetitions // 3))

    embed_settings = EmbedSettings(
        batch=arguments.batch, precision="bf16" if precision == torch.bfloat16 else "float32"
    )
    crops = all_crops(corpus, settings.views.crop, 8).iloc[: arguments.batch * (arguments.repetitions + 2)]
    encoder = training.objective.teacher.encoder.eval()
    batches = encode(encoder, corpus, crops, settings.views.crop, embed_settings, device)
    torch.compiler.set_stance("force_eager")  # the stage embed compiles nothing
    encode_seconds = timed(lambda: next(batches), device, len(crops) // arguments.batch - 2)
    torch.compiler.set_stance("default")
    encoding_rate = arguments.batch / statistics.median(encode_seconds)

    flops = flops_per_view(settings, corpus.networks)
    tokenizer = encoder.tokenizer
    assert isinstance(tokenizer, SemanticTokenizer)
    others = sum(p.numel() for name, p in encoder.named_parameters() if not name.startswith("tokenizer"))
    row = Row(
        preset,
        str(precision).removeprefix("torch."),
        others + tokenizer.n_live_parameters,
        training.sampler.batch,
        training_rate,
        training_rate * 8 * flops / peak,
        encoding_rate,
        encoding_rate * flops / peak,
        memory,
    )
    return row, parts


def _resident_gib() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table for this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["small", "semantoks-base"], choices=sorted(PRESETS))
    parser.add_argument("--precisions", nargs="+", default=["float32", "bf16"], choices=["float32", "bf16"])
    parser.add_argument("--batch", type=int, help="scans per step; 64 on a CPU and 512 on a GPU unless given")
    parser.add_argument("--repetitions", type=int, default=10, help="pairs of a masked and an unmasked step")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", default="auto", choices=["auto", "on", "off"])
    arguments = parser.parse_args(argv)
    device = choose_device(arguments.device)
    if device.type == "cpu":
        keep_freed_memory()
    compute_reproducibly(device)
    arguments.batch = arguments.batch or (512 if device.type == "cuda" else 64)
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), 2 * arguments.batch)
        start = time.perf_counter()
        corpus = load_corpus(shards)
        seconds = time.perf_counter() - start
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}; torch {torch.__version__}")
    print(f"shards: {len(corpus) / seconds:,.0f} scans/s read ({corpus.frames.nbytes / seconds / 2**20:,.0f} MiB/s)")
    corpus = corpus.to(device)
    for precision_name in arguments.precisions:
        precision = choose_precision(precision_name, device)
        peak = matmul_peak(device, precision)
        print(f"\n{precision_name}: matrix product {peak / 1e12:.3f} TFLOP/s")
        for preset in arguments.presets:
            row, parts = measure(preset, precision, peak, corpus, arguments, device)
            whose = "beside the corpus" if device.type == "cuda" else "of the process so far"
            print(
                f"  {row.preset}: {row.parameters:,} encoder parameters, batch {row.batch}, peak memory "
                f"{row.peak_gib:.1f} GiB ({whose})\n"
                f"    training {row.training:,.1f} scans/s ({row.training_share:.0%} of peak)\n"
                f"    encoding {row.encoding:,.1f} crops/s ({row.encoding_share:.0%} of peak)"
            )
            whole = sum(parts.values())
            for part, value in parts.items():
                print(f"    {part:<22} {1000 * value:>9.1f} ms {value / whole:>5.0%}")


if __name__ == "__main__":
    main()
