rule supervised:
    input:
        splits=rules.splits.output,
        participants=participants_table,
        shards=study_shards,
        weights=supervised_weights,
    output:
        RESULTS / "{cohort}" / "supervised" / "{network}.parquet",
    log:
        RESULTS / "logs" / "supervised" / "{cohort}" / "{network}.log",
    benchmark:
        RESULTS / "benchmarks" / "supervised" / "{cohort}" / "{network}.tsv"
    conda:
        "../../envs/supervised.yaml"
    threads: settings.values["pretrain"]["threads"]
    resources:
        gpu=min(1, settings.values["pretrain"]["gpus"]),
        mem_mb=grows_with_attempt(8000),
        runtime=grows_with_attempt(720),
    params:
        settings=supervised_settings,
        code=code_version("supervised"),
        model=lambda wildcards: wildcards.network.split("-")[0],
        weights=lambda wildcards, input: as_arguments("--weights", input.weights[:1]),
    shell:
        "OMP_NUM_THREADS={threads} python -m semantoks.supervised --settings {params.settings:q} --model {params.model:q} {params.weights}"
        " --splits {input.splits:q} --shards {input.shards:q} --threads {threads} --output {output:q} > {log:q} 2>&1"
