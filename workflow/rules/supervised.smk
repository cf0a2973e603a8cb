rule supervised:
    input:
        splits=rules.splits.output,
        participants=participants_table,
        shards=cohort_shards,
        fitted_shards=fitted_shards,
        pretrain_shards=supervised_pretraining,
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
        fitted_shards=lambda wildcards, input: as_arguments("--fitted-shards", input.fitted_shards),
        pretrain_shards=lambda wildcards, input: as_arguments("--pretrain-shards", input.pretrain_shards),
    shell:
        "OMP_NUM_THREADS={threads} python -m semantoks.supervised --settings {params.settings:q} --model {params.model:q} {params.weights}"
        " --splits {input.splits:q} --shards {input.shards:q} {params.fitted_shards} {params.pretrain_shards}"
        " --threads {threads} --output {output:q} > {log:q} 2>&1"
