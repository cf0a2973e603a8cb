"""What the figures of an encoder show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_shards import write_shard
from figure_checks import no_overlap, texts
from scipy import signal
from semantoks import encoder_figures
from semantoks.encoder_figures import Learned, cosine_similarity, gain, learned, principal_axes, read_learned
from semantoks.errors import UserError
from semantoks.model.encoder_folder import load_encoder
from semantoks.pretrain import pretrain
from semantoks.training.settings import resolve_settings


def write_metrics(path: Path, steps: int = 40) -> Path:
    lines = [
        {
            "step": step,
            "loss": -1 - step / steps,
            "cls_loss": -1.0,
            "ttr_loss": -0.5 if step < 4 else 0.0,
            "token_loss": -0.3 if step % 2 else 0.0,
            "ttr_weight": 0.5 if step < 4 else 0.0,
            "masked": bool(step % 2),
            "coding_rate": step / steps,
            "effective_rank": 10 + step,
            "learning_rate": 1e-3,
            "gradient_norm": 1.0,
            "something_new": None,
        }
        for step in range(steps)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class TestTraining:
    def test_the_ttr_phase_is_marked_where_it_has_weight(self, tmp_path: Path) -> None:
        figure = encoder_figures.training(
            encoder_figures.read_metrics(write_metrics(tmp_path / "metrics.jsonl")), "tiny_seed-0"
        )
        for axis in figure.axes:
            if axis.get_visible():
                (phase,) = axis.patches
                assert (phase.get_x(), phase.get_x() + phase.get_width()) == (0, 3)
        assert "TTR phase" in texts(figure)
        no_overlap(figure)

    def test_losses_are_shown_in_the_steps_that_compute_them(self, tmp_path: Path) -> None:
        figure = encoder_figures.training(
            encoder_figures.read_metrics(write_metrics(tmp_path / "metrics.jsonl")), "tiny_seed-0"
        )
        lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
        assert list(lines["TTR"].get_xdata()) == [0, 1, 2, 3]
        assert list(lines["tokens"].get_xdata()) == list(range(1, 40, 2))
        assert len(lines["total"].get_xdata()) == 40

    def test_fewer_keys_leave_panels_out(self) -> None:
        metrics = pd.DataFrame({"step": [0, 1, 2], "loss": [1.0, 0.5, 0.4]})
        visible = [axis for axis in encoder_figures.training(metrics, "x").axes if axis.get_visible()]
        assert len(visible) == 1

    @pytest.mark.parametrize(
        ("content", "message"),
        [("{", "one JSON object per line"), ('{"loss": 1}\n', "the key 'step'"), (None, "no file")],
    )
    def test_broken_metrics(self, tmp_path: Path, content: str | None, message: str) -> None:
        path = tmp_path / "metrics.jsonl"
        if content is not None:
            path.write_text(content)
        with pytest.raises(UserError, match=message):
            encoder_figures.read_metrics(path)


def weights(n_networks: int, tr: float | None = 2.0) -> Learned:
    generator = np.random.default_rng(0)
    names = tuple(f"network {number}" for number in range(n_networks))
    filters = {name: generator.normal(size=(5, 16)) for name in names}
    initial = {name: generator.normal(size=(5, 16)) for name in names}
    return Learned(names, generator.normal(size=(n_networks, 8)), filters, initial, tr)


class TestLearned:
    def test_gain_is_the_amplitude_response_of_the_filters(self) -> None:
        taps = np.random.default_rng(0).normal(size=(3, 16))
        for channel, response in zip(taps, gain(taps), strict=True):
            _, expected = signal.freqz(channel, worN=np.linspace(0, np.pi, encoder_figures.FREQUENCIES))
            np.testing.assert_allclose(response, np.abs(expected), atol=1e-12)

    def test_similar_networks_are_drawn_near_each_other(self) -> None:
        one, other = np.eye(6)[0], np.eye(6)[1]
        embedding = np.stack([one, 1.01 * one, other, other * 0.99])
        np.testing.assert_allclose(cosine_similarity(embedding), np.kron(np.eye(2), np.ones((2, 2))), atol=1e-12)
        coordinates, share = principal_axes(embedding)
        assert share[0] > 0.99
        assert abs(coordinates[0, 0] - coordinates[1, 0]) < 0.05 < abs(coordinates[0, 0] - coordinates[2, 0])

    def test_one_network_has_no_axes(self) -> None:
        coordinates, share = principal_axes(np.ones((1, 4)))
        assert (coordinates == 0).all()
        assert (share == 0).all()

    @pytest.mark.parametrize("n_networks", [1, 9, 20, 58, 457])
    def test_every_number_of_networks_is_legible(self, n_networks: int) -> None:
        figure = learned(weights(n_networks), "tiny_seed-0", simulated=True)
        assert "frequency (Hz)" in texts(figure)
        no_overlap(figure)

    def test_several_trs_leave_frequencies_in_samples(self) -> None:
        shown = texts(learned(weights(3, tr=None), "tiny_seed-0"))
        assert "cycles per sample" in shown
        assert "Hz" not in shown


class TestOfATrainedEncoder:
    @pytest.fixture(scope="class")
    @staticmethod
    def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("encoders")
        settings = resolve_settings({"preset": "tiny", "views": {"crop": 60}, "optimiser": {"epochs": 2, "batch": 6}})
        shard = write_shard(folder / "shard.parquet", n_frames=80)
        pretrain([shard], settings, 3, folder / "tiny_seed-3")
        pretrain([shard], settings, 3, folder / "tiny-random_seed-3", random_initialisation=True)
        return folder

    def test_the_start_is_the_encoder_as_initialised(self, encoders: Path) -> None:
        trained, untrained = read_learned(encoders / "tiny_seed-3"), read_learned(encoders / "tiny-random_seed-3")
        assert trained.networks == ("A", "B", "C")
        assert trained.tr == 2.0
        for network in trained.networks:
            np.testing.assert_array_equal(trained.initial_filters[network], untrained.filters[network])
            assert not np.array_equal(trained.filters[network], untrained.filters[network])

    def test_filters_are_those_of_the_tokenizer(self, encoders: Path) -> None:
        """An impulse in the middle of a patch comes out as the filter, seen through the channel's own matrix."""
        tokenizer = load_encoder(encoders / "tiny_seed-3").encoder.tokenizer
        matrices = tokenizer._toeplitz_matrices()[tokenizer.live_channels]
        start = 0
        for taps in tokenizer.filters().values():
            for channel in range(len(taps)):
                response = matrices[start + channel][:, 10]
                expected = [taps[channel][out - 10 + 8] if 0 <= out - 2 < 16 else 0.0 for out in range(20)]
                np.testing.assert_allclose(response, expected, atol=1e-6)
            start += len(taps)

    def test_the_same_files_twice(self, encoders: Path, tmp_path: Path) -> None:
        for name in ("one", "two"):
            encoder_figures.main(["--encoder", str(encoders / "tiny_seed-3"), "--output-folder", str(tmp_path / name)])
        for name in ("tiny_seed-3_training.png", "tiny_seed-3_learned.png"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

    def test_an_untrained_encoder_has_no_curves(self, encoders: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="was not trained"):
            encoder_figures.main(["--encoder", str(encoders / "tiny-random_seed-3"), "--output-folder", str(tmp_path)])
