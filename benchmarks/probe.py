"""How long the published protocol takes: every rate and repetition of a phenotype trained as one batched problem.

Random features of 821 participants × 8 crops × 1,536, 10 repetitions × 6 rates = 60 heads, 50 full epochs, the rate
chosen on the validation part, no refit (the published protocol has none). ``--alone`` also trains some heads one at a
time with torch's own modules and compares their logits. Run it on a quiet machine:

    PYTHONPATH=workflow python benchmarks/probe.py
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch
from semantoks.baselines.features import CropFeatures
from semantoks.baselines.published_head import batches_of, epoch_orders, initial_parameters, train
from semantoks.baselines.published_probe import Samples, predict_published
from semantoks.baselines.tasks import Task
from semantoks.phenotypes import Phenotype
from sklearn.model_selection import train_test_split

N_PARTICIPANTS, N_CROPS, N_FEATURES, N_REPETITIONS = 821, 8, 1536, 10
SETTINGS = {"rates": [3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4], "epochs": 50, "refit": False}


def problem() -> tuple[CropFeatures, list[Task]]:
    """Features that know the class a little, and the ten published splits."""
    generator = np.random.default_rng(0)
    target = generator.integers(0, 2, N_PARTICIPANTS)
    crops = generator.standard_normal((N_PARTICIPANTS, N_CROPS, N_FEATURES), dtype=np.float32)
    crops[:, :, 0] += target[:, None]
    names = [f"{number:04d}" for number in range(N_PARTICIPANTS)]
    features = CropFeatures("cls_avg", names, crops, np.ones((N_PARTICIPANTS, N_CROPS), bool), "benchmark_seed-0")
    tasks = []
    for repetition in range(N_REPETITIONS):
        rest, test = train_test_split(np.arange(N_PARTICIPANTS), test_size=0.2, random_state=repetition)
        training, validation = train_test_split(rest, test_size=0.25, random_state=repetition)
        parts = (np.sort(part) for part in (training, validation, test))
        phenotype = Phenotype("group", "group", "classification")
        tasks.append(Task(phenotype, "random", repetition, "0", "", *parts, target, 2, None))
    return features, tasks


def alone(samples: Samples, task: Task, rate: float) -> torch.Tensor:
    """Test logits of one head, by torch's BatchNorm1d, Linear, SGD and autograd."""
    part = samples.problem(task, task.training)
    head = torch.nn.Sequential(torch.nn.BatchNorm1d(N_FEATURES), torch.nn.Linear(N_FEATURES, 2))
    weight, bias = initial_parameters(N_FEATURES, 2, part.seed)
    head[1].weight.data.copy_(weight)
    head[1].bias.data.copy_(bias)
    optimiser = torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9)
    rows, target = torch.from_numpy(part.training), torch.as_tensor(part.target[part.training])
    for order in epoch_orders(len(rows), SETTINGS["epochs"], part.seed):
        for chosen in order.split(batches_of(len(rows))):
            optimiser.zero_grad()
            error = torch.nn.functional.cross_entropy(head(samples.values[rows[chosen]]), target[chosen])
            error.backward()
            optimiser.step()
    with torch.inference_mode():
        return head.eval()(samples.values[torch.from_numpy(samples.of(task.test))])


def compare(features: CropFeatures, tasks: list[Task], n_heads: int) -> None:
    """Time heads one at a time and say how far their logits are from the batched ones."""
    samples = Samples(features, "cpu")
    rates = SETTINGS["rates"]
    heads = train(samples.values, [samples.problem(tasks[0], tasks[0].training)], [rates], SETTINGS["epochs"])
    began, furthest = time.perf_counter(), 0.0
    for column in range(n_heads):
        expected = alone(samples, tasks[0], rates[column])
        made = samples.logits(heads, 0, tasks[0].test)[:, column]
        furthest = max(furthest, float((made - expected).abs().max() / expected.abs().max()))
    each = (time.perf_counter() - began) / n_heads
    total = each * len(tasks) * len(rates)
    print(
        f"one head at a time: {each:.2f} s per head, {total:.0f} s for all; furthest logit {furthest:.1e} of the "
        "largest"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--alone", type=int, default=0, metavar="HEADS", help="also train so many heads one at a time")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    features, tasks = problem()
    began = time.perf_counter()
    found = list(predict_published(features, tasks, SETTINGS, arguments.device))
    seconds = time.perf_counter() - began
    right = np.mean([(made.scores.argmax(1) == task.target[task.test]).mean() for task, made in found])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{len(found)} repetitions × {len(SETTINGS['rates'])} rates × {SETTINGS['epochs']} epochs, {N_PARTICIPANTS} "
        f"participants × {N_CROPS} crops × {N_FEATURES} features on {arguments.threads} threads ({arguments.device}): "
        f"{seconds:.1f} s, {memory:.1f} GiB, test accuracy {right:.3f}"
    )
    if arguments.alone:
        compare(features, tasks, arguments.alone)


if __name__ == "__main__":
    main()
