# What the page says of a cohort. Paths and lists of participants are not among it.
REPORT_KEYS = [
    "description",
    "role",
    "fitted_on",
    "space",
    "tasks",
    "already_done",
    "confounds",
    "phenotypes",
]


rule report:
    # The place of a file says what it is.
    input:
        atlas=[*rules.atlas.output, *rules.networks.output],
        quality=[
            expand(quality_for_report(rules.qc_summary.output), cohort=cohort.name) for cohort in settings.cohorts
        ]
        + [rules.qc_near_identical.output],
        batches=lambda wildcards: [
            path
            for cohort in settings.cohorts
            for stage in ("timeseries", "qc", "shards")
            for path in of_batches(f"{{cohort}}/{stage}/{{batch}}.parquet", cohort.name)
        ],
        encoders=expand(
            RESULTS / "pretrain" / "{encoder}" / "{file}",
            encoder=settings.encoders,
            file=["config.json", "metrics.jsonl"],
        ),
        training=expand(
            rules.figures_of_encoder.output,
            encoder=[encoder.name for encoder in settings.encoders.values() if not encoder.untrained],
        ),
        splits=expand(rules.splits.output, cohort=settings.probe_cohorts),
        tables=expand(
            [rules.tables.output.html, rules.tables.output.table],
            cohort=settings.probe_cohorts,
        ),
        probes=[path for cohort in settings.probe_cohorts for path in probe_figures(cohort)],
        cost=rules.cost.output,
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
        # A function, because braces in a description are no wildcards.
        settings=lambda wildcards: json.dumps(
            {
                "simulated": settings.values["simulated"],
                "individuals": settings.values["individuals_in_report"],
                "cohorts": {
                    cohort.name: {key: cohort.settings[key] for key in REPORT_KEYS} | {"source": cohort.source["type"]}
                    for cohort in settings.cohorts
                },
            },
            sort_keys=True,
        ),
        code=code_version("report"),
        results=RESULTS,
    shell:
        "python -m semantoks.report --settings {params.settings:q} --results {params.results:q}"
        " --files {input.atlas:q} {input.quality:q} {input.batches:q} {input.encoders:q} {input.training:q}"
        " {input.splits:q} {input.tables:q} {input.probes:q} {input.cost:q} --output {output:q} > {log:q} 2>&1"
