rule figures_of_probes:
    input:
        rules.tables.output.table,
    output:
        report(
            RESULTS / "figures" / "{cohort}_probes_{protocol}.png",
            caption="../report/probes.rst",
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
        "python -m semantoks.figures --settings {params.settings:q} --tables {input:q} --protocol {wildcards.protocol}"
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
