rule embed:
    input:
        weights=RESULTS / "pretrain" / "{encoder}" / "weights.safetensors",
        config=RESULTS / "pretrain" / "{encoder}" / "config.json",
        shards=lambda wildcards: of_batches("{cohort}/shards/{batch}.parquet", wildcards.cohort),
        quality=lambda wildcards: accepted([wildcards.cohort]),
    output:
        RESULTS / "{cohort}" / "embeddings" / "{encoder}.parquet",
    log:
        RESULTS / "logs" / "embed" / "{cohort}" / "{encoder}.log",
    benchmark:
        RESULTS / "benchmarks" / "embed" / "{cohort}" / "{encoder}.tsv"
    conda:
        "../../envs/embed.yaml"
    threads: settings.values["pretrain"]["threads"]
    resources:
        gpu=min(1, settings.values["pretrain"]["gpus"]),
        mem_mb=grows_with_attempt(8000),
        runtime=grows_with_attempt(120),
    params:
        settings=settings.json("embed"),
        code=code_version("embed"),
    shell:
        "OMP_NUM_THREADS={threads} python -m semantoks.embed --settings {params.settings:q} --weights {input.weights:q} --shards {input.shards:q}"
        " --output {output:q} > {log:q} 2>&1"
