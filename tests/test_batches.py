"""Views of a step: from the right scans, ahead of time or not, with what is absent marked."""

from __future__ import annotations

import numpy as np
import torch
from fake_shards import interleaved, write_shard
from semantoks.training.batches import Batches, canonical_networks
from semantoks.training.corpus import Corpus, load_corpus
from semantoks.training.sampling import Sampler
from semantoks.training.settings import PretrainSettings, resolve_settings

CPU = torch.device("cpu")
PLAIN = {"preset": "tiny", "views": {"crop": 60, "noise": 0.0, "scale": 0.0, "zeroed_rois": 0.0, "zeroed_samples": 0.0}}


def make(corpus: Corpus, given) -> tuple[Batches, Sampler, PretrainSettings]:
    settings = resolve_settings(given)
    sampler = Sampler(corpus.table, 4, 0, settings.masks.probability)
    return Batches(corpus, sampler, settings, CPU), sampler, settings


def test_views_are_two_crops_of_the_drawn_scans(tmp_path):
    """Starts are uniform on 0 … T − crop; the first half of the batch is view 1."""
    corpus = load_corpus([write_shard(tmp_path / "a.parquet", 6, [60, 61, 80, 100, 75, 64])])
    batches, sampler, _ = make(corpus, PLAIN)
    for step, views in enumerate(batches(0, 5)):
        draw = sampler.draw(step)
        assert views.bold.shape == (8, 12, 60)
        assert views.present is None
        assert (views.mask is not None) == draw.masked
        starts = np.floor(draw.uniform * (corpus.lengths.numpy()[draw.scans] - 59)).astype(int)
        for view in range(2):
            scans, first = torch.from_numpy(draw.scans), torch.from_numpy(starts[view])
            assert torch.equal(views.bold[4 * view : 4 * view + 4], corpus.crops(scans, first, 60))


def test_views_cut_ahead_are_the_same(tmp_path, monkeypatch):
    corpus = load_corpus([write_shard(tmp_path / "a.parquet", 6, 80)])
    given = {"preset": "tiny", "views": {"crop": 60}}
    at_once = list(make(corpus, given)[0](3, 8))
    monkeypatch.setattr(Batches, "_prefetch", True)
    ahead = list(make(corpus, given)[0](3, 8))
    assert len(ahead) == len(at_once) == 5
    for a, b in zip(ahead, at_once, strict=True):
        assert torch.equal(a.bold, b.bold)
        assert (a.mask is None) == (b.mask is None)
        assert a.mask is None or torch.equal(a.mask, b.mask)


def test_absent_networks_and_padding_are_never_in_a_mask(tmp_path):
    valid = np.ones((6, 12), dtype=bool)
    valid[2, [label == "C" for label in interleaved((5, 3, 4))]] = False
    corpus = load_corpus([write_shard(tmp_path / "a.parquet", 6, [60, 45, 60, 60, 41, 60], valid=valid)])
    given = {"preset": "tiny", "views": {"crop": 60}, "masks": {"probability": 1.0}}
    for views in make(corpus, given)[0](0, 20):
        present = views.present.repeat(2, 1, 1)
        assert not (views.mask & ~present).any()
        assert views.mask.any(dim=(1, 2)).all()
        assert (present & ~views.mask).any(dim=(1, 2)).all()


def test_canonical_networks(tmp_path):
    names = ["Vis_1", "Default_1", "Vis_2", "Vis_1", "Default_2", *["Cont"] * 7]
    corpus = load_corpus([write_shard(tmp_path / "a.parquet", 2, networks=names)])
    semantic = resolve_settings({"masks": {"canonical": True}})
    assert corpus.networks.names == ("Vis_1", "Default_1", "Vis_2", "Default_2", "Cont")
    assert canonical_networks(corpus, semantic).tolist() == [0, 1, 0, 1, 4]
    linear = resolve_settings({"masks": {"canonical": True}, "model": {"tokenizer": "linear"}})
    assert canonical_networks(corpus, linear).tolist() == list(corpus.networks.of_roi)
    assert canonical_networks(corpus, resolve_settings({})) is None
