"""The report: everything that was run on one page, nobody named, and what is absent named as absent."""

from __future__ import annotations

import base64
import html
import json
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPOSITORY
from semantoks import report
from semantoks.errors import UserError
from semantoks.files import KEY, provenance, read_json, write_json, write_table, write_text
from semantoks.rendering import Block, html_page, to_html
from semantoks.report_content import (
    KINDS,
    REPORT,
    Inputs,
    cost_rows,
    encoder_groups,
    figure_kind,
    general_reason,
    near_identical,
    network_rows,
    reasons_of,
    sites_of,
    training_rows,
)

NAMES = ("Quokka0117", "Wombat0242", "Numbat0391")
"""Participants whose names must not come onto the page."""
COST = """\
stage\tcohort\tjobs\trecordings\tcore_hours\tgpu_hours\tdisk_gb\tfiles\tmemory_gb
fmriprep\tstudy\t3\t3\t1.5\t0\t0.001\t3\t16.3
pretrain\t\t2\t3\t0.5\t0.75\t0.002\t6\t1.2
"""


def png() -> bytes:
    """The smallest PNG: one grey pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\x80")) + chunk(b"IEND", b"")
    )


def exclusions() -> pd.DataFrame:
    """Four recordings of three participants at two sites, two of them excluded."""
    reasons = [
        None,
        "mean framewise displacement 1.60 mm, above 0.5 mm",
        None,
        f"/data/sub-{NAMES[2]}/x.nii.gz: cut short",
    ]
    rows = []
    for number, (name, reason) in enumerate(zip([NAMES[0], NAMES[0], *NAMES[1:]], reasons, strict=True)):
        recording = f"sub-{name}_task-rest_run-{number}"
        rows.append(["study", name, None, recording, "north" if number < 2 else "south", reason])
    return pd.DataFrame(rows, columns=[*KEY, "site", "exclude_reason"])


def write_cohort(results: Path) -> None:
    """Quality control, figures and stage files of the cohort ``study``."""
    write_text(results / "study/qc/exclusions.tsv", exclusions().to_csv(sep="\t", index=False))
    summary = {"recordings": 4, "recordings_kept": 2, "participants": 3, "participants_kept": 2, "simulated": False}
    summary |= {"mask_dice_note": "found no answer"}
    write_json(results / "study/qc/summary.json", summary | {"dropped": {"unusable": 1, "maximum_mean_fd": 1}})
    for kind in ("flow", "recordings", "parcels", "fc"):
        (results / f"study/qc/{kind}.png").write_bytes(png())
    table = pd.DataFrame({"participant_id": list(NAMES)})
    shards = provenance("shards", {"tr": 2.5, "row_group_size": 64})
    write_table(results / "study/shards/part-0001.parquet", table, shards)
    strategy = {"name": "24P", "description": "Twenty-four.", "citations": ["Friston et al. (1996)"]}
    series = provenance("parcellate", {"band_pass": [0.01, 0.1], "confounds": f"/data/sub-{NAMES[0]}/24P.yaml"})
    write_table(results / "study/timeseries/part-0001.parquet", table, series | {"strategy": strategy})
    cohort = {"name": "study", "include": list(NAMES), "participants": {"path": f"/data/{NAMES[0]}.tsv"}}
    write_table(results / "study/index.parquet", table, provenance("index", cohort))
    splits = pd.DataFrame({"cohort": "study", "participant_id": NAMES, "phenotype": "sex", "protocol": "random"})
    splits = splits.assign(repetition=0, fold=0, part="test")
    about = {"checksums": {"sex": {"random": "c0ffee" * 8}}, "n_participants": 3}
    about["unmatched"] = {"recording_only": [], "table_only": [NAMES[1]]}
    about["not_scored"] = {"without_site": [NAMES[1]], "phenotypes": {"age_bins": "nobody here has bin 1"}}
    settings = cohort | {"probe": {"repetitions": 10}}
    write_table(results / "study/splits.parquet", splits, provenance("splits", settings, **about))
    write_json(results / "atlas/atlas.json", {"name": "tiny", "space": None, "sha256": {"labels": "ab"}, "sources": {}})
    write_text(
        results / "atlas/networks.tsv",
        "index\tname\tnetwork\tshare\n1\ta\tVis\t0.9\n2\tb\tVis\t0.5\n3\tc\tDefault\t1\n",
    )
    write_text(results / "cost.tsv", COST)


def write_encoders(results: Path) -> None:
    """One encoder, trained with two seeds and once as initialised, with its figures."""
    model = {"tokenizer": "semantic", "patch": 20, "depth": 2, "width": 64}
    for name, kind, seed in (
        ("enc_seed-0", "pretrained", 0),
        ("enc_seed-1", "pretrained", 1),
        ("enc-random_seed-0", "random", 0),
    ):
        config = {"kind": kind, "seed": seed, "model": model, "crop": 100, "network_order": ["Vis", "Default"]}
        config["settings"] = {"preset": "small", "optimiser": {"epochs": 3, "batch": 64}}
        config["pretrain_recordings"] = [["study", person] for person in NAMES] if kind == "pretrained" else []
        write_json(results / f"pretrain/{name}/config.json", config | {"made_by": provenance("pretrain", {})})
        steps = range(20) if kind == "pretrained" else ()
        lines = [
            {"step": n, "epoch": n // 10, "cls_loss": -1.0 - n, "coding_rate": n, "effective_rank": 2 * n}
            for n in steps
        ]
        write_text(results / f"pretrain/{name}/metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    (results / "figures").mkdir()
    for name in ("enc_seed-0_training", "study_probes_leave-site-out", "study_probes_random"):
        (results / f"figures/{name}.png").write_bytes(png())


def write_tables(results: Path) -> None:
    """A page of the stage tables and its numbers."""
    table = Block("random splits", ["model", "sex"], [["fc & <b>", "0.660"]], level=1)
    write_text(results / "tables/study.html", html_page("study", "<h1>study</h1>", to_html([table])))
    rows = [
        ["random", task, "balanced_accuracy", primary, row, value, value - 0.05, value + 0.05]
        for task in ("null_1", "null_2", "sex")
        for primary, row, value in ((True, "fc-ridge", 0.66), (True, "majority", 0.5), (False, "fc-ridge", 0.99))
    ]
    columns = ["protocol", "phenotype", "metric", "primary", "row", "mean", "ci_low", "ci_high"]
    write_text(results / "tables/study.tsv", pd.DataFrame(rows, columns=columns).to_csv(sep="\t", index=False))
    write_text(results / "tables/study_sites.tsv", "cohort\n")


def settings(simulated: bool = False, individuals: bool = False, **keys) -> dict:
    cohort = {"description": "A study of <b>sleep</b>.", "role": "both", "space": "MNI152NLin6Asym", "tasks": ["rest"]}
    cohort |= {"source": "fmriprep", "fitted_on": None, "already_done": {}, "confounds": ["age"]}
    cohort["phenotypes"] = {"sex": {"type": "classification", "bins": None}}
    return {"simulated": simulated, "individuals": individuals, "cohorts": {"study": cohort | keys}}


def write_page(results: Path, **keys) -> str:
    files = [str(path) for path in sorted(results.rglob("*")) if path.is_file()]
    output = results.parent / "page.html"
    report.main(
        [
            "--settings",
            json.dumps(settings(**keys)),
            "--results",
            str(results),
            "--output",
            str(output),
            "--files",
            *files,
        ]
    )
    return output.read_text(encoding="utf-8")


@pytest.fixture
def results(tmp_path) -> Path:
    """A results folder with everything in it."""
    folder = tmp_path / "results"
    write_cohort(folder)
    write_encoders(folder)
    write_tables(folder)
    return folder


class Page(HTMLParser):
    """Tags, in order, with their attributes; checks that they are closed in order."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_parts_stand_in_order_and_the_contents_lead_to_them(results):
    text = write_page(results)
    page = Page(text)
    parts = [section["id"] for section in page.all("section")]
    assert parts == ["run", "flow", "quality", "pretraining", "probes", "methods", "costs", "cite"]
    assert [link["href"] for link in page.all("a")] == [f"#{part}" for part in parts]
    assert 'class="absent"' not in text


