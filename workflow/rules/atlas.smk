# Where snakemake was started: compute nodes often have no network.
localrules:
    atlas_source,


rule atlas_source:
    output:
        RESULTS / "atlas" / "sources" / "{file}",
    log:
        RESULTS / "logs" / "atlas" / "{file}.log",
    benchmark:
        RESULTS / "benchmarks" / "atlas" / "{file}.tsv"
    conda:
        "../../envs/atlas.yaml"
    params:
        checksum=lambda wildcards: source_of(wildcards.file).sha256,
    shell:
        "python -m semantoks.atlas_sources --output {output:q} > {log:q} 2>&1"


rule atlas:
    input:
        atlas_sources(),
    output:
        folder_files("atlas", ["labels.tsv", "atlas.json"]),
    log:
        RESULTS / "logs" / "atlas.log",
    benchmark:
        RESULTS / "benchmarks" / "atlas.tsv"
    conda:
        "../../envs/atlas.yaml"
    params:
        settings=settings.json("atlas"),
        code=code_version("atlas"),
        folder=RESULTS / "atlas",
        sources=RESULTS / "atlas" / "sources",
    shell:
        "python -m semantoks.atlas --settings {params.settings:q} --sources {params.sources:q}"
        " --output-folder {params.folder:q} > {log:q} 2>&1"
