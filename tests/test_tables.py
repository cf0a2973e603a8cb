"""From saved predictions to the numbers that stand in a table."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from evaluation_cases import SCHEMAS, defaults
from jsonschema import Draft202012Validator
from semantoks import tables
from semantoks.confusion import confusion_matrices
from semantoks.errors import UserError
from semantoks.files import provenance, read_text_table, write_table
from semantoks.rendering import Block, body_of, html_page, tex_escape, to_html, to_latex, to_markdown
from semantoks.scores import score_tables
from semantoks.statistics import corrected_t
from semantoks.task_scores import collect
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score

PUBLISHED = Path(__file__).resolve().parents[1] / "resources" / "published.tsv"
SETTINGS = defaults("tables") | {"draws": 300}
KINDS = {"group": "classification", "score": "regression"}
N, REPETITIONS, SITES = 80, 5, 4


def predictions(
    row: str, skill: float, seed: int = 0, pretrain_seed: int | None = None, seen: bool = False
) -> pd.DataFrame:
    """Predictions of one row of the table; ``skill`` moves the scores towards the truth."""
    truth = np.random.default_rng(99)
    group, score = truth.integers(0, 2, N), truth.normal(100, 15, N)
    generator = np.random.default_rng(seed)
    rows = []
    for phenotype, y in (("group", group), ("score", score)):
        for repetition in range(REPETITIONS):
            tested = np.sort(np.random.default_rng(repetition).permutation(N)[:20])
            rows += _rows(row, phenotype, "random", repetition, tested, y, skill, generator)
        rows += _rows(row, phenotype, "leave-site-out", 0, np.arange(N), y, skill, generator)
    table = pd.DataFrame(rows)
    table["pretrain_seed"] = pd.array([pretrain_seed] * len(table), dtype="Int64")
    table["transductive"] = seen
    return table


def _rows(
    row: str,
    phenotype: str,
    protocol: str,
    repetition: int,
    tested: np.ndarray,
    y: np.ndarray,
    skill: float,
    generator: np.random.Generator,
) -> list[dict]:
    constant = row == "majority"
    noise = np.zeros(N) if constant else generator.normal(size=N)
    if phenotype == "group":
        margin = noise + skill * (y - 0.5)
        scores = np.stack([-margin, margin], axis=1)
    else:
        scores = (100 + 10 * noise + skill * (y - 100))[:, None]
    return [
        {
            "cohort": "small",
            "participant_id": f"{person:03d}",
            "session_id": None,
            "row": row,
            "head": row.split("-")[-1],
            "phenotype": phenotype,
            "protocol": protocol,
            "repetition": repetition,
            "fold": f"site{person % SITES}" if protocol == "leave-site-out" else "0",
            "split_checksum": f"{phenotype} {protocol}",
            "n_train": 60,
            "family": f"participant {person:03d}",
            "site_group": f"site{person % SITES}",
            "y_true": float(y[person]),
            "y_score": scores[person].tolist(),
        }
        for person in tested
    ]


@pytest.fixture(scope="module")
def rows() -> list[pd.DataFrame]:
    return [
        predictions("majority", 0),
        predictions("fc-logistic", 1.5, 1),
        predictions("fc-ridge", 1.5, 2),
        predictions("tiny-logistic", 0, 3, 0, seen=True),
        predictions("tiny-logistic", 0, 4, 1, seen=True),
    ]


@pytest.fixture(scope="module")
def scores(rows: list[pd.DataFrame]) -> pd.DataFrame:
    return score_tables(pd.concat(rows), KINDS, SETTINGS)[0]


def of(scores: pd.DataFrame, row: str, metric: str, protocol: str = "random", phenotype: str = "group") -> pd.Series:
    found = scores.query("row == @row and metric == @metric and protocol == @protocol and phenotype == @phenotype")
    assert len(found) == 1
    return found.iloc[0]


class TestConfusion:
    def test_equals_scikit_learn_over_repetitions_and_seeds(self, rows: list[pd.DataFrame]) -> None:
        table = confusion_matrices(pd.concat(rows), {"group": ["control", "patient"], "score": None})
        assert set(table["phenotype"]) == {"group"}
        for (protocol, row), part in table.groupby(["protocol", "row"]):
            own = pd.concat(rows)
            own = own[(own["phenotype"] == "group") & (own["protocol"] == protocol) & (own["row"] == row)]
            predicted = np.stack(own["y_score"]).argmax(axis=1)
            expected = confusion_matrix(own["y_true"].astype(int), predicted)
            times = len(own[["repetition", "pretrain_seed"]].drop_duplicates())
            found = part.pivot(index="true", columns="predicted", values="participants").to_numpy()
            np.testing.assert_allclose(found, expected / times)
            shares = part.pivot(index="true", columns="predicted", values="share").to_numpy()
            np.testing.assert_allclose(shares, confusion_matrix(own["y_true"].astype(int), predicted, normalize="true"))

    def test_a_class_that_nobody_has_has_no_share(self, rows: list[pd.DataFrame]) -> None:
        table = confusion_matrices(rows[0], {"group": ["control", "patient", "other"], "score": None})
        other = table[table["true"] == "other"]
        assert (other["participants"] == 0).all()
        assert (other["share"] == 0).all()


class TestScores:
    def test_mean_and_sd_over_repetitions(self, rows: list[pd.DataFrame], scores: pd.DataFrame) -> None:
        part = rows[1].query("phenotype == 'group' and protocol == 'random'")
        values = [
            balanced_accuracy_score(each["y_true"], np.stack(each["y_score"]).argmax(1))
            for _, each in part.groupby("repetition")
        ]
        made = of(scores, "fc-logistic", "balanced_accuracy")
        assert made["mean"] == pytest.approx(np.mean(values))
        assert made["sd"] == pytest.approx(np.std(values, ddof=1))
        assert made["ci_low"] < made["mean"] < made["ci_high"]
        assert made["n_test"] == 20

    def test_the_difference_is_tested_as_by_hand(self, rows: list[pd.DataFrame], scores: pd.DataFrame) -> None:
        values = []
        for table in (rows[2], rows[1]):
            part = table.query("phenotype == 'group' and protocol == 'random'")
            values.append(
                [
                    balanced_accuracy_score(each["y_true"], np.stack(each["y_score"]).argmax(1))
                    for _, each in part.groupby("repetition")
                ]
            )
        by_hand = corrected_t(np.subtract(*values), 60, 20)
        made = of(scores, "fc-ridge", "balanced_accuracy")
        assert made["p"] == pytest.approx(by_hand.p)
        assert made["difference"] == pytest.approx(by_hand.difference)

    def test_rows_of_fewer_repetitions_are_compared_over_those_that_both_have(self, rows: list[pd.DataFrame]) -> None:
        few = rows[3].assign(row="tiny-published", head="published")
        few = few[few["repetition"] < 3]
        table, _ = score_tables(pd.concat([few, *rows]), KINDS, SETTINGS)
        published, solved = (of(table, row, "balanced_accuracy") for row in ("tiny-published", "fc-logistic"))
        assert (published["repetitions"], solved["repetitions"]) == (3, REPETITIONS)

        def values(part: pd.DataFrame) -> np.ndarray:
            own = part.query("protocol == 'random' and phenotype == 'group' and repetition < 3").groupby("repetition")
            return np.array(
                [balanced_accuracy_score(one["y_true"], np.stack(one["y_score"]).argmax(axis=1)) for _, one in own]
            )

        differences = values(few) - values(rows[1])
        np.testing.assert_allclose(published["difference"], differences.mean())
        np.testing.assert_allclose(published["p"], corrected_t(differences, 60, 20).p)

    def test_seeds_are_averaged_within_a_repetition(self, rows: list[pd.DataFrame], scores: pd.DataFrame) -> None:
        made = of(scores, "tiny-logistic", "auroc")
        means = []
        for table in rows[3:]:
            part = table.query("phenotype == 'group' and protocol == 'random'")
            means.append(
                np.mean(
                    [roc_auc_score(e["y_true"], np.stack(e["y_score"])[:, 1]) for _, e in part.groupby("repetition")]
                )
            )
        assert made["mean"] == pytest.approx(np.mean(means))
        assert made["sd_seeds"] == pytest.approx(np.std(means, ddof=1))
        assert made["seeds"] == 2

    def test_within_site_auroc_is_weighted_by_pairs(self, rows: list[pd.DataFrame], scores: pd.DataFrame) -> None:
        part = rows[1].query("phenotype == 'group' and protocol == 'leave-site-out'")
        values, pairs = [], []
        for _, site in part.groupby("fold"):
            values.append(roc_auc_score(site["y_true"], np.stack(site["y_score"])[:, 1]))
            pairs.append(site["y_true"].sum() * (1 - site["y_true"]).sum())
        made = of(scores, "fc-logistic", "site_auroc", "leave-site-out")
        assert made["mean"] == pytest.approx(np.average(values, weights=pairs))
        pooled = of(scores, "fc-logistic", "auroc", "leave-site-out")
        assert pooled["mean"] == pytest.approx(roc_auc_score(part["y_true"], np.stack(part["y_score"])[:, 1]))

    def test_holm_runs_over_rows_and_tasks_of_a_protocol_in_the_primary_metric(self, scores: pd.DataFrame) -> None:
        primary = scores[scores["primary"] & (scores["protocol"] == "random")]
        tested = primary["p"].notna()
        assert tested.sum() == 3 + 3  # four rows less the reference, for both phenotypes
        smallest = primary.loc[tested].sort_values("p").iloc[0]
        assert smallest["p_adjusted"] == pytest.approx(min(1, 6 * smallest["p"]))
        assert scores.loc[~scores["primary"], "p_adjusted"].isna().all()

    def test_skill_is_found_and_its_absence_is_said(self, scores: pd.DataFrame) -> None:
        assert of(scores, "fc-logistic", "balanced_accuracy")["p_majority_adjusted"] < 0.05
        assert of(scores, "tiny-logistic", "balanced_accuracy")["p_majority_adjusted"] > 0.05
        assert of(scores, "tiny-logistic", "site_auroc", "leave-site-out")["p"] < 0.05

    def test_majority_is_better_than_nothing_under_no_metric(self, scores: pd.DataFrame) -> None:
        assert of(scores, "majority", "balanced_accuracy")["mean"] == 0.5
        assert of(scores, "majority", "site_auroc", "leave-site-out")["mean"] == 0.5
        assert np.isnan(of(scores, "majority", "balanced_accuracy")["p_majority"])

    def test_a_one_class_site_counts_for_nothing(self) -> None:
        both = [predictions("majority", 0), predictions("fc-logistic", 1, 1), predictions("fc-ridge", 1, 2)]
        for table in both:
            lonely = (table["site_group"] == "site0") & (table["phenotype"] == "group")
            table.loc[lonely, "y_true"] = 1.0
        scores, sites = score_tables(pd.concat(both), KINDS, SETTINGS)
        assert np.isfinite(of(scores, "fc-logistic", "site_auroc", "leave-site-out")["mean"])
        lonely = sites.query("site_group == 'site0' and phenotype == 'group'")
        assert lonely["value"].isna().all()

    def test_row_order_does_not_matter(self, rows: list[pd.DataFrame], scores: pd.DataFrame) -> None:
        shuffled = pd.concat(rows).sample(frac=1, random_state=0)
        pd.testing.assert_frame_equal(score_tables(shuffled, KINDS, SETTINGS)[0], scores)


class TestRefusals:
    def test_rows_with_different_splits(self) -> None:
        other = predictions("fc-logistic", 1)
        other["split_checksum"] = "another"
        with pytest.raises(UserError, match="rows were made with different splits"):
            collect(pd.concat([predictions("majority", 0), other]), KINDS)

    def test_rows_tested_on_other_participants(self) -> None:
        other = predictions("fc-logistic", 1)
        with pytest.raises(UserError, match="the row majority was tested on other participants"):
            collect(pd.concat([other, predictions("majority", 0).iloc[1:]]), KINDS)

    def test_a_reference_that_was_not_probed(self, rows: list[pd.DataFrame]) -> None:
        settings = SETTINGS | {"reference": {"classification": "fc-svm", "regression": "fc-ridge"}}
        with pytest.raises(
            UserError, match=r"tables\.reference\.classification: expected one of the rows .*fc-logistic.*'fc-svm'"
        ):
            score_tables(pd.concat(rows), KINDS, settings)

    def test_one_repetition_cannot_be_tested(self, rows: list[pd.DataFrame]) -> None:
        one = pd.concat(rows).query("protocol == 'random' and repetition == 0")
        with pytest.raises(UserError, match=r"at least two repetitions"):
            score_tables(one, KINDS, SETTINGS)


def write_tables(folder: Path, rows: list[pd.DataFrame], **about_probe: Any) -> Path:
    """The stage's files of one cohort, in the folder."""
    described = {
        "group": {"type": "classification", "classes": ["a", "b"], "bins": None},
        "score": {"type": "regression", "classes": None, "bins": None},
    }
    paths = []
    for number, table in enumerate(rows):
        about = {"cohort": "small", "phenotypes": described, "splits": defaults("probe")} | about_probe
        about = provenance("probe", {}, (), **about)
        paths.append(folder / f"{number}.parquet")
        write_table(paths[-1], table, about)
    settings = SETTINGS | {"simulated": True, "published_tasks": {"small": {"group": "ABIDE autism"}}}
    options = ["--published", str(PUBLISHED), "--output-folder", str(folder)]
    tables.main(["--settings", json.dumps(settings), "--probes", *map(str, paths), *options])
    return folder


