# make demo · test · test-slow · chaos · lint · docs · bench · plan · lock · pins
SHELL := /bin/bash
PYTHON ?= python3
CORES ?= 2
RECORDINGS ?= 40000
CONFIG ?= config/config.yaml
VENV := .venv
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" PYTHONNOUSERSITE=1 PYTHONPATH=workflow
SNAKEMAKE := $(RUN) snakemake --cores $(CORES)

.PHONY: help demo test test-slow chaos lint docs bench plan lock pins
.DEFAULT_GOAL := help

help:  ## Show the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: expected Python 3.11 or newer, found $$($(PYTHON) --version); run make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	touch $@

$(VENV)/installed-test: $(VENV)/installed requirements-test.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-test.lock
	touch $@

demo: $(VENV)/installed data/demo/complete  ## Simulate a small cohort and run the whole workflow on it (about ten minutes)
	$(SNAKEMAKE)
	@$(RUN) python -m semantoks.report --where results

data/demo/complete: $(VENV)/installed
	$(RUN) python -m semantoks.simulate --output data/demo --workers $(CORES)
	touch $@

test: $(VENV)/installed-test lint  ## Fast tests, a dry run and the linters
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -q -n $(CORES) --dist loadfile tests

test-slow: $(VENV)/installed-test  ## Tests that run whole workflows, real data, Slurm and containers
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -q -n $(CORES) --dist loadfile -m slow --durations=12 tests

chaos: $(VENV)/installed-test  ## Fifty random kills of a small run, each followed by another run (about half an hour)
	$(RUN) OMP_NUM_THREADS=1 python tests/chaos.py

lint: $(VENV)/installed-test  ## Style, types, Snakemake's own checks
	$(RUN) ruff check workflow tests benchmarks envs
	$(RUN) ruff format --check workflow tests benchmarks envs
	$(RUN) mypy
	$(RUN) snakefmt --check Snakefile workflow/Snakefile workflow/rules
	$(RUN) python tests/lint_workflow.py

docs: $(VENV)/installed  ## Refresh the tables of keys in config/README.md
	$(RUN) python -m semantoks.config_reference

bench: $(VENV)/installed  ## Measure speed on this machine (RECORDINGS: size of the cohort that is indexed)
	$(RUN) python benchmarks/index.py --recordings $(RECORDINGS)
	$(RUN) OMP_NUM_THREADS=1 python benchmarks/parcellate.py
	$(RUN) OMP_NUM_THREADS=1 python benchmarks/shards.py
	$(RUN) python benchmarks/pretrain.py
	$(RUN) python benchmarks/probe.py

plan: $(VENV)/installed  ## Estimate hours, disk and files of the configured recordings (CONFIG), against the quota
	$(RUN) python -m semantoks.plan --configfile $(CONFIG)

lock: $(VENV)/installed  ## Refresh requirements.lock and envs/ from envs/stages.yaml (needs a package index)
	$(RUN) python envs/lock.py

pins: $(VENV)/installed  ## Ask the homes of images and atlases for the digests that the lock files lack (needs a network)
	$(RUN) python -m semantoks.container_images
	$(RUN) python -m semantoks.atlas_sources --pin data/atlases
