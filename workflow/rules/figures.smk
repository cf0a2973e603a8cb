rule figures_of_probes:
    input:
        table=rules.tables.output.table,
        confusion=rules.tables.output.confusion,
    output:
        probes=report(
            RESULTS / "figures" / "{cohort}_probes_{protocol}.png",
            caption="../report/probes.rst",
            category="Probes",
            subcategory="{cohort}",
        ),
        confusion=report(
            RESULTS / "figures" / "{cohort}_confusion_{protocol}.png",
            caption="../report/confusion.rst",
            category="Probes",
            subcategory="{cohort}",
        ),
    log:
        RESULTS / "logs" / "figures" / "{cohort}_probes_{protocol}.log",
    benchmark:
        RESULTS / "benchmarks" / "figures" / "{cohort}_probes_{protocol}.tsv"
    conda:
        "../../envs/figures.yaml"
    params:
        settings=json.dumps({"simulated": settings.values["simulated"]}),
        code=code_version("figures"),
        folder=RESULTS / "figures",
    shell:
        "python -m semantoks.figures --settings {params.settings:q} --tables {input.table:q} --kinds probes confusion"
        " --protocol {wildcards.protocol} --output-folder {params.folder:q} > {log:q} 2>&1"


rule figures_of_sites:
    input:
        table=rules.tables.output.table,
        sites=rules.tables.output.sites,
    output:
        report(
            RESULTS / "figures" / "{cohort}_sites_{protocol}.png",
            caption="../report/sites.rst",
            category="Probes",
            subcategory="{cohort}",
        ),
    log:
        RESULTS / "logs" / "figures" / "{cohort}_sites_{protocol}.log",
    benchmark:
        RESULTS / "benchmarks" / "figures" / "{cohort}_sites_{protocol}.tsv"
    conda:
        "../../envs/figures.yaml"
    params:
        settings=json.dumps({"simulated": settings.values["simulated"]}),
        code=code_version("figures"),
        folder=RESULTS / "figures",
    shell:
        "python -m semantoks.figures --settings {params.settings:q} --tables {input.table:q} --kinds sites"
        " --protocol {wildcards.protocol} --output-folder {params.folder:q} > {log:q} 2>&1"


rule figures_of_learning_curve:
    input:
        table=rules.tables.output.table,
        learning_curve=rules.tables.output.learning_curve,
    output:
        report(
            RESULTS / "figures" / "{cohort}_learning_curve.png",
            caption="../report/learning_curve.rst",
            category="Probes",
            subcategory="{cohort}",
        ),
    log:
        RESULTS / "logs" / "figures" / "{cohort}_learning_curve.log",
    benchmark:
        RESULTS / "benchmarks" / "figures" / "{cohort}_learning_curve.tsv"
    conda:
        "../../envs/figures.yaml"
    params:
        settings=json.dumps({"simulated": settings.values["simulated"]}),
        code=code_version("figures"),
        folder=RESULTS / "figures",
    shell:
        "python -m semantoks.figures --settings {params.settings:q} --tables {input.table:q} --kinds learning_curve"
        " --output-folder {params.folder:q} > {log:q} 2>&1"


rule figures_of_encoder:
    input:
        folder_files(
            "pretrain/{encoder}",
            ["weights.safetensors", "config.json", "metrics.jsonl"],
        ),
    output:
        training=report(
            RESULTS / "figures" / "{encoder}_training.png",
            caption="../report/training.rst",
            category="Pretraining",
        ),
        learned=report(
            RESULTS / "figures" / "{encoder}_learned.png",
            caption="../report/learned.rst",
            category="Pretraining",
        ),
    log:
        RESULTS / "logs" / "figures" / "{encoder}.log",
    benchmark:
        RESULTS / "benchmarks" / "figures" / "{encoder}.tsv"
    conda:
        "../../envs/encoder_figures.yaml"
    params:
        settings=json.dumps({"simulated": settings.values["simulated"]}),
        code=code_version("encoder_figures"),
        encoder=lambda wildcards: RESULTS / "pretrain" / wildcards.encoder,
        folder=RESULTS / "figures",
    shell:
        "python -m semantoks.encoder_figures --settings {params.settings:q} --encoder {params.encoder:q}"
        " --output-folder {params.folder:q} > {log:q} 2>&1"
