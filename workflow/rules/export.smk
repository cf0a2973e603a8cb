rule export_hdf5:
    input:
        timeseries=lambda wildcards: of_batches("{cohort}/timeseries/{batch}.parquet", wildcards.cohort),
        qc=lambda wildcards: of_batches("{cohort}/qc/{batch}.parquet", wildcards.cohort),
    output:
        RESULTS / "{cohort}" / "export" / "timeseries.h5",
    log:
        RESULTS / "logs" / "export" / "{cohort}" / "hdf5.log",
    benchmark:
        RESULTS / "benchmarks" / "export" / "{cohort}" / "hdf5.tsv"
    conda:
        "../../envs/index.yaml"
    resources:
        mem_mb=grows_with_attempt(2000),
    params:
        code=code_version("export_timeseries"),
    shell:
        "python -m semantoks.export_timeseries --timeseries {input.timeseries:q} --qc {input.qc:q} --hdf5 {output:q}"
        " > {log:q} 2>&1"


rule export_bids:
    input:
        timeseries=lambda wildcards: of_batches("{cohort}/timeseries/{batch}.parquet", wildcards.cohort),
        qc=lambda wildcards: of_batches("{cohort}/qc/{batch}.parquet", wildcards.cohort),
        index=RESULTS / "{cohort}" / "index.parquet",
        labels=RESULTS / "atlas" / "labels.tsv",
    # The files of recordings lie beside it; it is written last.
    output:
        RESULTS / "{cohort}" / "export" / "bids" / "dataset_description.json",
    log:
        RESULTS / "logs" / "export" / "{cohort}" / "bids.log",
    benchmark:
        RESULTS / "benchmarks" / "export" / "{cohort}" / "bids.tsv"
    conda:
        "../../envs/index.yaml"
    resources:
        mem_mb=grows_with_attempt(2000),
    params:
        code=code_version("export_timeseries"),
        folder=lambda wildcards: RESULTS / wildcards.cohort / "export" / "bids",
    shell:
        "python -m semantoks.export_timeseries --timeseries {input.timeseries:q} --qc {input.qc:q} --index {input.index:q}"
        " --labels {input.labels:q} --bids {params.folder:q} > {log:q} 2>&1"
