"""Data order: one random recording per participant and epoch, a function of seed and step only."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from semantoks.errors import UserError
from semantoks.training.sampling import Sampler


def table(recordings=(1, 3, 2, 1, 1, 2)):
    rows = [("c", f"{p:02d}", f"sub-{p:02d}_run-{r}") for p, n in enumerate(recordings) for r in range(n)]
    frame = pd.DataFrame(rows, columns=["cohort", "participant_id", "recording_id"])
    return frame.assign(session_id=None)


def epoch_scans(sampler, epoch):
    steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
    return np.concatenate([sampler.draw(step).scans for step in steps])


def test_each_epoch_takes_each_participant_once():
    corpus = table()
    sampler = Sampler(corpus, 2, seed=0, mask_probability=0.5)
    assert (sampler.steps_per_epoch, sampler.n_participants) == (3, 6)
    for epoch in range(20):
        participants = corpus.iloc[epoch_scans(sampler, epoch)]["participant_id"]
        assert sorted(participants) == sorted(corpus["participant_id"].unique())


def test_recordings_of_a_participant_are_equally_likely():
    corpus = table()
    sampler = Sampler(corpus, 6, seed=0, mask_probability=0.5)
    chosen = np.concatenate([epoch_scans(sampler, epoch) for epoch in range(3000)])
    counts = np.bincount(chosen, minlength=len(corpus))
    for participant, rows in corpus.groupby("participant_id"):
        expected = 3000 / len(rows)
        assert (np.abs(counts[rows.index] - expected) < 5 * np.sqrt(expected)).all(), participant


def test_the_rest_of_an_epoch_is_dropped_and_the_order_changes():
    sampler = Sampler(table((1,) * 7), 3, seed=0, mask_probability=0.5)
    assert sampler.steps_per_epoch == 2
    epochs = [tuple(epoch_scans(sampler, epoch)) for epoch in range(5)]
    assert len(set(epochs)) == 5
    assert len(set().union(*epochs)) == 7


def test_a_corpus_smaller_than_a_batch_is_used_whole():
    sampler = Sampler(table((1,) * 5), 512, seed=0, mask_probability=0.5)
    assert (sampler.batch, sampler.steps_per_epoch) == (5, 1)


def test_one_participant_is_an_error():
    with pytest.raises(UserError, match="at least two participants, found 1"):
        Sampler(table((4,)), 8, seed=0, mask_probability=0.5)


def test_equal_ids_in_two_cohorts_are_two_participants():
    both = pd.concat([table((1, 1)), table((1, 1)).assign(cohort="d")], ignore_index=True)
    assert Sampler(both, 8, seed=0, mask_probability=0.5).n_participants == 4


def test_draws_depend_on_seed_and_step_and_not_on_row_order_or_history():
    corpus = table()
    shuffled = corpus.sample(frac=1, random_state=1).reset_index(drop=True)
    a, b = Sampler(corpus, 3, 7, 0.5), Sampler(shuffled, 3, 7, 0.5)
    for step in (5, 0, 3):
        first, second = a.draw(step), b.draw(step)
        ids = corpus["recording_id"].to_numpy()[first.scans]
        assert (ids == shuffled["recording_id"].to_numpy()[second.scans]).all()
        np.testing.assert_array_equal(first.uniform, second.uniform)
    assert not np.array_equal(a.draw(0).uniform, Sampler(corpus, 3, 8, 0.5).draw(0).uniform)


def test_coin_and_generator():
    sampler = Sampler(table(), 3, 0, 0.25)
    masked = [sampler.draw(step).masked for step in range(4000)]
    assert abs(np.mean(masked) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)
    cpu = torch.device("cpu")
    draws = [torch.rand(3, generator=sampler.generator(step, cpu)) for step in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_crop_starts_are_uniform_and_independent():
    uniform = np.concatenate([Sampler(table((1,) * 50), 50, 0, 0.5).draw(step).uniform for step in range(400)], axis=1)
    assert np.abs(np.histogram(uniform, bins=81, range=(0, 1))[0] - 40000 / 81).max() < 5 * np.sqrt(40000 / 81)
    assert abs(np.corrcoef(uniform)[0, 1]) < 5 / np.sqrt(20000)
