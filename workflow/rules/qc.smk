rule qc:
    input:
        RESULTS / "{cohort}" / "timeseries" / "{batch}.parquet",
    output:
        RESULTS / "{cohort}" / "qc" / "{batch}.parquet",
    log:
        RESULTS / "logs" / "qc" / "{cohort}" / "{batch}.log",
    benchmark:
        RESULTS / "benchmarks" / "qc" / "{cohort}" / "{batch}.tsv"
    conda:
        "../../envs/qc.yaml"
    resources:
        mem_mb=grows_with_attempt(2000),
        runtime=grows_with_attempt(30),
    params:
        settings=settings.json("qc"),
        code=code_version("qc"),
    shell:
        "OMP_NUM_THREADS={threads} python -m semantoks.qc --settings {params.settings:q} --timeseries {input:q} --output {output:q}"
        " > {log:q} 2>&1"


rule qc_accept:
    # Nothing is trained or tested on a cohort of which too much was excluded. Nothing is trained again, either, when that
    # share or this code changes: `check_accepted` looks at every start, and a function of the input is no parameter that
    # Snakemake remembers.
    input:
        lambda wildcards: of_batches("{cohort}/qc/{batch}.parquet", wildcards.cohort),
    output:
        RESULTS / "{cohort}" / "qc" / "accepted.json",
    log:
        RESULTS / "logs" / "qc" / "{cohort}" / "accept.log",
    benchmark:
        RESULTS / "benchmarks" / "qc" / "{cohort}" / "accept.tsv"
    conda:
        "../../envs/qc.yaml"
    params:
        share=lambda wildcards, input: settings.values["maximum_excluded_share"],
    shell:
        "python -m semantoks.qc_accept --maximum-excluded-share {params.share} --decisions {input:q} --output {output:q}"
        " > {log:q} 2>&1"


rule qc_near_identical:
    input:
        lambda wildcards: [
            path for cohort in settings.cohorts for path in of_batches("{cohort}/qc/{batch}.parquet", cohort.name)
        ],
    output:
        RESULTS / "near_identical.tsv",
    log:
        RESULTS / "logs" / "qc" / "near_identical.log",
    benchmark:
        RESULTS / "benchmarks" / "qc" / "near_identical.tsv"
    conda:
        "../../envs/qc.yaml"
    resources:
        mem_mb=grows_with_attempt(4000),
    params:
        similarity=settings.values["near_identical_similarity"],
        code=code_version("qc_near_identical"),
    shell:
        "python -m semantoks.qc_near_identical --similarity {params.similarity} --decisions {input:q} --output {output:q}"
        " > {log:q} 2>&1"


rule qc_summary:
    input:
        qc=lambda wildcards: of_batches("{cohort}/qc/{batch}.parquet", wildcards.cohort),
        timeseries=lambda wildcards: of_batches("{cohort}/timeseries/{batch}.parquet", wildcards.cohort),
        networks=rules.networks.output,
    output:
        exclusions=RESULTS / "{cohort}" / "qc" / "exclusions.tsv",
        summary=RESULTS / "{cohort}" / "qc" / "summary.json",
        flow=report(
            RESULTS / "{cohort}" / "qc" / "flow.png",
            caption="../report/qc_flow.rst",
            category="Quality control",
            subcategory="{cohort}",
        ),
        recordings=of_individuals(
            RESULTS / "{cohort}" / "qc" / "recordings.png",
            caption="../report/qc_recordings.rst",
            category="Quality control",
            subcategory="{cohort}",
        ),
        parcels=report(
            RESULTS / "{cohort}" / "qc" / "parcels.png",
            caption="../report/qc_parcels.rst",
            category="Quality control",
            subcategory="{cohort}",
        ),
        fc=report(
            RESULTS / "{cohort}" / "qc" / "fc.png",
            caption="../report/qc_fc.rst",
            category="Quality control",
            subcategory="{cohort}",
        ),
        qcfc=report(
            RESULTS / "{cohort}" / "qc" / "qcfc.png",
            caption="../report/qc_qcfc.rst",
            category="Quality control",
            subcategory="{cohort}",
        ),
        carpets=of_individuals(
            RESULTS / "{cohort}" / "qc" / "carpets.png",
            caption="../report/qc_carpets.rst",
            category="Quality control",
            subcategory="{cohort}",
        ),
    log:
        RESULTS / "logs" / "qc" / "{cohort}" / "summary.log",
    benchmark:
        RESULTS / "benchmarks" / "qc" / "{cohort}" / "summary.tsv"
    conda:
        "../../envs/qc.yaml"
    resources:
        mem_mb=grows_with_attempt(4000),
        runtime=grows_with_attempt(60),
    params:
        settings=settings.json("qc", simulated=settings.values["simulated"]),
        code=code_version("qc"),
        atlas=RESULTS / "atlas",
        folder=lambda wildcards: RESULTS / wildcards.cohort / "qc",
    shell:
        "OMP_NUM_THREADS={threads} python -m semantoks.qc --settings {params.settings:q} --summary {input.qc:q}"
        " --timeseries {input.timeseries:q} --atlas {params.atlas:q} --output-folder {params.folder:q} > {log:q} 2>&1"