def test_the_page_needs_nothing_but_itself(results):
    text = write_page(results)
    page = Page(text)
    assert not re.search(r"(?:src|href|action)=\"(?!data:|#)|url\(|@import|<script|<link", text)
    policy = next(meta for meta in page.all("meta") if "http-equiv" in meta)
    assert policy["content"].startswith("default-src 'none'")
    images = page.all("img")
    assert len(images) == 4 + 1 + 2
    for image in images:
        assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == png()
        assert image["alt"].strip()
    captions = re.findall(r"<figcaption><b>.+?</b> (.+?)</figcaption>", text, flags=re.DOTALL)
    assert len(captions) == len(images)


def test_nobody_is_named(results):
    text = write_page(results)
    for name in NAMES:
        assert any(name in path.read_text(errors="ignore") for path in results.rglob("*") if path.is_file())
        assert name not in text
    assert "sub-" not in text
    assert "/data/" not in text


def test_counts_of_the_flow_per_step_site_and_phenotype(results):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", write_page(results)))
    assert "entered 4 3" in text
    assert "dropped: too much motion 1" in text
    assert "dropped: no usable file or time series 1" in text
    assert "kept 2 2" in text
    assert "north 2 1 1 1 south 2 1 2 1" in text
    assert "sex random 3 1 c0ffeec0ffeec0ff" in text
    assert "0 have a recording only, 1 a row only" in text
    assert "1 are left out, because their site is unknown and results are within sites. age_bins is not scored:" in text


