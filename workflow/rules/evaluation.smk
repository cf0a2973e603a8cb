# What probes, their tables and figures read of each cohort.


def fitted_on(cohort):
    """The cohort whose models are tested on a cohort that is for testing only; None for any other."""
    name = settings.cohort(cohort).settings["fitted_on"]
    return None if name is None else settings.cohort(name)


def study(cohort):
    """Names of the cohorts whose participants are in the splits of a cohort."""
    other = fitted_on(cohort)
    return [cohort] if other is None else [cohort, other.name]


def cohort_settings(wildcards, row=None, **sections):
    """What probes need to know of a cohort, and of the one whose models are tested on it."""
    other = fitted_on(wildcards.cohort)
    if other is not None:
        sections["fitted_on"] = json.loads(other.probe_json(**own_features(other.name, row)))
    return settings.cohort(wildcards.cohort).probe_json(**own_features(wildcards.cohort, row), **sections)


def probe_settings(wildcards):
    """What decides about a row; which other rows there are does not."""
    row = getattr(wildcards, "row", None)
    return cohort_settings(wildcards, row, probe=settings.probe_section(wildcards.cohort))


def own_features(cohort, row):
    """The user's table behind a row, as a section of settings; empty for any other row."""
    table = settings.cohort(cohort).settings["features"].get(row)
    return {} if table is None else {"features": {row: table}}


def split_file(wildcards):
    return settings.cohort(wildcards.cohort).settings["split_file"] or []


def probe_protocols(cohort):
    """Ways in which a cohort is divided, or the one in which it is tested."""
    if fitted_on(cohort) is not None:
        return ["transfer"]
    return list(settings.section("probe")["protocols"]) + ["given"] * bool(
        settings.cohort(cohort).settings["split_file"]
    )


def probe_figures(cohort):
    """Figures of a cohort's probes: two per protocol, results by site, learning curves."""
    protocols = probe_protocols(cohort)
    whole = [protocol for protocol in protocols if protocol != "learning-curve"]
    by_site = [protocol for protocol in whole if protocol in ("leave-site-out", "transfer")]
    names = expand("{kind}_{protocol}", kind=["probes", "confusion"], protocol=whole)
    names += expand("sites_{protocol}", protocol=by_site) + ["learning_curve"] * ("learning-curve" in protocols)
    return [RESULTS / "figures" / f"{cohort}_{name}.png" for name in names]


def own_feature_files(wildcards):
    sections = [own_features(cohort, wildcards.row) for cohort in study(wildcards.cohort)]
    return [section["features"][wildcards.row]["path"] for section in sections if section]


def participants_table(wildcards):
    """A changed label reruns the probes, not what comes before them."""
    tables = [settings.cohort(cohort).settings["participants"] for cohort in study(wildcards.cohort)]
    return [table["path"] for table in tables if table]


def cohort_shards(wildcards):
    return of_batches("{cohort}/shards/{batch}.parquet", wildcards.cohort)


def fitted_shards(wildcards):
    other = fitted_on(wildcards.cohort)
    return [] if other is None else of_batches("{cohort}/shards/{batch}.parquet", other.name)


def fitted_splits(wildcards):
    other = fitted_on(wildcards.cohort)
    return [] if other is None else [RESULTS / other.name / "splits.parquet"]


def confound_files(wildcards):
    """Motion of all participants of the splits, for the row of confounds."""
    wanted = study(wildcards.cohort) if wildcards.row == "confounds" else []
    return [path for cohort in wanted for path in of_batches("{cohort}/qc/{batch}.parquet", cohort)]


def row_encoders(row):
    """Full names of the encoders behind a row: itself, or those that take turns in it; none for references."""
    if row in settings.encoders:
        return [row]
    name, _, seed = row.rpartition("_seed-")
    return [f"{encoder}_seed-{seed}" for encoder in settings.section("probe")["inductive"].get(name, [])]


