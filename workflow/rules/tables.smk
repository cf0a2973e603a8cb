rule tables:
    input:
        probes=cohort_probes,
        permutations=cohort_permutations,
        published=REPOSITORY / "resources" / "published.tsv",
    output:
        sites=RESULTS / "tables" / "{cohort}_sites.tsv",
        confusion=RESULTS / "tables" / "{cohort}_confusion.tsv",
        learning_curve=RESULTS / "tables" / "{cohort}_learning_curve.tsv",
        table=RESULTS / "tables" / "{cohort}.tsv",
        markdown=RESULTS / "tables" / "{cohort}.md",
        html=report(
            RESULTS / "tables" / "{cohort}.html",
            caption="../report/table.rst",
            category="Tables",
        ),
        latex=RESULTS / "tables" / "{cohort}.tex",
        about=RESULTS / "tables" / "{cohort}.json",
    log:
        RESULTS / "logs" / "tables" / "{cohort}.log",
    benchmark:
        RESULTS / "benchmarks" / "tables" / "{cohort}.tsv"
    conda:
        "../../envs/tables.yaml"
    resources:
        mem_mb=grows_with_attempt(4000),
        runtime=grows_with_attempt(60),
    params:
        settings=lambda wildcards: settings.json(
            "tables",
            simulated=settings.values["simulated"],
            published_tasks={wildcards.cohort: settings.cohort(wildcards.cohort).published_tasks},
        ),
        code=code_version("tables"),
        folder=RESULTS / "tables",
    shell:
        "python -m semantoks.tables --settings {params.settings:q} --probes {input.probes:q} --permutations {input.permutations:q}"
        " --published {input.published:q} --output-folder {params.folder:q} > {log:q} 2>&1"
