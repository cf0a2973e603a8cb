"""What the figures show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluation_cases import write_shards
from matplotlib.figure import Figure
from semantoks import figures
from semantoks.errors import UserError

ROWS = ("majority", "confounds-logistic", "fc-logistic", "tiny-random-logistic", "tiny-logistic")


def table(tasks: tuple[str, ...] = ("sex", "age"), protocol: str = "random") -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = []
    for task in tasks:
        for place, row in enumerate(ROWS):
            mean = 0.5 + 0.05 * place
            rows.append(
                {
                    "protocol": protocol,
                    "phenotype": task,
                    "row": row,
                    "metric": "balanced_accuracy",
                    "primary": True,
                    "mean": mean,
                    "ci_low": mean - generator.uniform(0, 0.05),
                    "ci_high": mean + 0.05,
                    "transductive": float(row == "tiny-logistic"),
                    "published": 0.6 if row == "tiny-logistic" and task == "sex" else np.nan,
                }
            )
    return pd.DataFrame(rows)


def texts(figure: Figure) -> str:
    figure.canvas.draw()
    own = [
        text.get_text() for axis in figure.axes for text in axis.findobj(match=lambda item: hasattr(item, "get_text"))
    ]
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return "\n".join([*own, *legends, figure.get_suptitle()])


def no_overlap(figure: Figure) -> None:
    """Panels with their labels lie beside each other, inside the figure."""
    figure.canvas.draw()
    boxes = [axis.get_tightbbox() for axis in figure.axes if axis.get_visible()]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.width + 1
        assert box.y1 <= figure.bbox.height + 1
        for other in boxes[number + 1 :]:
            width = min(box.x1, other.x1) - max(box.x0, other.x0)
            height = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert width <= 1 or height <= 1


class TestForest:
    def test_every_mean_and_interval_is_drawn_where_it_belongs(self) -> None:
        scores = table()
        figure = figures.forest(scores)
        for axis in figure.axes:
            lines = {tuple(np.round(line.get_xdata(), 9)) for line in axis.get_lines()}
            for _, record in scores[scores["phenotype"] == axis.get_title()].iterrows():
                assert (round(record["ci_low"], 9), round(record["ci_high"], 9)) in lines
                assert (round(record["mean"], 9),) in {line[:1] for line in lines if len(line) == 1}

    def test_labels_axes_and_legend(self) -> None:
        shown = texts(figures.forest(table()))
        for word in (*ROWS, "sex", "age", "balanced accuracy", "transductive (open)", "published", "majority"):
            assert word in shown

    @pytest.mark.parametrize("n_tasks", [1, 2, 5, 23])
    def test_nothing_overlaps(self, n_tasks: int) -> None:
        no_overlap(figures.forest(table(tuple(f"null_{number:02d}" for number in range(n_tasks))), simulated=True))

    def test_references_come_first(self) -> None:
        axis = figures.forest(table().sample(frac=1, random_state=0)).axes[0]
        assert [label.get_text() for label in axis.get_yticklabels()] == list(ROWS)
        assert axis.yaxis_inverted()

    def test_simulated_data_are_announced(self) -> None:
        assert figures.SIMULATED in texts(figures.forest(table(), simulated=True))
        assert figures.SIMULATED not in texts(figures.forest(table()))


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
        figure = figures.training(figures.read_metrics(write_metrics(tmp_path / "metrics.jsonl")), "tiny_seed-0")
        for axis in figure.axes:
            if axis.get_visible():
                (phase,) = axis.patches
                assert (phase.get_x(), phase.get_x() + phase.get_width()) == (0, 3)
        assert "TTR phase" in texts(figure)
        no_overlap(figure)

    def test_losses_are_shown_in_the_steps_that_compute_them(self, tmp_path: Path) -> None:
        figure = figures.training(figures.read_metrics(write_metrics(tmp_path / "metrics.jsonl")), "tiny_seed-0")
        lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
        assert list(lines["TTR"].get_xdata()) == [0, 1, 2, 3]
        assert list(lines["tokens"].get_xdata()) == list(range(1, 40, 2))
        assert len(lines["total"].get_xdata()) == 40

    def test_fewer_keys_leave_panels_out(self) -> None:
        metrics = pd.DataFrame({"step": [0, 1, 2], "loss": [1.0, 0.5, 0.4]})
        visible = [axis for axis in figures.training(metrics, "x").axes if axis.get_visible()]
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
            figures.read_metrics(path)


class TestConnectivity:
    networks = ("A", "B", "A", "B", "A", "A")

    def test_mean_is_averaged_as_fisher_z_over_recordings_with_data(self, tmp_path: Path) -> None:
        generator = np.random.default_rng(0)
        bold = {name: generator.normal(size=(3, 200)) for name in ("01", "02")}
        valid = {"02": np.array([True, True, False])}
        made = figures.mean_connectivity([write_shards(tmp_path / "s.parquet", bold, valid)])
        one, two = (np.corrcoef(values.astype("<f2")) for values in bold.values())
        assert made[0, 1] == pytest.approx(np.tanh((np.arctanh(one[0, 1]) + np.arctanh(two[0, 1])) / 2), abs=1e-4)
        assert made[0, 2] == pytest.approx(one[0, 2], abs=1e-4)
        assert np.isnan(np.diag(made)).all()

    def test_rois_are_ordered_by_network(self) -> None:
        matrix = np.arange(36.0).reshape(6, 6) / 36
        figure = figures.connectivity(matrix, self.networks)
        shown = figure.axes[0].images[0].get_array()
        order = [0, 2, 4, 5, 1, 3]
        np.testing.assert_allclose(shown, matrix[np.ix_(order, order)])
        assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["A", "B"]
        np.testing.assert_allclose(figure.axes[0].get_xticks(), [1.5, 4.5])
        no_overlap(figure)


def test_command_line_names_files_after_cohort_protocol_and_encoder(tmp_path: Path) -> None:
    scores = pd.concat([table(), table(protocol="leave-site-out")])
    scores.to_csv(tmp_path / "small.tsv", sep="\t", index=False, na_rep="n/a")
    metrics = write_metrics(tmp_path / "tiny_seed-0" / "metrics.jsonl")
    empty = tmp_path / "tiny-random_seed-0" / "metrics.jsonl"
    empty.parent.mkdir()
    empty.write_text("")
    shard = write_shards(tmp_path / "part-0001.parquet", {"01": np.random.default_rng(0).normal(size=(4, 50))})
    options = ["--tables", str(tmp_path / "small.tsv"), "--metrics", str(metrics), str(empty), "--shards", str(shard)]
    for name in ("one", "two"):
        figures.main([*options, "--output-folder", str(tmp_path / name)])
    names = ["small_connectivity", "small_probes_leave-site-out", "small_probes_random", "tiny_seed-0_training"]
    assert sorted(path.stem for path in (tmp_path / "one").iterdir()) == names
    for name in names:
        assert (tmp_path / "one" / f"{name}.png").read_bytes() == (tmp_path / "two" / f"{name}.png").read_bytes()