def pretraining_elsewhere(cohort, encoders):
    """Shards of other cohorts that encoders were pretrained on: compared with the cohort's own by content."""
    trained = [settings.encoder(name) for name in encoders]
    cohorts = dict.fromkeys(name for encoder in trained if not encoder.untrained for name in encoder.cohorts)
    others = [name for name in cohorts if name != cohort]
    return [shard for name in others for shard in of_batches("{cohort}/shards/{batch}.parquet", name)]


def foreign_pretraining(wildcards):
    return pretraining_elsewhere(wildcards.cohort, row_encoders(wildcards.row))


def is_connectivity(row):
    return row.split("-")[0] == "fc"


def probe_shards(wildcards):
    """A row's own time series: for connectivity, and for the comparison with pretraining."""
    return cohort_shards(wildcards) if is_connectivity(wildcards.row) or foreign_pretraining(wildcards) else []


def probe_fitted_shards(wildcards):
    return fitted_shards(wildcards) if is_connectivity(wildcards.row) else []


def row_embeddings(wildcards):
    return expand(
        RESULTS / "{cohort}" / "embeddings" / "{encoder}.parquet",
        cohort=study(wildcards.cohort),
        encoder=row_encoders(wildcards.row),
    )


def probe_rows(cohort):
    """Rows of a cohort's table: references, the user's own features, every encoder, encoders that take turns."""
    references = list(settings.section("probe")["rows"])
    if fitted_on(cohort) is not None and "fc-combat" in references:
        # ComBat has no estimate for a site that nobody was fitted on.
        references.remove("fc-combat")
    in_turns = {name for names in settings.section("probe")["inductive"].values() for name in names}
    encoders = [
        name for name in settings.encoders if name.rpartition("_seed-")[0].removesuffix("-random") not in in_turns
    ]
    return [*references, *settings.cohort(cohort).settings["features"], *encoders, *inductive_rows(cohort)]


def inductive_rows(cohort):
    """Encoders that take turns over the held-out sites, one row per seed that all of them have."""
    if "leave-site-out" not in probe_protocols(cohort):
        return []
    rows = []
    for name, encoders in settings.section("probe")["inductive"].items():
        seeds = [
            {one.seed for one in settings.encoders.values() if one.name == f"{encoder}_seed-{one.seed}"}
            for encoder in encoders
        ]
        rows += [f"{name}_seed-{seed}" for seed in sorted(set.intersection(*seeds))]
    return rows


def cohort_probes(wildcards):
    rows = expand(RESULTS / wildcards.cohort / "probes" / "{row}.parquet", row=probe_rows(wildcards.cohort))
    return rows + expand(RESULTS / wildcards.cohort / "supervised" / "{network}.parquet", network=supervised_networks())


def supervised_networks():
    """Networks that are trained on labels: those from nothing once, fine-tuned ones for each encoder named."""
    section = settings.section("supervised")
    tuned = [model for model in section["models"] if model in ("finetuned", "lora")]
    networks = [model for model in section["models"] if model not in tuned]
    return networks + [f"{model}-{encoder}" for model in tuned for encoder in section["encoders"]]


def supervised_weights(wildcards):
    """Weights and configuration of the encoder to fine-tune; nothing for networks from nothing."""
    model, _, encoder = wildcards.network.partition("-")
    return folder_files(f"pretrain/{encoder}", ["weights.safetensors", "config.json"]) if encoder else []


def supervised_pretraining(wildcards):
    encoder = wildcards.network.partition("-")[2]
    return pretraining_elsewhere(wildcards.cohort, [encoder] if encoder else [])


def supervised_settings(wildcards):
    section = {key: value for key, value in settings.section("supervised").items() if key not in ("models", "encoders")}
    return cohort_settings(wildcards, supervised=section)


def cohort_permutations(wildcards):
    return expand(RESULTS / wildcards.cohort / "permutations" / "{row}.parquet", row=probe_rows(wildcards.cohort))
