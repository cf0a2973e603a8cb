rule shards:
    input:
        timeseries=RESULTS / "{cohort}" / "timeseries" / "{batch}.parquet",
        qc=RESULTS / "{cohort}" / "qc" / "{batch}.parquet",
        networks=rules.networks.output,
    output:
        RESULTS / "{cohort}" / "shards" / "{batch}.parquet",
    log:
        RESULTS / "logs" / "shards" / "{cohort}" / "{batch}.log",
    benchmark:
        RESULTS / "benchmarks" / "shards" / "{cohort}" / "{batch}.tsv"
    conda:
        "../../envs/shards.yaml"
    resources:
        mem_mb=grows_with_attempt(2000),
        runtime=grows_with_attempt(30),
    params:
        settings=settings.json("shards"),
        code=code_version("shards"),
    shell:
        "OMP_NUM_THREADS={threads} python -m semantoks.shards --settings {params.settings:q} --timeseries {input.timeseries:q} --qc {input.qc:q}"
        " --networks {input.networks:q} --output {output:q} > {log:q} 2>&1"