def test_sites_count_a_participant_with_two_recordings_once():
    north, south = sites_of(exclusions())
    assert north == {"site": "north", "participants": 1, "participants_kept": 1, "recordings": 2, "recordings_kept": 1}
    assert south == {"site": "south", "participants": 2, "participants_kept": 1, "recordings": 2, "recordings_kept": 1}


def test_what_was_run_in_words(results):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", write_page(results)))
    assert "enc, seeds 0, 1. Pretrained by self-distillation for 3 epochs with 64 scans per step on 3 part" in text
    assert "enc-random, seed 0. Left as initialised" in text
    assert "tiny, space not stated; 3 parcels in 2 networks." in text
    assert "fMRIPrep derivatives; space MNI152NLin6Asym; tasks: rest." in text


def test_settings_and_versions_come_from_the_files(results):
    text = write_page(results)
    assert '<th scope="row">tr</th><td>2.5</td>' in text
    assert '<th scope="row">band_pass</th><td>[0.01, 0.1]</td>' in text
    assert '<th scope="row">probe.repetitions</th><td>10</td>' in text
    assert '<th scope="row">optimiser.epochs</th><td>3</td>' in text
    assert f'<th scope="row">pandas</th><td>{pd.__version__}</td>' in text
    assert "<li>Friston et al. (1996)</li>" in text


def test_two_settings_within_a_stage_are_both_shown(results):
    table = pd.DataFrame({"participant_id": list(NAMES)})
    other = provenance("shards", {"tr": 0.8, "row_group_size": 64}) | {"versions": {"pandas": "1.0"}}
    write_table(results / "study/shards/part-0002.parquet", table, other)
    text = write_page(results)
    assert text.count("<summary>shards (study, 1 file)</summary>") == 2
    assert f'<th scope="row">pandas</th><td>1.0, {pd.__version__}</td>' in text


def test_text_is_escaped_once(results):
    text = write_page(results)
    assert "A study of &lt;b&gt;sleep&lt;/b&gt;." in text
    assert "<td>fc &amp; &lt;b&gt;</td>" in text


def test_simulated_data_say_so_before_anything_else(results):
    text = write_page(results, simulated=True)
    banner = '<p class="warning" role="alert">SIMULATED DATA.'
    assert 0 < text.index(banner) < text.index("<nav")
    assert "<title>SIMULATED DATA: " in text
    assert "SIMULATED" not in write_page(results)


def test_what_is_absent_is_named_as_absent(tmp_path):
    write_cohort(tmp_path / "results")
    page = write_page(tmp_path / "results", phenotypes={})
    Page(page)
    for text in (
        "No encoder was configured",
        "No encoder was pretrained",
        "No tables: no cohort with phenotypes",
        "No phenotypes.",
    ):
        assert text in page


def test_a_page_of_nothing(tmp_path):
    (tmp_path / "results").mkdir()
    text = write_page(tmp_path / "results")
    Page(text)
    assert text.count('class="absent"') == 8


def test_the_same_files_give_the_same_bytes(results):
    assert write_page(results) == write_page(results)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("mean framewise displacement 1.60 mm, above 0.5 mm", "mean framewise displacement … mm, above … mm"),
        ("/a/b/sub-Quokka0117_bold.nii.gz: truncated", "(file) truncated"),
        ("no file for Quokka0117.1D", "no file for (file)"),
        ("no file for Quokka0117, Quokka0117_x", "no file for (name), (name)"),
        ("fMRIPrep failed in ses-3", "fMRIPrep failed in (name)"),
        ("bold.tsv has 3 rows", "(file) has … rows"),
        ("no parcel with data", "no parcel with data"),
    ],
)
def test_reasons_without_names_files_and_numbers(reason, expected):
    row = {"participant_id": "Quokka0117", "session_id": None, "recording_id": "Quokka0117_x", "exclude_reason": reason}
    assert general_reason(row) == expected


