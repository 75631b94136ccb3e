# Every target sets itself up: the first one creates .venv and installs the project from its own files.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-compile  # Python compiles what it imports
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: demo check test lint types coverage mutants bench test-hard docs clean

demo: .venv/.demo  ## SimCLR on the bundled blood cells, evaluation and report.html: minutes on two cores, offline
	$(BIN)/twoviews pretrain recipe=demo
	@echo
	@echo "What to try next (activate the environment first: source .venv/bin/activate):"
	@echo "  open the report.html named above      nearest neighbours, accuracies, curves, and the views"
	@echo "  twoviews pretrain recipe=cifar_thin   CIFAR-10, downloaded once; about ten minutes on two cores"
	@echo "  twoviews pretrain recipe=cifar_thin dataset=folder data_dir=my_images image_size=32"
	@echo "  twoviews evaluate probes=reference    evaluate this run by more probes"
	@echo "  twoviews pretrain --help              all recipes, methods, data sets and backbones"

check: lint types  ## for every commit: lint, types and the fast tests, under 90 s on two cores
	$(PYTEST) -m "not slow and not long"

test: lint types  ## the whole suite, in parallel
	$(PYTEST) --dist worksteal

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: .venv/.dev
	$(BIN)/mypy

coverage: .venv/.dev
	$(PYTEST) --cov=twoviews --cov-report=term-missing:skip-covered

mutants: .venv/.dev  ## typical mistakes in such code, planted one at a time: each must fail a test
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants

bench: .venv/.bench  ## speed beside other tools, in one run
	$(BIN)/twoviews bench

test-hard: .venv/.dev  ## tests that take minutes: many kills, full counts
	$(PYTEST) --dist worksteal -m slow

docs: .venv/.dev  ## the documentation site in docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov

# torch and torchvision in one command with everything else: apart, pip can choose a pair that does not fit.
.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml | .venv/bin/python
	@echo "Installing TwoViews and PyTorch into .venv (about 6 GB on Linux, where PyTorch brings its GPU libraries)"
	$(PIP) -e .
	@du -sh .venv
	touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	@echo "Installing TwoViews, PyTorch and the tools for development into .venv (about 6 GB on Linux)"
	$(PIP) -e '.[dev]'
	@du -sh .venv
	touch $@ .venv/.demo

.venv/.bench: pyproject.toml | .venv/.dev
	$(PIP) -e '.[bench]'
	touch $@
