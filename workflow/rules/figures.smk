rule figures_of_probes:
    input:
        rules.tables.output.table,
    output:
        report(
            expand(
                RESULTS / "figures" / "{{cohort}}_probes_{protocol}.png",
                protocol=settings.section("probe")["protocols"],
            ),
            caption="../report/probes.rst",
            category="Probes",
            subcategory="{cohort}",
        ),
    log:
        RESULTS / "logs" / "figures" / "{cohort}_probes.log",
    benchmark:
        RESULTS / "benchmarks" / "figures" / "{cohort}_probes.tsv"
    conda:
        "../../envs/figures.yaml"
    params:
        settings=json.dumps({"simulated": settings.values["simulated"]}),
        code=code_version("figures"),
        folder=RESULTS / "figures",
    shell:
        "python -m semantoks.figures --settings {params.settings:q} --tables {input:q}"
        " --output-folder {params.folder:q} > {log:q} 2>&1"


rule figures_of_training:
    input:
        RESULTS / "pretrain" / "{encoder}" / "metrics.jsonl",
    output:
        report(
            RESULTS / "figures" / "{encoder}_training.png",
            caption="../report/training.rst",
            category="Pretraining",
        ),
    log:
        RESULTS / "logs" / "figures" / "{encoder}_training.log",
    benchmark:
        RESULTS / "benchmarks" / "figures" / "{encoder}_training.tsv"
    conda:
        "../../envs/figures.yaml"
    params:
        settings=json.dumps({"simulated": settings.values["simulated"]}),
        code=code_version("figures"),
        folder=RESULTS / "figures",
    shell:
        "python -m semantoks.figures --settings {params.settings:q} --metrics {input:q}"
        " --output-folder {params.folder:q} > {log:q} 2>&1"
