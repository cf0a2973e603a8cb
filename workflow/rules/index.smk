rule index:
    input:
        batch=RESULTS / "{cohort}" / "batches" / "{batch}.tsv",
        fmriprep=fmriprep_statuses,
    output:
        RESULTS / "{cohort}" / "index" / "{batch}.parquet",
    log:
        RESULTS / "logs" / "index" / "{cohort}" / "{batch}.log",
    benchmark:
        RESULTS / "benchmarks" / "index" / "{cohort}" / "{batch}.tsv"
    conda:
        "../../envs/index.yaml"
    resources:
        mem_mb=grows_with_attempt(2000),
        runtime=grows_with_attempt(30),
    params:
        settings=lambda wildcards: settings.cohort(wildcards.cohort).json(RECORDING_KEYS),
        code=code_version("index"),
    shell:
        "OMP_NUM_THREADS={threads} python -m semantoks.index --settings {params.settings:q} --batch {input.batch:q}"
        " --fmriprep-status {input.fmriprep:q} --output {output:q} > {log:q} 2>&1"


rule index_of_cohort:
    input:
        lambda wildcards: of_batches("{cohort}/index/{batch}.parquet", wildcards.cohort),
    output:
        RESULTS / "{cohort}" / "index.parquet",
    log:
        RESULTS / "logs" / "index" / "{cohort}.log",
    benchmark:
        RESULTS / "benchmarks" / "index" / "{cohort}.tsv"
    conda:
        "../../envs/index.yaml"
    params:
        settings=lambda wildcards: settings.cohort(wildcards.cohort).json(RECORDING_KEYS),
        code=code_version("index"),
    shell:
        "python -m semantoks.index --settings {params.settings:q} --join {input:q} --output {output:q}"
        " > {log:q} 2>&1"