@pytest.fixture(scope="module")
def folder(rows: list[pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tables(tmp_path_factory.mktemp("tables"), rows)


class Tags(HTMLParser):
    """Counts opening and closing tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


class TestFiles:
    def test_tsv_has_the_contract_and_the_published_value(self, folder: Path) -> None:
        table = read_text_table(folder / "small.tsv")
        contract = {"mean", "sd", "ci_low", "ci_high", "n", "p", "p_adjusted", "published", "row", "phenotype"}
        assert contract <= set(table.columns)
        row = table.query("row == 'fc-logistic' and metric == 'balanced_accuracy' and protocol == 'random'").iloc[0]
        assert float(row["published"]) == 0.598

    def test_published_rows_stand_in_the_table_and_are_marked(self, folder: Path) -> None:
        text = (folder / "small.md").read_text()
        assert "| published: Brain-Semantoks (Brain-Semantoks paper) | 0.651 |" in text
        assert "secondary sources" in text
        assert (
            "of their study: Brain-Semantoks paper, linear probe (arXiv 2512.11582); Brainmarks, logistic probe" in text
        )

    def test_simulated_data_are_announced_everywhere(self, folder: Path) -> None:
        for name in ("small.md", "small.html", "small.tex"):
            assert "SIMULATED DATA" in (folder / name).read_text(), name

    def test_transduction_is_said(self, folder: Path) -> None:
        text = (folder / "small.md").read_text()
        assert "tiny-logistic (mean of 2 seeds, transductive)" in text
        assert "Transductive: the pretraining of tiny-logistic saw" in text

    def test_markdown_tables_are_rectangular(self, folder: Path) -> None:
        for block in re.findall(r"(?:^\|.*\n)+", (folder / "small.md").read_text(), flags=re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(widths) == 1

    def test_html_is_well_formed_and_says_the_same(self, folder: Path) -> None:
        parsed = Tags((folder / "small.html").read_text())
        assert parsed.open == []
        row = read_text_table(folder / "small.tsv").query(
            "row == 'fc-ridge' and metric == 'r' and protocol == 'random'"
        )
        assert any(cell.startswith(f"{float(row['mean'].iloc[0]):.3f}") for cell in parsed.cells)

    def test_latex_environments_close_and_rows_have_as_many_cells(self, folder: Path) -> None:
        text = (folder / "small.tex").read_text()
        assert (
            re.findall(r"\\begin\{(\w+)\}", text).count("table")
            == re.findall(r"\\end\{(\w+)\}", text).count("table")
            > 0
        )
        for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL):
            for line in body.strip().splitlines():
                if line != r"\hline":
                    assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1

    def test_latex_is_plain_ascii(self, folder: Path) -> None:
        """Other characters would need a package or another engine."""
        assert (folder / "small.tex").read_text().isascii()

    @pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
    def test_latex_compiles(self, folder: Path, tmp_path: Path) -> None:
        page = r"\documentclass{article}\begin{document}\input{small.tex}\end{document}"
        (tmp_path / "page.tex").write_text(page)
        shutil.copy(folder / "small.tex", tmp_path)
        subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"], cwd=tmp_path, check=True)

    @pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
    def test_latex_of_many_tables_compiles(self, tmp_path: Path) -> None:
        blocks = [Block(f"task {number}", ["model", "x"], [["a_b", "0.5 ± 0.1 ↑°"]] * 12) for number in range(90)]
        (tmp_path / "page.tex").write_text(
            r"\documentclass{article}\begin{document}" + to_latex(blocks) + r"\end{document}"
        )
        subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"], cwd=tmp_path, check=True)

    def test_latex_puts_its_tables_on_pages_in_time(self) -> None:
        text = to_latex([Block("task", ["model"], [["a"]])] * 90)
        assert max(part.count(r"\begin{table}") for part in text.split(r"\clearpage")) <= 16

    def test_what_made_it_is_beside_it(self, folder: Path) -> None:
        about = json.loads((folder / "small.json").read_text())
        assert about["stage"] == "tables"
        assert len(about["inputs"]) == 6
        assert any("Nadeau" in note for note in about["notes"])
        assert not re.search("Sessions are the unit|Confounds left out", " ".join(about["notes"]))

    def test_sessions_and_confounds_left_out_are_said(self, rows: list[pd.DataFrame], tmp_path: Path) -> None:
        of_sessions = [table.assign(session_id="01") for table in rows]
        confounds = {"used": ["age"], "left_out": ["scanner", "sex"]}
        text = (write_tables(tmp_path, of_sessions, confounds=confounds) / "small.md").read_text(encoding="utf-8")
        assert "Sessions are the unit" in text
        assert "Confounds left out, since one of the two cohorts does not know them: scanner, sex." in text


class TestRendering:
    block = Block("A & B", ["model", "x_1 < 5"], [["a|b", "1 ± 2 ↑"]], ["50 % of $"])

    def test_markdown_escapes_the_cell_separator(self) -> None:
        assert r"| a\|b | 1 ± 2 ↑ |" in to_markdown([self.block])

    def test_html_escapes(self) -> None:
        text = to_html([self.block])
        assert "A &amp; B" in text
        assert "x_1 &lt; 5" in text
        assert body_of(html_page("t", "<h1>t</h1>", text)).strip() == text.strip()

    def test_latex_escapes(self) -> None:
        assert tex_escape("50 % of $_{x}^2 \\") == r"50 \% of \$\_\{x\}\textasciicircum{}2 \textbackslash{}"
        assert r"1 $\pm$ 2 $\uparrow$" in to_latex([self.block])


def test_an_unknown_published_task(folder: Path) -> None:
    described = {"group": {"type": "classification"}}
    scores = pd.DataFrame([{"phenotype": "group", "row": "x", "metric": "auroc", "protocol": "random"}])
    with pytest.raises(UserError, match=r"no published task is called \['ABIDE autsim'\].*ABIDE autism"):
        tables.add_published(scores, described, {"group": "ABIDE autsim"}, read_text_table(PUBLISHED), {})


def test_published_numbers_are_complete_and_marked() -> None:
    table = read_text_table(PUBLISHED)
    assert not table.isna().any().any()
    assert not table.duplicated(["task", "model", "study"]).any()
    assert set(table["source"]) == {"secondary"}
    assert table["value"].astype(float).between(0, 1).all()
    autism = table.query("task == 'ABIDE autism' and model == 'Brain-Semantoks'")
    assert autism["value"].astype(float).to_list() == [0.6513]


@pytest.mark.parametrize("section", ["tables", "probe"])
def test_schemas_explain_every_key_and_accept_their_defaults(section: str) -> None:
    schema = yaml.safe_load((SCHEMAS / f"{section}.schema.yaml").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    assert all("description" in value and "default" in value for value in schema["properties"].values())
    Draft202012Validator(schema).validate(defaults(section))
    assert list(Draft202012Validator(schema).iter_errors({"draw": 1}))
