# What the page says of a cohort. Paths and lists of participants are not among it.
REPORT_KEYS = (
    "description",
    "role",
    "space",
    "tasks",
    "already_done",
    "confounds",
    "phenotypes",
)


def report_settings():
    cohorts = {
        cohort.name: {
            **{key: cohort.settings[key] for key in REPORT_KEYS},
            "source": cohort.source["type"],
        }
        for cohort in settings.cohorts
    }
    return json.dumps({"simulated": settings.values["simulated"], "cohorts": cohorts}, sort_keys=True)


def report_files(wildcards):
    """What the page is made of; the place of a file says what it is."""
    files = [*rules.atlas.output, *rules.networks.output]
    for cohort in settings.cohorts:
        files += expand(rules.qc_summary.output, cohort=cohort.name)
        for stage in ("timeseries", "qc", "shards"):
            files += of_batches(f"{{cohort}}/{stage}/{{batch}}.parquet", cohort.name)
    for encoder in settings.encoders.values():
        files += folder_files(f"pretrain/{encoder.name}", ["config.json", "metrics.jsonl"])
        files += [] if encoder.untrained else [RESULTS / "figures" / f"{encoder.name}_training.png"]
    for cohort in settings.probe_cohorts:
        files += folder_files(cohort, ["splits.parquet"])
        files += folder_files("tables", [f"{cohort}.html", f"{cohort}.tsv"])
        files += expand(rules.figures_of_probes.output, cohort=cohort)
    return files


rule report:
    input:
        files=report_files,
        texts=sorted((REPOSITORY / "workflow" / "report").glob("*")),
    output:
        report(
            RESULTS / "report.html",
            caption="../report/report.rst",
            category="Report",
        ),
    log:
        RESULTS / "logs" / "report.log",
    benchmark:
        RESULTS / "benchmarks" / "report.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=grows_with_attempt(2000),
        runtime=grows_with_attempt(30),
    params:
        settings=report_settings(),
        code=code_version("report"),
        results=RESULTS,
    shell:
        "python -m semantoks.report --settings {params.settings:q} --results {params.results:q}"
        " --files {input.files:q} --output {output:q} > {log:q} 2>&1"
