"""What the figures show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from figure_checks import no_overlap, texts
from semantoks import drawing, figures

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
                    "negative_control": task.startswith("null"),
                    "p_majority": np.nan if row == "majority" else generator.uniform(),
                    "published": 0.6 if row == "tiny-logistic" and task == "sex" else np.nan,
                }
            )
    return pd.DataFrame(rows)


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
        no_overlap(figures.forest(table(tuple(f"task_{number:02d}" for number in range(n_tasks))), simulated=True))

    def test_negative_controls_share_a_panel_with_every_p_of_theirs(self) -> None:
        scores = table(("sex", *(f"null_{number:02d}" for number in range(20))))
        figure = figures.forest(scores)
        no_overlap(figure)
        first, controls = figure.axes[:2]
        assert (first.get_title(), controls.get_title()) == ("sex", "20 negative controls")
        drawn = {line.get_xdata()[0] for line in controls.get_lines() if len(line.get_xdata()) == 1}
        assert set(scores.loc[scores["negative_control"], "p_majority"].dropna()) <= drawn

    def test_a_protocol_without_splits_says_so(self, tmp_path: Path) -> None:
        assert "No leave-site-out splits" in texts(figures.without_results("leave-site-out"))
        table().assign(primary="True").to_csv(tmp_path / "one.tsv", sep="\t", index=False)
        options = ["--tables", str(tmp_path / "one.tsv"), "--output-folder", str(tmp_path)]
        figures.main([*options, "--protocol", "leave-site-out"])
        assert [path.name for path in tmp_path.glob("*.png")] == ["one_probes_leave-site-out.png"]

    def test_references_come_first(self) -> None:
        axis = figures.forest(table().sample(frac=1, random_state=0)).axes[0]
        assert [label.get_text() for label in axis.get_yticklabels()] == list(ROWS)
        assert axis.yaxis_inverted()

    def test_simulated_data_are_announced(self) -> None:
        assert drawing.SIMULATED in texts(figures.forest(table(), simulated=True))
        assert drawing.SIMULATED not in texts(figures.forest(table()))


def test_command_line_names_files_after_cohort_and_protocol(tmp_path: Path) -> None:
    scores = pd.concat([table(), table(protocol="leave-site-out")])
    scores.to_csv(tmp_path / "small.tsv", sep="\t", index=False, na_rep="n/a")
    for name in ("one", "two"):
        figures.main(["--tables", str(tmp_path / "small.tsv"), "--output-folder", str(tmp_path / name)])
    names = ["small_probes_leave-site-out", "small_probes_random"]
    assert sorted(path.stem for path in (tmp_path / "one").iterdir()) == names
    for name in names:
        assert (tmp_path / "one" / f"{name}.png").read_bytes() == (tmp_path / "two" / f"{name}.png").read_bytes()
