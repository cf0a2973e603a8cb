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
    shell:
        "python -m semantoks.atlas --settings {params.settings:q} --output-folder {params.folder:q} > {log:q} 2>&1"