def test_reasons_are_counted_together_and_rare_ones_as_a_rest():
    words = [f"{'a' * number} is missing" for number in range(1, 26)]
    reasons = ["gap of 31 s", "gap of 40 s", None, *words]
    table = pd.DataFrame({"exclude_reason": reasons})
    counted = reasons_of(table.assign(**dict.fromkeys(KEY, None)))
    assert counted[0] == ("gap of … s", 2)
    assert counted[-1] == ("other reasons", 6)
    assert sum(count for _, count in counted) == 27


def test_costs_by_stage_and_cohort_in_the_order_of_the_data(tmp_path):
    rows = ["cost\t\t1", "qc\tb\t2", "qc\t\t1", "qc\ta\t3", "index\ta\t1"]
    write_text(tmp_path / "cost.tsv", "stage\tcohort\tjobs\n" + "\n".join(rows) + "\n")
    shown = [(row["stage"], row["cohort"], row["jobs"]) for row in cost_rows(tmp_path / "cost.tsv")]
    assert shown == [("index", "a", 1), ("qc", "", 1), ("qc", "a", 3), ("qc", "b", 2), ("cost", "", 1)]
    assert cost_rows(None) == []


def test_the_page_sums_up_what_the_run_cost(results):
    page = write_page(results)
    section = page[page.index("7. What it cost") :]
    for cell in ("fmriprep", "study", "1.500", "0.75", "16.30"):
        assert f"<td>{cell}</td>" in section
    assert re.search(r"<td>all</td><td></td><td>5</td><td></td><td>2.000</td><td>0.75</td>", section)


def test_the_page_says_whether_it_shows_single_recordings(results):
    assert "individuals_in_report: true" in write_page(results)
    assert "show single recordings, without names" in write_page(results, individuals=True)


def test_training_is_the_first_and_last_tenth_of_steps(results):
    rows = training_rows(sorted(results.glob("pretrain/*/metrics.jsonl")))
    assert [row["encoder"] for row in rows] == ["enc_seed-0", "enc_seed-1"]
    assert rows[0]["steps"] == 20
    assert rows[0]["epochs"] == 2
    assert rows[0]["cls_loss"] == (-1.5, -19.5)
    assert rows[0]["coding_rate"] == (0.5, 18.5)


def test_encoders_by_name_trained_ones_first(results):
    groups = encoder_groups(sorted(results.glob("pretrain/*/config.json")))
    assert [(group["name"], group["seeds"], group["seen"]) for group in groups] == [
        ("enc", [0, 1], {"study": 3}),
        ("enc-random", [0], {}),
    ]


def test_networks_with_median_and_least_share():
    table = pd.DataFrame({"network": ["B", "A", "B", "B"], "share": ["0.2", "1.0", "0.5", "0.9"]})
    assert network_rows(table) == [
        {"network": "B", "parcels": 3, "least": 0.2, "median": 0.5},
        {"network": "A", "parcels": 1, "least": 1.0, "median": 1.0},
    ]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("results/study/qc/fc.png", ("qc_fc", "study")),
        ("results/figures/my_study_probes_leave-site-out.png", ("probes", "my_study, leave-site-out splits")),
        ("results/figures/enc-a_seed-0_training.png", ("training", "enc-a_seed-0")),
        ("results/figures/enc-a_seed-0_learned.png", ("learned", "enc-a_seed-0")),
        ("results/figures/new.png", None),
        ("results/study/qc/new.png", None),
    ],
)
def test_kinds_of_figures(path, expected):
    assert figure_kind(Path(path)) == expected


def test_every_caption_of_the_rules_and_of_the_page_is_there():
    rules = "".join(path.read_text() for path in (REPOSITORY / "workflow/rules").glob("*.smk"))
    used = set(re.findall(r"report/(\w+)\.rst", rules)) | KINDS.keys()
    assert {kind for kind in used if not (REPORT / f"{kind}.rst").is_file()} == set()


