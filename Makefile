# Every target sets itself up: the first one makes .venv and installs the project from its own files.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test lint types coverage mutants bench test-hard clean

demo: .venv/.demo  ## SimCLR on the embedded data, read-outs, report.html: minutes on two cores, offline
	$(BIN)/twoviews pretrain recipe=demo

test: .venv/.dev lint types  ## the whole suite, in parallel
	$(PYTEST) -n 2 --dist loadfile

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy

coverage: .venv/.dev
	$(PYTEST) -n 2 --dist loadfile --cov=twoviews --cov-report=term-missing:skip-covered

mutants: .venv/.dev  ## known faults of the field, put in one at a time: each must fail a test
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py

bench: .venv/.bench  ## side by side with the peers, in one run
	$(BIN)/twoviews bench

test-hard: .venv/.dev  ## what takes minutes: many kills, full counts
	$(PYTEST) -n 2 --dist worksteal -m slow

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov

# torch and torchvision in one command with everything else: apart, pip can choose a pair that does not fit.
.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[report]'
	touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[report,dev]'
	touch $@ .venv/.demo

.venv/.bench: pyproject.toml | .venv/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	touch $@
