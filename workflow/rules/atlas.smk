# Where snakemake was started: compute nodes often have no network.
localrules:
    atlas_source,
    template_mask,


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
        checksum=lambda wildcards: source_of(wildcards.file).checksum,
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


rule template_mask:
    # Says where the mask is, or why there is none: nobody has to have it.
    output:
        RESULTS / "atlas" / "template_mask.json",
    log:
        RESULTS / "logs" / "atlas" / "template_mask.log",
    benchmark:
        RESULTS / "benchmarks" / "atlas" / "template_mask.tsv"
    conda:
        "../../envs/atlas.yaml"
    params:
        # A function, because braces in a path are no wildcards.
        settings=lambda wildcards: json.dumps({key: settings.section("atlas")[key] for key in ("space", "folder")}),
        checksum=checksum_of(settings.section("atlas")["space"]),
        fetched=RESULTS / "atlas" / "sources",
    shell:
        "python -m semantoks.template_mask --settings {params.settings:q} --fetched {params.fetched:q}"
        " --output {output:q} > {log:q} 2>&1"