def test_where_names_the_report_the_tables_and_the_main_rows(results, capsys):
    write_text(results / "report.html", "page")
    report.main(["--where", str(results)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("study, random splits")
    assert re.findall(r"\w+ \(balanced_accuracy\)", lines[1])[0] == "sex (balanced_accuracy)"
    assert [line.split()[:2] for line in lines[2:4]] == [["majority", "0.500"], ["fc-ridge", "0.660"]]
    assert lines[-2] == f"tables  {results}/tables/study.{{html,md,tsv,tex}}"
    assert lines[-1] == f"report  {results}/report.html"


def test_where_says_that_data_are_simulated_and_that_there_are_no_tables(tmp_path, capsys):
    write_json(tmp_path / "study/qc/summary.json", {"simulated": True})
    write_text(tmp_path / "report.html", "page")
    report.main(["--where", str(tmp_path)])
    assert "SIMULATED DATA" in (text := capsys.readouterr().out)
    assert "tables  none" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "study/qc/flow.png").write_bytes(b"GIF89a"), "flow.png: expected a PNG image"),
        (lambda folder: (folder / "study/qc/summary.json").write_text("{"), "summary.json: expected JSON"),
        (
            lambda folder: (folder / "tables/study.html").write_text("<p>"),
            "study.html: expected a page of the stage tables",
        ),
        (lambda folder: (folder / "study/index.parquet").write_text("x"), "index.parquet: expected a Parquet file"),
    ],
)
def test_broken_files_are_named(results, change, message):
    change(results)
    with pytest.raises(UserError, match=re.escape(message)):
        write_page(results)


def test_files_that_are_missing_or_elsewhere_are_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png: expected a file of the workflow"):
        Inputs(tmp_path, [tmp_path / "gone.png"])
    with pytest.raises(UserError, match="expected a file in"):
        Inputs(tmp_path / "results", [tmp_path / "other.png"])
    with pytest.raises(UserError, match=r"report\.html: expected the report"):
        report.where(tmp_path)


def test_the_page_says_why_masks_were_not_compared_with_the_template(results: Path) -> None:
    assert "study: brain masks were not compared with the template's: found no answer." in html.unescape(
        write_page(results)
    )
    summary = read_json(results / "study/qc/summary.json")
    write_json(results / "study/qc/summary.json", summary | {"mask_dice_note": None})
    assert "brain masks were not compared" not in write_page(results)


def write_pairs(folder: Path, n_more: int = 0) -> Path:
    """A recording twice in one participant, one in two cohorts, and further pairs."""
    keys = [f"{name}_{side}" for side in "ab" for name in KEY]
    rows = [["study", NAMES[0], "", f"sub-{NAMES[0]}_run-1", "study", NAMES[0], "", f"sub-{NAMES[0]}_run-2", "1.0000"]]
    rows += [["study", NAMES[1], "", f"sub-{NAMES[1]}", "other", NAMES[1], "", "sub-Q7", "0.9950"]]
    rows += [["study", NAMES[1], "", f"sub-{NAMES[1]}", "study", NAMES[2], "", f"sub-{NAMES[2]}", "0.9900"]] * n_more
    pd.DataFrame(rows, columns=[*keys, "similarity"]).to_csv(folder / "near_identical.tsv", sep="\t", index=False)
    return folder / "near_identical.tsv"


def test_pairs_of_the_same_data_are_counted(tmp_path: Path) -> None:
    found = near_identical(Inputs(tmp_path, [write_pairs(tmp_path)]), individuals=False)
    assert (found["pairs"], found["across"]) == (2, 1)
    assert [pair["one_participant"] for pair in found["shown"]] == [True, False]
    assert near_identical(Inputs(tmp_path, []), individuals=False) is None


def test_pairs_are_named_only_where_single_recordings_may_be_shown(results: Path) -> None:
    write_pairs(results, n_more=30)
    unnamed, named = (
        re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", write_page(results, individuals=individuals)))
        for individuals in (False, True)
    )
    assert "32 pairs of recordings, 1 of them across cohorts" in unnamed
    assert "study study yes 1.0000 study other no 0.9950" in unnamed
    assert "The 20 most similar pairs are listed." in unnamed
    assert not any(name in unnamed for name in NAMES)
    assert f"sub-{NAMES[0]}_run-1 study sub-{NAMES[0]}_run-2 study yes 1.0000" in named
    assert "is named here, but for near-identical recordings; figures of" in named
