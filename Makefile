# `make demo` and `make test` set up what they need in .venv: the library alone, or with the development tools.
# PIP_ARGS are further arguments of pip, such as another index.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
MINIMUM := .venv-minimum
INSTALLED := $(VENV)/.installed
DEVELOPING := $(VENV)/.installed-dev
PIP_INSTALL := $(BIN)/python -m pip install --quiet $(PIP_ARGS)

.PHONY: setup demo test test-minimum lint format types docs notebooks notebooks-executed package check clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --upgrade pip

$(INSTALLED): pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) --editable .
	touch $@

$(DEVELOPING): pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) --editable ".[dev]"
	touch $(INSTALLED) $@

setup: $(DEVELOPING)

demo: $(INSTALLED)  ## pre-train 12 sizes on embedded digits, score them all, extract three
	$(BIN)/poa demo --out runs/demo

# Compiled files are kept, whatever the machine's setting: each process of the tests would compile the package anew.
test: $(DEVELOPING)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadscope

lint: $(DEVELOPING)
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/codespell src tests benchmarks docs README.md CONTRIBUTING.md CHANGELOG.md

format: $(DEVELOPING)
	$(BIN)/ruff check --fix src tests benchmarks docs
	$(BIN)/ruff format src tests benchmarks docs

types: $(DEVELOPING)
	$(BIN)/mypy

# uv takes the oldest version of each package that pyproject.toml allows, in an environment of its own. Beside the newest
# versions of what those need, they warn of what will not work for long; torch 2.11 warns of the programs that it loads.
test-minimum: $(DEVELOPING)
	$(PIP_INSTALL) uv
	$(BIN)/uv venv --clear --python $(BIN)/python $(MINIMUM)
	$(BIN)/uv pip install --python $(MINIMUM)/bin/python --resolution lowest-direct --editable ".[dev]"
	$(MINIMUM)/bin/python -m pytest -n auto --dist loadscope -W ignore::DeprecationWarning \
		-W "ignore:The given buffer is not writable:UserWarning"

docs: $(DEVELOPING)  ## the site, in docs/_build/html; a warning is an error
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "The site: docs/_build/html/index.html"

# They share runs, in a folder of their own.
notebooks-executed: $(DEVELOPING)  ## execute those of docs/notebooks in runs/notebooks; a cell ends after ten minutes
	rm -rf runs/notebooks && mkdir -p runs && cp -r docs/notebooks runs/notebooks
	PYTHONWARNINGS="ignore:IProgress" $(BIN)/jupyter-execute --inplace --NotebookClient.record_timing=False \
		--timeout=600 --startup_timeout=180 runs/notebooks/*.ipynb

notebooks: notebooks-executed  ## and keep what they print
	cp runs/notebooks/*.ipynb docs/notebooks

package: $(DEVELOPING)  ## wheel and sdist in dist/; the wheel is tried in another folder
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist . > /dev/null
	$(BIN)/python tests/package.py dist

check: lint types docs package notebooks-executed test  ## what CI runs

clean:
	rm -rf $(VENV) $(MINIMUM) runs dist docs/_build docs/reference
