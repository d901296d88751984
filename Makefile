# `make quickstart` and `make test` each work alone on a machine with Python 3.11+, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PYTEST := $(BIN)/python -m pytest --numprocesses logical

.PHONY: help quickstart smoke test test-all lint types lock clean

help:  ## Show what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(STAMP)  ## Five methods on small pictures: tables and figures in minutes
	$(BIN)/snakemake

smoke: $(STAMP)  ## The same path in a minute, on less data
	$(BIN)/snakemake --config suites=smoke

test: $(STAMP)  ## Run the tests on all cores, but for the slow ones
	$(PYTEST) -m 'not slow'

test-all: $(STAMP)  ## Run all tests: also kills, Slurm, a browser, LaTeX, many processes
	$(PYTEST)

lint: $(STAMP)  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile
	$(BIN)/codespell

types: $(STAMP)  ## Check types
	$(BIN)/mypy

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, $(PYTHON) is {sys.version.split()[0]}: say make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint requirements.lock
	@touch $@

lock: $(STAMP)  ## Resolve the newest versions that pyproject.toml allows, and pin them
	$(BIN)/python -m pip install --quiet uv
	{ echo '# Pins what can move numbers. Made by `make lock`; not torch, torchvision and what they bring: CPU and CUDA'; \
	  echo '# builds differ, so their ranges in pyproject.toml hold.'; \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-header --no-annotate pyproject.toml \
	    | grep -vE '^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==' ; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:  ## Remove the environment (results and data stay)
	rm -rf $(VENV)
