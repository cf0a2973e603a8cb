"""What the figures show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from figure_checks import no_overlap, texts
from semantoks import drawing, figures, result_figures

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

    def test_unknown_pretraining_is_grey(self) -> None:
        scores = table(("sex",))
        assert "pretraining unknown (grey)" not in texts(figures.forest(scores))
        scores.loc[scores["row"] == "tiny-logistic", "transductive"] = np.nan
        shown = texts(figures.forest(scores))
        assert "pretraining unknown (grey)" in shown
        assert "transductive (open)" not in shown

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


def site_table() -> pd.DataFrame:
    generator = np.random.default_rng(1)
    rows = [
        {"protocol": "leave-site-out", "phenotype": task, "metric": metric, "row": row, "site_group": site, "n": n}
        for task, metric in (("sex", "site_auroc"), ("age", "site_r"))
        for row in ROWS
        for site, n in (("NYU", 175), ("Institute of the far north", 12), ("KKI", 48))
    ]
    table = pd.DataFrame(rows).assign(value=generator.uniform(0.3, 0.9, len(rows)))
    return table.assign(value=table["value"].mask((table["site_group"] == "KKI") & (table["phenotype"] == "sex")))


def confusion_table(classes: tuple[str, ...] = ("control", "patient")) -> pd.DataFrame:
    rows = [
        {"protocol": "random", "phenotype": task, "row": row, "true": true, "predicted": guess, "share": share}
        for task, names in (("diagnosis", classes), ("age_bins", [f"bin {number}" for number in range(1, 6)]))
        for row in ROWS
        for true in names
        for guess, share in zip(names, np.random.default_rng(len(row)).dirichlet(np.ones(len(names))), strict=True)
    ]
    return pd.DataFrame(rows)


def curve_table(n_tasks: int = 2) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"phenotype": f"task {task}", "metric": "balanced_accuracy", "row": row, "size": size, "sd": 0.03}
            | {"mean": 0.5 + 0.02 * place * np.log(size / 20), "transductive": float(place == 1)}
            for task in range(n_tasks)
            for place, row in enumerate(ROWS)
            for size in (25, 50, 100, 656)
        ]
    )


class TestFurtherFigures:
    def test_sites_stand_by_size_with_every_value(self) -> None:
        table = site_table()
        figure = result_figures.sites(table)
        no_overlap(figure)
        panel = figure.axes[0]
        assert [label.get_text() for label in panel.get_yticklabels()] == list(ROWS)
        assert [label.get_text() for label in panel.get_xticklabels()][:2] == ["NYU (175)", "KKI (48)"]
        for axis, task in zip(figure.axes, ("age", "sex"), strict=True):
            values = table.loc[table["phenotype"] == task, "value"].dropna()
            assert sorted(text.get_text() for text in axis.texts) == sorted(f"{v:.2f}"[1:] for v in values)

    def test_shares_of_a_class_stand_in_their_cells(self) -> None:
        table = confusion_table()
        figure = result_figures.confusion(table)
        no_overlap(figure)
        shown = [text.get_text() for axis in figure.axes for text in axis.texts]
        assert sorted(shown) == sorted(f"{share:.2f}" for share in table["share"])
        for word in ("control", "patient", "bin 5", *ROWS, "diagnosis", "predicted"):
            assert word in texts(figure) + figure.get_supxlabel()

    @pytest.mark.parametrize("n_tasks", [1, 2, 5])
    def test_every_point_of_a_learning_curve_is_drawn(self, n_tasks: int) -> None:
        table = curve_table(n_tasks)
        figure = result_figures.learning_curve(table, simulated=True)
        no_overlap(figure)
        for row in ROWS:
            assert row in texts(figure)
        drawn = [np.round(np.asarray(line.get_ydata(), float), 9).tolist() for line in figure.axes[0].get_lines()]
        for _, line in table[table["phenotype"] == "task 0"].groupby("row"):
            assert np.round(line["mean"], 9).tolist() in drawn
        assert "transductive (open)" in texts(figure)
        assert sum(line.get_markerfacecolor() == "white" for line in figure.axes[0].get_lines()) == 1

    def test_nothing_is_said_of_pretraining_that_saw_nobody(self) -> None:
        assert "transductive" not in texts(result_figures.learning_curve(curve_table().assign(transductive=0.0)))

    @pytest.mark.parametrize("kind", ["sites", "confusion", "learning_curve"])
    def test_without_results_they_say_so(self, kind: str) -> None:
        empty = pd.DataFrame({"phenotype": [], "row": [], "protocol": []})
        assert "No " in texts(getattr(result_figures, kind)(empty))


def test_command_line_draws_every_kind(tmp_path: Path) -> None:
    table(protocol="leave-site-out").to_csv(tmp_path / "small.tsv", sep="\t", index=False, na_rep="n/a")
    site_table().to_csv(tmp_path / "small_sites.tsv", sep="\t", index=False, na_rep="n/a")
    confused = confusion_table().assign(protocol="leave-site-out")
    confused.to_csv(tmp_path / "small_confusion.tsv", sep="\t", index=False)
    curve_table().to_csv(tmp_path / "small_learning_curve.tsv", sep="\t", index=False)
    options = ["--tables", str(tmp_path / "small.tsv"), "--kinds", *figures.KINDS]
    figures.main([*options, "--output-folder", str(tmp_path / "figures")])
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {
        *(f"small_{kind}_leave-site-out" for kind in ("probes", "confusion", "sites")),
        "small_learning_curve",
    }
