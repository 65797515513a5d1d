# make reproduce: from real images to Tables 1-5 and Figure 1.   make test: the tests.   make help: the rest.
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
export PRESET ?= demo
CORES ?= $(shell env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
PROFILE ?= default
RUN ?=
EXTRAS ?= dev,site
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export PYTHONUTF8 := 1
# threads that wait spin for some microseconds, then sleep: as fast as sleeping on a busy machine, 1.7 x on a quiet one (docs/speed.md)
export GOMP_SPINCOUNT ?= 10000
export TORCHINDUCTOR_CACHE_DIR ?= $(CURDIR)/.cache/inductor
# glibc keeps freed memory for the next step, in huge pages, instead of giving it back (docs/speed.md)
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000000

SNAKEMAKE = $(BIN)/python -m nppkit warm $(BIN)/snakemake --workflow-profile profiles/$(PROFILE) --cores $(CORES)
WORKERS ?= -n 3 --dist worksteal
CONFIG = --config "preset=$$PRESET" $(RUN)  # comes last: it takes every word after it
BENCH := step patches training memory breakdown loss sampling store launcher fixed

.PHONY: help env reproduce plan study study-report test test-all soak audit bench lint lab site crate badges clean \
  table1 table2 table3 table4 table5 figure1

help:  ## this list
	@grep -hE '^[a-z0-9 -]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo "PRESET=$(PRESET) of: $$(ls nppkit/presets | sed 's/\.yaml//' | tr '\n' ' ')   CORES=$(CORES)   VENV=$(VENV)"

INSTALLED := $(BIN)/.installed$(if $(filter-out file,$(origin EXTRAS)),-$(EXTRAS))
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

env: $(INSTALLED)  ## create the environment in VENV

reproduce: env  ## everything a preset holds: tokenizer, trainings, tables, figure; stop it at any time, type it again
	$(SNAKEMAKE) $(CONFIG)
	@$(BIN)/python -m nppkit where "$$PRESET"

table1 table2 table3 table4 table5 figure1: env  ## one table or the figure, and what it needs
	$(SNAKEMAKE) $@ $(CONFIG)
	@$(BIN)/python -m nppkit where "$$PRESET" $@

plan: env  ## steps, memory, disk and hours of every run before anything starts; GPU= GPUS= UTILISATION=
	@$(BIN)/python -m nppkit plan "$$PRESET" $(if $(GPU),--gpu $(GPU)) $(if $(GPUS),--gpus $(GPUS)) $(if $(UTILISATION),--utilisation $(UTILISATION))

study: env  ## the first study's runs on CPU, in hours; stop it at any time, type it again
	$(MAKE) reproduce PRESET=study_8x8
	$(MAKE) reproduce PRESET=study

study-report: env  ## the study's tables, figures, report and reading notebooks from the committed results, in minutes
	(echo report; echo photographs; echo text; echo video; echo patches; echo names; $(BIN)/python -m nppkit where study --notebooks) | xargs -P $(CORES) -I {} $(BIN)/jupyter nbconvert \
	  --to notebook --execute --inplace --log-level WARN --ExecutePreprocessor.record_timing=False notebooks/{}.ipynb
	rm -rf docs/report_files  # its pictures are numbered by cell
	for page in "report supplement" "supplement article"; do set -- $$page; $(BIN)/jupyter nbconvert --to markdown --no-input --log-level WARN \
	  --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_cell_tags $$2 --output-dir docs --output $$1 notebooks/report.ipynb || exit 1; done
	$(BIN)/python -m nppkit verdicts study README.md
	$(MAKE) crate

test: env  ## the tests: the method against the authors' code, every notebook at its smallest size
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

test-all: env  ## these and the slow ones: full-size models, a whole preset, a browser
	$(BIN)/python -m pytest $(WORKERS)

soak: env  ## kill and resume a run 50 times, and compare it with an undisturbed one
	NPPKIT_KILLS=50 $(BIN)/python -m pytest tests/test_faults.py -k random_instants

audit:  ## known vulnerabilities of the pinned versions, where the advisory service can be reached; never fails
	-$(PYTHON) -m venv .cache/audit && .cache/audit/bin/pip install --quiet pip-audit==2.10.1 \
	  && .cache/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

bench: env  ## how fast and how large, about 17 minutes of two cores; results/bench/
	for row in $(BENCH); do $(BIN)/python benchmarks/$$row.py || exit 1; done
	$(BIN)/python benchmarks/table.py

lint: env  ## ruff, and hadolint on the Dockerfile
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/hadolint Dockerfile

lab: env  ## JupyterLab on notebooks/start_here.ipynb
	$(BIN)/jupyter lab notebooks/start_here.ipynb

site: env  ## these pages, the notebooks and the API as a web site: build/site/index.html
	$(BIN)/python -m sphinx -c docs -b html -q -E -a . build/site

crate: env  ## metadata (RO-Crate) of the committed results: results/*/ro-crate-metadata.json
	$(BIN)/python docs/crate.py

badges: env  ## for whoever hosts a copy: Binder and Colab badges; REPOSITORY=owner/name
	$(BIN)/python docs/badges.py $(REPOSITORY)

clean:  ## remove the environment and caches; results and checkpoints stay
	rm -rf $(VENV) .cache .snakemake .pytest_cache .ruff_cache build *.egg-info
