rule index:
    input:
        fingerprints=lambda wildcards: of_batches("{cohort}/batches/{batch}.tsv", wildcards.cohort),
        participants=lambda wildcards: (settings.cohort(wildcards.cohort).settings["participants"] or {}).get(
            "path", []
        ),
        fmriprep=fmriprep_statuses,
    output:
        RESULTS / "{cohort}" / "index.parquet",
    log:
        RESULTS / "logs" / "index" / "{cohort}.log",
    benchmark:
        RESULTS / "benchmarks" / "index" / "{cohort}.tsv"
    conda:
        "../../envs/index.yaml"
    threads: 2
    resources:
        mem_mb=grows_with_attempt(2000),
        runtime=grows_with_attempt(30),
    params:
        settings=lambda wildcards: settings.cohort(wildcards.cohort).json(RECORDING_KEYS),
        code=code_version("index"),
        manifest=lambda wildcards: RESULTS / wildcards.cohort / "batches",
    shell:
        "OMP_NUM_THREADS={threads} python -m semantoks.index --settings {params.settings:q} --manifest {params.manifest:q}"
        " --fmriprep-status {input.fmriprep:q} --output {output:q} > {log:q} 2>&1"
