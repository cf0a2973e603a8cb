"""No step waits for the device: none of the operations that need a value on the host is called in one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_shards import interleaved, write_shard
from semantoks.pretrain import make_objective
from semantoks.training.batches import Batches
from semantoks.training.corpus import load_corpus
from semantoks.training.optimiser import make_optimiser, optimiser_step
from semantoks.training.sampling import Sampler
from semantoks.training.settings import resolve_settings
from semantoks.training.step import forward_backward
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal")


class NoHostValues(TorchDispatchMode):
    """Raises where an operation's result, or the shape of it, must be known on the host."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        boolean_index = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in arguments[1]
        )
        if name in WAITING or boolean_index:
            raise AssertionError(f"{name} makes the host wait for the device")
        return function(*arguments, **(keywords or {}))


def test_the_watch_notices():
    values = torch.arange(4.0)
    for wait in (
        lambda: values.sum().item(),
        lambda: values[values > 1],
        lambda: values.nonzero(),
        lambda: bool(values[0]),
    ):
        with pytest.raises(AssertionError, match="wait"), NoHostValues():
            wait()


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("kind", ["slice", "random"])
def test_a_step_does_not_wait(tmp_path, absent, micro_batches, kind):
    """Views, masks, both encoders, heads, losses, backward, clipping, AdamW, teacher."""
    valid = np.ones((12, 12), dtype=bool)
    if absent:
        valid[::3, [label == "B" for label in interleaved((5, 3, 4))]] = False
    corpus = load_corpus([write_shard(tmp_path / "a.parquet", 12, 75, valid=valid)])
    settings = resolve_settings(
        {
            "preset": "tiny",
            "views": {"crop": 60},
            "masks": {"probability": 1.0, "kind": kind},
            "optimiser": {"batch": 6, "micro_batches": micro_batches},
        }
    )
    objective = make_objective(settings, corpus, 0)
    optimiser = make_optimiser(objective.trained())
    sampler = Sampler(corpus.table, 6, 0, settings.masks.probability)
    batches = Batches(corpus, sampler, settings, torch.device("cpu"))(0, 3)
    with NoHostValues():
        for views in batches:
            assert views.mask is not None
            forward_backward(objective, views, {"ttr": 0.5}, settings.optimiser)
            optimiser_step(optimiser, 1e-3, 0.05, 1.0)
            objective.after_step(0.99)
